//! A way to the root filesystem for runtimes that walk there as the container's root, who is nobody on the node.
//!
//! Directories with state are root's alone. In a pod with a user namespace the pod's own ones let its root's group pass, and
//! those above let pass whoever knows a pod's id. Nobody may list them, and files keep the modes that they have. The built-in
//! runtime needs none of this: it gets there by descriptor.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use super::{Container, Error, Result};

/// Lets the group `gid` of the node pass to the container's directory. Blocks.
///
/// # Errors
/// When a mode can't be changed, or a directory above the state directory lets nobody pass.
pub(super) fn grant(container: &Container, state_dir: &Path, gid: u32) -> Result<()> {
    let failed = |path: &Path| {
        let attempt = format!("let the pod's users pass through {}", path.display());
        let id = container.id.clone();
        move |source: io::Error| Error::Io { attempt, id, source }
    };
    for path in container.dir.ancestors() {
        let own = path.starts_with(&container.sandbox.paths.state);
        let mode = fs::metadata(path).map_err(failed(path))?.permissions().mode();
        if !path.starts_with(state_dir) {
            // Not Wharf's to change.
            if mode & 0o001 == 0 {
                return Err(Error::State(format!(
                    "{} lets nobody but its owner pass: with user namespaces the runtime of container {} can't walk to its root \
                     filesystem (chmod o+x, or another state_dir, or the built-in handler)",
                    path.display(),
                    container.id
                )));
            }
            continue;
        }
        if own {
            chown(path, None, Some(gid)).map_err(failed(path))?;
        }
        let pass = if own { 0o010 } else { 0o001 };
        if mode & pass == 0 {
            fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 | pass)).map_err(failed(path))?;
        }
    }
    Ok(())
}
