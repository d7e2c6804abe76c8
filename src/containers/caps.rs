//! Capabilities: names, sets, and what a container gets.

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};
use wharf_proto::cri;

/// In the kernel's order: the place is the number.
const NAMES: [(&str, Capability); 41] = [
    ("CHOWN", Capability::Chown),
    ("DAC_OVERRIDE", Capability::DacOverride),
    ("DAC_READ_SEARCH", Capability::DacReadSearch),
    ("FOWNER", Capability::Fowner),
    ("FSETID", Capability::Fsetid),
    ("KILL", Capability::Kill),
    ("SETGID", Capability::Setgid),
    ("SETUID", Capability::Setuid),
    ("SETPCAP", Capability::Setpcap),
    ("LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("NET_BIND_SERVICE", Capability::NetBindService),
    ("NET_BROADCAST", Capability::NetBroadcast),
    ("NET_ADMIN", Capability::NetAdmin),
    ("NET_RAW", Capability::NetRaw),
    ("IPC_LOCK", Capability::IpcLock),
    ("IPC_OWNER", Capability::IpcOwner),
    ("SYS_MODULE", Capability::SysModule),
    ("SYS_RAWIO", Capability::SysRawio),
    ("SYS_CHROOT", Capability::SysChroot),
    ("SYS_PTRACE", Capability::SysPtrace),
    ("SYS_PACCT", Capability::SysPacct),
    ("SYS_ADMIN", Capability::SysAdmin),
    ("SYS_BOOT", Capability::SysBoot),
    ("SYS_NICE", Capability::SysNice),
    ("SYS_RESOURCE", Capability::SysResource),
    ("SYS_TIME", Capability::SysTime),
    ("SYS_TTY_CONFIG", Capability::SysTtyConfig),
    ("MKNOD", Capability::Mknod),
    ("LEASE", Capability::Lease),
    ("AUDIT_WRITE", Capability::AuditWrite),
    ("AUDIT_CONTROL", Capability::AuditControl),
    ("SETFCAP", Capability::Setfcap),
    ("MAC_OVERRIDE", Capability::MacOverride),
    ("MAC_ADMIN", Capability::MacAdmin),
    ("SYSLOG", Capability::Syslog),
    ("WAKE_ALARM", Capability::WakeAlarm),
    ("BLOCK_SUSPEND", Capability::BlockSuspend),
    ("AUDIT_READ", Capability::AuditRead),
    ("PERFMON", Capability::Perfmon),
    ("BPF", Capability::Bpf),
    ("CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// What a container gets that asks for nothing; Docker's and containerd's list.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A name that is no capability.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(pub String);

/// A set of capabilities, as the kernel's bit mask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapSet(u64);

impl CapSet {
    /// Every capability that Wharf knows.
    #[must_use]
    pub fn all() -> CapSet {
        CapSet((1 << NAMES.len()) - 1)
    }

    /// From a mask such as those in /proc/PID/status. Unknown bits are dropped.
    #[must_use]
    pub fn from_mask(mask: u64) -> CapSet {
        CapSet(mask & CapSet::all().0)
    }

    /// From names with or without `CAP_`, in any case.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<CapSet, UnknownCapability> {
        names
            .iter()
            .try_fold(CapSet::default(), |set, name| Ok(set.with(CapSet::one(name.as_ref())?)))
    }

    fn one(name: &str) -> Result<CapSet, UnknownCapability> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let at = NAMES
            .iter()
            .position(|(n, _)| *n == bare)
            .ok_or_else(|| UnknownCapability(name.to_owned()))?;
        Ok(CapSet(1 << at))
    }

    /// Is the named capability in the set? `name` without `CAP_`.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        NAMES
            .iter()
            .position(|(n, _)| *n == name)
            .is_some_and(|at| self.0 >> at & 1 == 1)
    }

    /// Both sets together.
    #[must_use]
    pub fn with(self, other: CapSet) -> CapSet {
        CapSet(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    #[must_use]
    pub fn without(self, other: CapSet) -> CapSet {
        CapSet(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: CapSet) -> CapSet {
        CapSet(self.0 & other.0)
    }

    /// As the spec wants it.
    #[must_use]
    pub fn to_oci(self) -> Capabilities {
        NAMES
            .iter()
            .enumerate()
            .filter(|(at, _)| self.0 >> at & 1 == 1)
            .map(|(_, (_, cap))| *cap)
            .collect()
    }

    /// From the spec's form.
    #[must_use]
    pub fn from_oci(caps: &Capabilities) -> CapSet {
        let bits = NAMES.iter().enumerate().filter(|(_, (_, cap))| caps.contains(cap));
        CapSet(bits.fold(0, |mask, (at, _)| mask | 1 << at))
    }
}

/// The sets of a container's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerCaps {
    /// Bounding, permitted and effective.
    pub main: CapSet,
    /// Ambient and inheritable: what a process of another user than root keeps across exec.
    pub ambient: CapSet,
}

impl ContainerCaps {
    /// As the spec wants them.
    #[must_use]
    pub fn to_oci(self) -> LinuxCapabilities {
        let mut out = LinuxCapabilities::default();
        out.set_bounding(Some(self.main.to_oci()))
            .set_effective(Some(self.main.to_oci()))
            .set_permitted(Some(self.main.to_oci()))
            .set_inheritable(Some(self.ambient.to_oci()))
            .set_ambient(Some(self.ambient.to_oci()));
        out
    }
}

/// What a container gets. `defaults` replaces the built-in list; `available` is what the daemon itself has, and bounds
/// everything, because a runtime that is asked for more fails or ignores it.
///
/// Order, as peers do it: the default list or ALL, then drop ALL, then single additions, then single drops.
pub fn of_container(
    privileged: bool,
    requested: Option<&cri::Capability>,
    defaults: Option<&[String]>,
    available: CapSet,
) -> Result<ContainerCaps, UnknownCapability> {
    if privileged {
        return Ok(ContainerCaps {
            main: available,
            ambient: CapSet::default(),
        });
    }
    let none = cri::Capability::default();
    let requested = requested.unwrap_or(&none);
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let single = |names: &[String]| -> Result<CapSet, UnknownCapability> {
        CapSet::parse(&names.iter().filter(|n| !is_all(n)).collect::<Vec<_>>())
    };
    let mut set = match defaults {
        _ if requested.add_capabilities.iter().any(is_all) => CapSet::all(),
        Some(names) => CapSet::parse(names)?,
        None => CapSet::parse(&DEFAULT)?,
    };
    if requested.drop_capabilities.iter().any(is_all) {
        set = CapSet::default();
    }
    let ambient = match requested.add_ambient_capabilities.iter().any(is_all) {
        true => CapSet::all(),
        false => single(&requested.add_ambient_capabilities)?,
    };
    let set = set.with(single(&requested.add_capabilities)?).with(ambient);
    let set = set.without(single(&requested.drop_capabilities)?).and(available);
    Ok(ContainerCaps {
        main: set,
        ambient: ambient.and(set),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(add: &[&str], drop: &[&str], ambient: &[&str]) -> ContainerCaps {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let request = cri::Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            add_ambient_capabilities: owned(ambient),
        };
        of_container(false, Some(&request), None, CapSet::all()).unwrap()
    }

    #[test]
    fn without_a_wish_there_are_fourteen() {
        let caps = of_container(false, None, None, CapSet::all()).unwrap();
        assert_eq!((caps.main.0.count_ones(), caps.ambient), (14, CapSet::default()));
        assert!(!caps.main.has("SYS_ADMIN") && caps.main.has("NET_RAW"));
    }

    #[test]
    fn adds_and_drops_compose_as_peers_do() {
        assert!(ask(&["cap_sys_admin"], &[], &[]).main.has("SYS_ADMIN"));
        assert_eq!(
            ask(&["NET_ADMIN"], &["ALL"], &[]).main,
            CapSet::parse(&["NET_ADMIN"]).unwrap()
        );
        assert_eq!(
            ask(&["ALL"], &["CHOWN"], &[]).main,
            CapSet::all().without(CapSet::parse(&["CHOWN"]).unwrap())
        );
        let ambient = ask(&[], &["ALL"], &["NET_BIND_SERVICE"]);
        assert_eq!(ambient.main, ambient.ambient);
        assert!(ambient.ambient.has("NET_BIND_SERVICE"));
    }

    #[test]
    fn nothing_exceeds_what_the_daemon_has() {
        let available = CapSet::all().without(CapSet::parse(&["SYS_RESOURCE"]).unwrap());
        assert_eq!(of_container(true, None, None, available).unwrap().main, available);
    }

    #[test]
    fn unknown_names_are_errors() {
        let request = cri::Capability {
            add_capabilities: vec!["SYS_MAGIC".into()],
            ..Default::default()
        };
        let error = of_container(false, Some(&request), None, CapSet::all()).unwrap_err();
        assert_eq!(error.to_string(), "unknown capability \"SYS_MAGIC\"");
    }

    #[test]
    fn masks_and_oci_sets_convert_both_ways() {
        let set = CapSet::from_mask(0x1ff_feff_ffff);
        assert!(!set.has("SYS_RESOURCE"));
        assert_eq!(CapSet::from_oci(&set.to_oci()), set);
    }
}
