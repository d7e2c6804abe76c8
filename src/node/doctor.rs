//! What the machine lacks for running pods, and what to do about it. Looking takes milliseconds and changes nothing
//! but the throw-away network namespace of a thread that ends.

mod kernel;
mod monitors;
mod network;
mod process;
mod storage;

pub use monitors::Silent;
use wharf_proto::api::{Finding, Severity};

use crate::config::Config;

/// Looks at the machine with the eyes of a daemon with this configuration. Blocks; needs root to see everything.
pub fn findings(config: &Config) -> Vec<Finding> {
    let mut all = Vec::new();
    all.push(process::root());
    all.extend(process::capabilities());
    all.extend(kernel::version());
    all.push(kernel::openat2());
    all.push(kernel::namespaces());
    all.push(kernel::seccomp());
    all.extend(kernel::cgroups(config.cgroups.driver));
    all.extend(storage::overlay(&config.state_dir));
    all.push(storage::quotas(config));
    all.push(storage::space(&config.state_dir));
    all.extend(network::findings(config));
    all.extend(process::runtimes(config));
    all
}

fn ok(check: &str, found: impl Into<String>) -> Finding {
    finding(check, Severity::Ok, found, "")
}

fn warning(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Severity::Warning, found, advice)
}

fn failure(check: &str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    finding(check, Severity::Failure, found, advice)
}

fn finding(check: &str, severity: Severity, found: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding {
        check: check.to_owned(),
        severity: severity.into(),
        found: found.into(),
        advice: advice.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_advice_and_what_is_right_without() {
        let findings = findings(&Config::default());
        for finding in &findings {
            assert!(!finding.check.is_empty() && !finding.found.is_empty(), "{finding:?}");
            assert_eq!(
                finding.severity() == Severity::Ok,
                finding.advice.is_empty(),
                "{finding:?}"
            );
        }
        for check in [
            "overlayfs",
            "cgroups",
            "namespaces",
            "seccomp",
            "nftables",
            "veth",
            "disk",
        ] {
            assert!(
                findings.iter().any(|finding| finding.check == check),
                "{check} was not looked at"
            );
        }
    }
}
