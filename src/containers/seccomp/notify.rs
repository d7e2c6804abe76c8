//! Profiles that tell of what they block (row C7), as CRI-O makes them: what would fail is answered by whoever holds the
//! filter's descriptor, which is the pod's monitor.

use std::collections::{BTreeSet, HashMap};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSyscall};

use crate::{config::SECCOMP_NOTIFIER, runtime::seccomp_compile};

/// What a runtime needs itself between the filter and the program; runc takes no profile that tells of `write`.
const NEEDED: [&str; 12] = [
    "capset",
    "close",
    "execve",
    "exit",
    "exit_group",
    "prctl",
    "read",
    "recvmsg",
    "rt_sigreturn",
    "sendmsg",
    "sendto",
    "write",
];

/// What becomes of a container that calls what is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is only counted.
    Log,
    /// The container is ended.
    Stop,
}

impl Action {
    /// What the effective annotations of a pod ask for. As with CRI-O, every value but `stop` means [`Action::Log`].
    #[must_use]
    pub fn read(annotations: &HashMap<String, String>) -> Option<Self> {
        let value = SECCOMP_NOTIFIER.iter().find_map(|key| annotations.get(*key))?;
        Some(if value == "stop" { Self::Stop } else { Self::Log })
    }

    /// As records have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Stop => "stop",
        }
    }
}

fn blocks(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActErrno
            | LinuxSeccompAction::ScmpActKill
            | LinuxSeccompAction::ScmpActKillThread
            | LinuxSeccompAction::ScmpActKillProcess
    )
}

/// The profile, with what it blocks told of: rules that refuse or kill, and, because runtimes allow no such default, by
/// name every call that only the default refuses. Left as they are: rules that say ENOSYS, which is how a profile has
/// programs use an older call, and calls that are allowed with some arguments.
#[must_use]
pub fn telling(mut profile: LinuxSeccomp) -> LinuxSeccomp {
    let default = profile.default_action();
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    let mut known: BTreeSet<String> = NEEDED.map(str::to_owned).into();
    for rule in &mut rules {
        known.extend(rule.names().iter().cloned());
        let pretends = rule.errno_ret() == Some(libc::ENOSYS as u32);
        let needed = rule.names().iter().any(|name| NEEDED.contains(&name.as_str()));
        if blocks(rule.action()) && !pretends && !needed {
            rule.set_action(LinuxSeccompAction::ScmpActNotify).set_errno_ret(None);
        }
    }
    if blocks(default) {
        let names: Vec<_> = seccomp_compile::names()
            .filter(|name| !known.contains(*name))
            .map(ToOwned::to_owned)
            .collect();
        let mut rule = LinuxSyscall::default();
        rule.set_names(names)
            .set_action(LinuxSeccompAction::ScmpActNotify)
            .set_errno_ret(None)
            .set_args(None);
        rules.push(rule);
    }
    profile.set_syscalls(Some(rules));
    profile
}

/// Whether anything is told of.
#[must_use]
pub fn tells(profile: &LinuxSeccomp) -> bool {
    let rules = profile.syscalls().iter().flatten();
    rules
        .into_iter()
        .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify && !rule.names().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::{caps::CapSet, seccomp::default_profile};

    fn actions(profile: &LinuxSeccomp, name: &str) -> Vec<LinuxSeccompAction> {
        let rules = profile.syscalls().iter().flatten();
        let named = rules.filter(|rule| rule.names().iter().any(|known| known == name));
        named.map(|rule| rule.action()).collect()
    }

    #[test]
    fn what_the_default_profile_blocks_is_told_of() {
        use LinuxSeccompAction::{ScmpActAllow, ScmpActErrno, ScmpActNotify};
        let profile = telling(default_profile(CapSet::default(), (6, 1)));
        for name in ["mount", "unshare", "bpf", "reboot", "swapoff"] {
            assert_eq!(actions(&profile, name), [ScmpActNotify], "{name}");
        }
        assert_eq!(actions(&profile, "read"), [ScmpActAllow]);
        assert_eq!(actions(&profile, "clone3"), [ScmpActErrno], "an answer, not a refusal");
        assert_eq!(actions(&profile, "personality"), [ScmpActAllow; 5]);
        assert_eq!(profile.default_action(), ScmpActErrno);
        assert!(tells(&profile));
        assert!(seccomp_compile::compile(&profile).is_ok());
    }

    #[test]
    fn a_profile_that_forbids_by_name_is_told_of_by_name() {
        let mut profile = LinuxSeccomp::default();
        let rule = |names: &[&str], action| {
            let mut rule = LinuxSyscall::default();
            rule.set_names(names.iter().map(|name| (*name).to_owned()).collect())
                .set_action(action)
                .set_errno_ret(None);
            rule
        };
        profile
            .set_default_action(LinuxSeccompAction::ScmpActAllow)
            .set_syscalls(Some(vec![
                rule(&["chmod"], LinuxSeccompAction::ScmpActKillProcess),
                rule(&["write"], LinuxSeccompAction::ScmpActErrno),
            ]));
        let profile = telling(profile);
        assert_eq!(actions(&profile, "chmod"), [LinuxSeccompAction::ScmpActNotify]);
        assert_eq!(actions(&profile, "write"), [LinuxSeccompAction::ScmpActErrno]);
        assert_eq!(profile.syscalls().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn calls_have_names() {
        let arch = if cfg!(target_arch = "x86_64") {
            0xc000_003e
        } else {
            0xc000_00b7
        };
        assert_eq!(seccomp_compile::name(arch, libc::SYS_mount as u32), Some("mount"));
        assert_eq!(seccomp_compile::name(arch, 99_999), None);
        assert_eq!(seccomp_compile::name(1, 1), None);
    }
}
