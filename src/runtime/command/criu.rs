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

/// Moves into the container's cgroup and makes a cgroup namespace with that as its root, if the container has one of its
/// own: what is restored without its cgroups inherits it. The program has to be in the cgroup itself, as version 2 lets
/// nobody move a process over the root of his namespace (`nsdelegate`); runc warns of that until 1.1, and refuses it later.
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
    let cgroup = Cgroup::new(&hierarchies, path).map_err(failed)?;
    cgroup.create().and_then(|()| cgroup.join_self()).map_err(failed)?;
    sys::unshare(libc::CLONE_NEWCGROUP).context(|| "make a cgroup namespace".into())
}

fn spec(bundle: &Path) -> Result<Spec> {
    let file = bundle.join("config.json");
    Spec::load(&file).map_err(|error| Error::InvalidSpec(format!("{}: {error}", file.display())))
}

fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<&oci_spec::runtime::LinuxNamespace> {
    let all = spec.linux().as_ref()?.namespaces().as_deref()?;
    all.iter().find(|namespace| namespace.typ() == kind)
}
