//! Reads config.json and refuses by name what this runtime does not do.

use super::{listener, sched::Scheduling};
use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Process, Spec};
use std::path::{Path, PathBuf};

/// A spec that has been found complete enough to run.
pub struct Bundle {
    pub spec: Spec,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
}

impl Bundle {
    pub fn load(dir: &Path) -> Result<Bundle> {
        let path = dir.join("config.json");
        let text = std::fs::read(&path).context(|| format!("read {}", path.display()))?;
        let spec: Spec =
            serde_json::from_slice(&text).map_err(|e| Error::InvalidSpec(format!("{}: {e}", path.display())))?;
        let root = spec
            .root()
            .as_ref()
            .ok_or_else(|| Error::InvalidSpec("root is missing".into()))?;
        let rootfs = dir.join(root.path());
        check(&spec)?;
        Ok(Bundle { spec, rootfs })
    }

    /// Present in each checked spec.
    pub fn linux(&self) -> Result<&Linux> {
        self.spec
            .linux()
            .as_ref()
            .ok_or_else(|| Error::InvalidSpec("linux is missing".into()))
    }

    /// Present in each checked spec.
    pub fn process(&self) -> Result<&Process> {
        self.spec
            .process()
            .as_ref()
            .ok_or_else(|| Error::InvalidSpec("process is missing".into()))
    }

    pub fn namespace(&self, kind: LinuxNamespaceType) -> Namespace<'_> {
        let list = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        match list.and_then(|list| list.iter().find(|ns| ns.typ() == kind)) {
            None => Namespace::Host,
            Some(ns) => match ns.path() {
                Some(path) if !path.as_os_str().is_empty() => Namespace::Join(path),
                _ => Namespace::New,
            },
        }
    }

    /// Whether the container runs in a user namespace, new or joined.
    pub fn has_userns(&self) -> bool {
        self.namespace(LinuxNamespaceType::User) != Namespace::Host
    }
}

/// How a container relates to a kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace<'a> {
    Host,
    New,
    Join(&'a Path),
}

/// Whether this runtime does all that a spec asks for.
///
/// # Errors
/// Names what it does not do, or what makes no sense.
pub fn check(spec: &Spec) -> Result<()> {
    let unsupported = |what: &str| Err(Error::Unsupported(what.into()));
    if !spec.version().starts_with("1.") {
        return Err(Error::Unsupported(format!("ociVersion {:?}", spec.version())));
    }
    super::hooks::check(spec)?;
    if spec.vm().is_some() || spec.windows().is_some() || spec.solaris().is_some() || spec.zos().is_some() {
        return unsupported("sections for other systems than Linux");
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| Error::InvalidSpec("linux is missing".into()))?;
    check_linux(linux)?;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::InvalidSpec("process is missing".into()))?;
    check_process(process)?;
    Scheduling::of(process, linux).map(drop)
}

fn check_linux(linux: &Linux) -> Result<()> {
    let mut refused = vec![
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (
            linux.time_offsets().as_ref().is_some_and(|o| !o.is_empty()),
            "linux.timeOffsets",
        ),
        (
            linux.net_devices().as_ref().is_some_and(|d| !d.is_empty()),
            "linux.netDevices",
        ),
    ];
    let seccomp = linux.seccomp().as_ref();
    let notify = |s: &LinuxSeccomp| {
        let notifies = |action| action == LinuxSeccompAction::ScmpActNotify;
        notifies(s.default_action()) || s.syscalls().iter().flatten().any(|rule| notifies(rule.action()))
    };
    refused.push((
        seccomp.is_some_and(|s| notify(s) && s.listener_path().is_none()),
        "SCMP_ACT_NOTIFY without linux.seccomp.listenerPath",
    ));
    refused.push((
        seccomp.is_some_and(|s| !notify(s) && s.listener_path().is_some()),
        "linux.seccomp.listenerPath without SCMP_ACT_NOTIFY",
    ));
    if let Some(profile) = seccomp {
        listener::check(profile)?;
    }
    let namespaces: Vec<_> = linux.namespaces().iter().flatten().collect();
    refused.push((
        namespaces.iter().any(|ns| ns.typ() == LinuxNamespaceType::Time),
        "the time namespace",
    ));
    if let Some((_, what)) = refused.iter().find(|(found, _)| *found) {
        return Err(Error::Unsupported((*what).into()));
    }
    for (at, ns) in namespaces.iter().enumerate() {
        if namespaces[..at].iter().any(|earlier| earlier.typ() == ns.typ()) {
            return Err(Error::InvalidSpec(format!("linux.namespaces lists {} twice", ns.typ())));
        }
    }
    let new_mount = |ns: &&&oci_spec::runtime::LinuxNamespace| {
        ns.typ() == LinuxNamespaceType::Mount && ns.path().as_ref().is_none_or(|p| p.as_os_str().is_empty())
    };
    if namespaces.iter().find(new_mount).is_none() {
        return Err(Error::Unsupported(
            "a container without a mount namespace of its own".into(),
        ));
    }
    Ok(())
}

/// Also for processes that are run in a container later.
pub fn check_process(process: &Process) -> Result<()> {
    if process.args().as_ref().is_none_or(|args| args.is_empty()) {
        return Err(Error::InvalidSpec("process.args is empty".into()));
    }
    if !process.cwd().is_absolute() {
        return Err(Error::InvalidSpec(format!(
            "process.cwd {:?} is not absolute",
            process.cwd()
        )));
    }
    Ok(())
}
