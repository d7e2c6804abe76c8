//! Seccomp profiles: the default one, and files in OCI's or Docker's JSON form.

mod local;
pub mod notify;
mod table;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall,
};

pub use local::{Error, LocalProfile, load};

use super::caps::CapSet;

const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// The profile RuntimeDefault for a container with the capabilities `caps` on a kernel of this version. What it does not
/// allow fails with EPERM.
#[must_use]
pub fn default_profile(caps: CapSet, kernel: (u32, u32)) -> LinuxSeccomp {
    let architecture = std::env::consts::ARCH;
    let mut names: Vec<&str> = table::ALWAYS.split_ascii_whitespace().collect();
    let by_capability = table::BY_CAPABILITY
        .iter()
        .filter(|(cap, _)| caps.has(cap))
        .map(|(_, names)| names);
    let by_architecture = table::BY_ARCHITECTURE
        .iter()
        .filter(|(a, _)| *a == architecture)
        .map(|(_, names)| names);
    names.extend(by_capability.chain(by_architecture).copied().flatten());
    if kernel >= (4, 8) {
        names.extend(table::SINCE_4_8);
    }
    names.sort_unstable();
    names.dedup();

    let mut rules = vec![rule(&names, None)];
    for domain in table::PERSONALITIES {
        rules.push(rule(
            &["personality"],
            Some(arg(0, domain, None, LinuxSeccompOperator::ScmpCmpEq)),
        ));
    }
    // Every family but AF_ALG (kernel crypto, a long history of holes) and AF_VSOCK (the hypervisor). Three rules,
    // because runtimes take two conditions on one argument for alternatives.
    let families = [
        (AF_ALG, LinuxSeccompOperator::ScmpCmpLt),
        (AF_ALG + 1, LinuxSeccompOperator::ScmpCmpEq),
        (AF_VSOCK, LinuxSeccompOperator::ScmpCmpGt),
    ];
    for (family, compare) in families {
        rules.push(rule(&["socket"], Some(arg(0, family, None, compare))));
    }
    if !caps.has("SYS_ADMIN") {
        // New threads and processes, but no new namespaces. clone3 hides its flags from the filter: C libraries fall back
        // to clone when it "does not exist".
        let at = if architecture == "s390x" { 1 } else { 0 };
        let no_namespaces = arg(
            at,
            table::NAMESPACE_FLAGS,
            Some(0),
            LinuxSeccompOperator::ScmpCmpMaskedEq,
        );
        rules.push(rule(&["clone"], Some(no_namespaces)));
        let mut clone3 = rule(&["clone3"], None);
        clone3
            .set_action(LinuxSeccompAction::ScmpActErrno)
            .set_errno_ret(Some(libc::ENOSYS as u32));
        rules.push(clone3);
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(architectures(architecture)))
        .set_syscalls(Some(rules));
    profile
}

/// The native architecture and those whose programs the kernel runs as well.
fn architectures(native: &str) -> Vec<Arch> {
    match native {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        "powerpc64" => vec![Arch::ScmpArchPpc64le],
        "loongarch64" => vec![Arch::ScmpArchLoongarch64],
        _ => vec![Arch::ScmpArchNative],
    }
}

fn rule(names: &[&str], arg: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|n| (*n).to_owned()).collect())
        .set_action(LinuxSeccompAction::ScmpActAllow)
        .set_errno_ret(None)
        .set_args(arg.map(|arg| vec![arg]));
    rule
}

fn arg(index: usize, value: u64, value_two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let builder = match value_two {
        Some(two) => builder.value_two(two),
        None => builder,
    };
    // Every field has a default, so nothing can be missing.
    builder.build().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules_for(profile: &LinuxSeccomp, name: &str) -> usize {
        profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|s| s.names().iter().any(|n| n == name))
            .count()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = default_profile(CapSet::default(), (6, 1));
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "init_module",
            "reboot",
            "keyctl",
            "socketcall",
            "io_uring_setup",
        ] {
            assert_eq!(rules_for(&plain, name), 0, "{name} is allowed");
        }
        let admin = default_profile(CapSet::parse(&["SYS_ADMIN"]).unwrap(), (6, 1));
        for name in ["mount", "unshare", "setns", "clone3"] {
            assert_eq!(rules_for(&admin, name), 1, "{name} is not allowed");
        }
    }

    #[test]
    fn new_namespaces_and_special_sockets_are_held_back() {
        let plain = default_profile(CapSet::default(), (6, 1));
        assert_eq!(
            (
                rules_for(&plain, "clone"),
                rules_for(&plain, "socket"),
                rules_for(&plain, "personality")
            ),
            (1, 3, 5)
        );
        let clone3 = plain
            .syscalls()
            .as_ref()
            .unwrap()
            .iter()
            .find(|s| s.names()[0] == "clone3")
            .unwrap();
        assert_eq!(clone3.errno_ret(), Some(38));
    }

    #[test]
    fn the_filter_compiles() {
        for caps in [CapSet::default(), CapSet::all()] {
            let filter = crate::runtime::seccomp_compile::compile(&default_profile(caps, (6, 1))).unwrap();
            assert!(
                filter.len() > 8 * 100 && filter.len() <= 8 * 4096,
                "{} bytes",
                filter.len()
            );
        }
    }

    /// Row C23, in the kernel.
    #[test]
    fn sockets_of_the_kernels_crypto_are_refused() {
        let filter = crate::runtime::seccomp_compile::compile(&default_profile(CapSet::default(), (6, 1))).unwrap();
        // A thread of its own: filters cannot be taken off.
        let ends = std::thread::spawn(move || {
            crate::sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
            crate::sys::seccomp_set_filter(&filter, 0).unwrap();
            [libc::AF_ALG, libc::AF_VSOCK, libc::AF_INET, libc::AF_UNIX].map(|family| {
                // SAFETY: no pointers; the descriptor, if there is one, ends with the test.
                let fd = unsafe { libc::socket(family, libc::SOCK_SEQPACKET, 0) };
                fd < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
            })
        });
        assert_eq!(ends.join().unwrap(), [true, true, false, false]);
    }

    #[test]
    fn names_stand_once_in_the_table() {
        let mut names: Vec<_> = table::ALWAYS.split_ascii_whitespace().collect();
        let all = names.len();
        names.dedup();
        assert!(names.is_sorted() && names.len() == all && all > 300);
    }

    #[test]
    fn tracing_waits_for_the_kernel_that_makes_it_safe() {
        assert_eq!(rules_for(&default_profile(CapSet::default(), (4, 7)), "ptrace"), 0);
        assert_eq!(rules_for(&default_profile(CapSet::default(), (4, 8)), "ptrace"), 1);
    }
}
