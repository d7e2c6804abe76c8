//! The kernel: its age, its namespaces, filters and control groups.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2 as open};
use wharf_proto::api::Finding;

use super::{failure, ok, warning};
use crate::cgroups::{self, systemd};
use crate::config::CgroupDriver;

/// Oldest kernel on which everything Wharf needs is there; and what an older one lacks.
const NEEDED: (u32, u32) = (5, 10);
/// What newer kernels add: since when, what.
const NICE: [((u32, u32), &str); 2] = [
    ((5, 12), "recursive read-only mounts and id-mapped mounts"),
    ((5, 14), "cgroup.kill, which ends a container's processes in one step"),
];

/// The kernel's version against what is needed and what is nice to have.
pub fn version() -> Vec<Finding> {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    judge_version(&release.unwrap_or_default())
}

fn judge_version(release: &str) -> Vec<Finding> {
    const CHECK: &str = "kernel";
    let Some(version) = parse_version(release) else {
        return vec![warning(
            CHECK,
            format!("unreadable version \"{release}\""),
            "Linux 5.10 or newer is needed.",
        )];
    };
    if version < NEEDED {
        let advice = format!("Use Linux {}.{} or newer.", NEEDED.0, NEEDED.1);
        return vec![failure(CHECK, format!("Linux {release} is too old"), advice)];
    }
    let lacks: Vec<&str> = NICE
        .iter()
        .filter(|(since, _)| version < *since)
        .map(|(_, what)| *what)
        .collect();
    if lacks.is_empty() {
        return vec![ok(CHECK, format!("Linux {release}"))];
    }
    let found = format!("Linux {release} lacks {}", lacks.join("; "));
    vec![warning(CHECK, found, "A newer kernel is better, not necessary.")]
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// openat2, by which images are unpacked and paths in containers are resolved safely. Seccomp filters of older
/// container engines deny it, whatever the kernel's age.
pub fn openat2() -> Finding {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    match open(AT_FDCWD, "/", how) {
        Ok(_) => ok("openat2", "available"),
        Err(Errno::ENOSYS | Errno::EPERM) => failure(
            "openat2",
            "denied",
            "If this machine is itself a container, allow openat2 in its seccomp profile.",
        ),
        Err(errno) => failure("openat2", errno.to_string(), "Use Linux 5.10 or newer."),
    }
}

/// The namespaces that a container is made of.
pub fn namespaces() -> Finding {
    const NEEDED: [&str; 6] = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let lacks: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if !lacks.is_empty() {
        let found = format!("the kernel lacks {}", lacks.join(", "));
        return failure(
            "namespaces",
            found,
            "Use a kernel with CONFIG_NAMESPACES and all kinds of it.",
        );
    }
    let limit = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if !Path::new("/proc/self/ns/user").exists() || limit.trim() == "0" {
        return warning(
            "namespaces",
            "no user namespaces: pods that ask for one can't run",
            "Set user.max_user_namespaces above 0 with sysctl.",
        );
    }
    ok("namespaces", "all kinds")
}

/// Filters for system calls.
pub fn seccomp() -> Finding {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return ok("seccomp", "filters are available");
    }
    failure(
        "seccomp",
        "the kernel has no filters",
        "Use a kernel with CONFIG_SECCOMP_FILTER.",
    )
}

/// The version of control groups and their controllers.
pub fn cgroups(driver: CgroupDriver) -> Vec<Finding> {
    let mut all = vec![controllers()];
    const CHECK: &str = "cgroup driver";
    let v2 = cgroups::detect().is_ok_and(|hierarchies| hierarchies.is_v2());
    let there = v2 && systemd::is_running();
    all.push(match driver {
        CgroupDriver::Systemd if !there => failure(
            CHECK,
            "systemd is wanted, and it doesn't run here, or not on cgroup v2",
            "Set driver = \"cgroupfs\" in [cgroups], and the same for kubelet.",
        ),
        CgroupDriver::Cgroupfs if there => warning(
            CHECK,
            "cgroupfs, beside systemd",
            "systemd may set limits back when it reloads its units; set driver = \"systemd\" in [cgroups] and for kubelet.",
        ),
        CgroupDriver::Cgroupfs => ok(CHECK, "cgroupfs"),
        CgroupDriver::Auto if !there => ok(CHECK, "cgroupfs"),
        CgroupDriver::Auto | CgroupDriver::Systemd => match systemd::probe() {
            Ok(()) => ok(CHECK, "systemd"),
            Err(error) => failure(
                CHECK,
                error.to_string(),
                "Let root talk to systemd, at /run/systemd/private or on the system bus.",
            ),
        },
    });
    all
}

fn controllers() -> Finding {
    const CHECK: &str = "cgroups";
    let hierarchies = match cgroups::detect() {
        Ok(hierarchies) => hierarchies,
        Err(error) => return failure(CHECK, error.to_string(), "Mount cgroup2 at /sys/fs/cgroup."),
    };
    let there = hierarchies.controllers();
    let version = if hierarchies.is_v2() { "v2" } else { "v1" };
    judge_controllers(version, &there)
}

fn judge_controllers(version: &str, there: &[String]) -> Finding {
    const CHECK: &str = "cgroups";
    let lacks = |wanted: &[&str]| -> Vec<String> {
        wanted
            .iter()
            .filter(|name| !there.iter().any(|other| other == *name))
            .map(|name| (*name).to_owned())
            .collect()
    };
    let needed = lacks(&["cpu", "memory", "pids"]);
    if !needed.is_empty() {
        let found = format!("{version} without {}", needed.join(", "));
        let advice = "Enable them on the kernel's command line (cgroup_enable=memory) or in the parent cgroup.";
        return failure(CHECK, found, advice);
    }
    let mut useful = vec!["cpuset"];
    if version == "v1" {
        useful.extend(["devices", "freezer"]);
    }
    let useful = lacks(&useful);
    if !useful.is_empty() {
        let found = format!("{version} without {}", useful.join(", "));
        return warning(
            CHECK,
            found,
            "Limits of these kinds can't be applied; mount the controllers.",
        );
    }
    ok(CHECK, format!("{version} with {}", there.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_proto::api::Severity;

    #[test]
    fn kernels_are_judged_by_their_age() {
        let severity = |release: &str| judge_version(release)[0].severity();
        assert_eq!(severity("4.19.0-6-amd64"), Severity::Failure);
        assert_eq!(severity("5.10.0-23-amd64"), Severity::Warning);
        assert_eq!(severity("6.1.0-28-amd64"), Severity::Ok);
        assert_eq!(severity("next"), Severity::Warning);
    }

    #[test]
    fn controllers_are_needed_or_useful() {
        let judge = |version: &str, text: &str| {
            let there: Vec<String> = text.split(' ').map(str::to_owned).collect();
            judge_controllers(version, &there)
        };
        assert_eq!(judge("v2", "cpu cpuset memory pids").severity(), Severity::Ok);
        assert_eq!(judge("v1", "cpu cpuset memory pids").severity(), Severity::Warning);
        let failure = judge("v2", "cpu pids");
        assert_eq!(
            (failure.severity(), failure.found.as_str()),
            (Severity::Failure, "v2 without memory")
        );
    }
}
