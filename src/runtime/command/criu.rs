//! What a program such as runc does not tell CRIU, and CRIU can be brought to by where it runs.

use std::{fs, path::Path};

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{
    cgroups::{self, Cgroup},
    runtime::{Error, Result, checkpoint, error::Context as _},
    sys,
};

/// Options for CRIU that go beyond the program's, in the directory of CRIU's images' parent; `org.criu.config` in the
/// spec's annotations names the file.
pub(super) fn write_options(work: &Path) -> Result<()> {
    let file = work.join(checkpoint::CRIU_OPTIONS);
    // Restored processes stay where they are started, instead of in the cgroup that they were dumped in.
    fs::write(&file, "manage-cgroups=ignore\n").context(|| format!("write {}", file.display()))
}

/// Joins the UTS and IPC namespaces that the container shares with its pod; see [`checkpoint::enter`].
pub(super) fn enter_shared(bundle: &Path) -> Result<()> {
    let spec = spec(bundle)?;
    for (kind, flag) in [
        (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
        (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
    ] {
        if let Some(path) = namespace(&spec, kind).and_then(|namespace| namespace.path().as_deref()) {
            checkpoint::enter(path, flag)?;
        }
    }
    Ok(())
}

/// Makes a cgroup namespace whose root is the container's cgroup, if the container has one of its own: what is restored
/// without its cgroups inherits it.
pub(super) fn enter_cgroup(bundle: &Path, path: &str) -> Result<()> {
    let failed = |error: cgroups::Error| Error::Cgroup(error.to_string());
    let hierarchies = cgroups::detect().map_err(failed)?;
    if !hierarchies.is_v2() {
        return Err(Error::Unsupported("restoring a container on cgroup v1".into()));
    }
    let own = namespace(&spec(bundle)?, LinuxNamespaceType::Cgroup).is_some_and(|found| found.path().is_none());
    if !own {
        return Ok(());
    }
    let before = current()?;
    let cgroup = Cgroup::new(&hierarchies, path).map_err(failed)?;
    let before = Cgroup::new(&hierarchies, &before).map_err(failed)?;
    // Its files are opened while they can be seen.
    let back = before.joiner().map_err(failed)?;
    cgroup.create().map_err(failed)?;
    cgroup.join_self().map_err(failed)?;
    let made = sys::unshare(libc::CLONE_NEWCGROUP).context(|| "make a cgroup namespace".into());
    // The program itself must not count: it refuses a cgroup that has processes.
    back.join().map_err(failed)?;
    made
}

/// The calling process's cgroup on version 2.
fn current() -> Result<String> {
    let file = "/proc/self/cgroup";
    let text = fs::read_to_string(file).context(|| format!("read {file}"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(ToOwned::to_owned)
        .ok_or_else(|| Error::Cgroup(format!("{file} names no cgroup of version 2")))
}

fn spec(bundle: &Path) -> Result<Spec> {
    let file = bundle.join("config.json");
    Spec::load(&file).map_err(|error| Error::InvalidSpec(format!("{}: {error}", file.display())))
}

fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<&oci_spec::runtime::LinuxNamespace> {
    let all = spec.linux().as_ref()?.namespaces().as_deref()?;
    all.iter().find(|namespace| namespace.typ() == kind)
}
