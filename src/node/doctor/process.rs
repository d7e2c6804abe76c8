//! What this process may do, and what programs it would start.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use wharf_proto::api::Finding;

use super::{failure, ok, warning};
use crate::config::{BUILTIN_RUNTIME, Config};

/// Capabilities without which no pod can run: number, name (capabilities(7)).
const NEEDED: [(u32, &str); 11] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];
const SYS_RESOURCE: u32 = 24;

/// Whether this process is root.
pub fn root() -> Finding {
    if nix::unistd::geteuid().is_root() {
        return ok("root", "yes");
    }
    failure(
        "root",
        "no",
        "Run this as root; an ordinary user can't see or do what the daemon needs.",
    )
}

/// Capabilities of this process.
pub fn capabilities() -> Vec<Finding> {
    judge_capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn judge_capabilities(status: &str) -> Vec<Finding> {
    const CHECK: &str = "capabilities";
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(set) = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) else {
        return vec![warning(CHECK, "unreadable", "Mount /proc.")];
    };
    let has = |number: u32| set & (1 << number) != 0;
    let lacks: Vec<&str> = NEEDED
        .iter()
        .filter(|(number, _)| !has(*number))
        .map(|(_, name)| *name)
        .collect();
    let mut all = Vec::new();
    if !lacks.is_empty() {
        let advice = "Start the daemon with them (systemd: CapabilityBoundingSet; a container: privileged).";
        all.push(failure(CHECK, format!("{} missing", lacks.join(", ")), advice));
    }
    if !has(SYS_RESOURCE) {
        all.push(warning(
            CHECK,
            "CAP_SYS_RESOURCE is missing: oom_score_adj can't be lowered, so important pods are not protected, and \
             limits can't be raised",
            "Give the daemon CAP_SYS_RESOURCE; without it Wharf uses the nearest value that is allowed.",
        ));
    }
    if all.is_empty() {
        all.push(ok(CHECK, "all that are needed"));
    }
    all
}

/// The commands of the OCI runtimes in the configuration.
pub fn runtimes(config: &Config) -> Vec<Finding> {
    let commands = config.runtimes.iter().filter(|(name, _)| *name != BUILTIN_RUNTIME);
    commands.map(|(name, handler)| runtime(name, &handler.path)).collect()
}

fn runtime(name: &str, path: &Path) -> Finding {
    let check = format!("runtime {name}");
    let place = path.display().to_string();
    match path.metadata() {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => ok(&check, place),
        Ok(_) => failure(
            &check,
            format!("{place} can't be executed"),
            "Name the runtime's command.",
        ),
        Err(error) => failure(
            &check,
            format!("{place}: {error}"),
            format!("Install it, or correct runtimes.{name}.path."),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_proto::api::Severity;

    #[test]
    fn a_missing_sys_resource_is_a_warning_with_its_consequence() {
        let findings = judge_capabilities("CapEff:\t000001fffeffffff\n");
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity(), Severity::Warning);
        assert!(findings[0].found.contains("oom_score_adj"));
        assert_eq!(
            judge_capabilities("CapEff:\t000001ffffffffff")[0].severity(),
            Severity::Ok
        );
        let none = judge_capabilities("CapEff:\t0000000000000000");
        assert_eq!(none[0].severity(), Severity::Failure);
        assert!(none[0].found.contains("CAP_SYS_ADMIN"));
    }

    #[test]
    fn a_runtime_that_is_not_there_is_named() {
        let finding = runtime("kata", Path::new("/nowhere/kata"));
        assert_eq!(finding.severity(), Severity::Failure);
        assert!(finding.found.starts_with("/nowhere/kata: No such file"));
    }
}
