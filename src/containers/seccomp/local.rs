//! Profiles in files: the OCI shape, and Docker's with `archMap`, `includes` and `excludes`.

use std::{
    fs::File,
    io::{self, Read},
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use crate::containers::caps::CapSet;

/// Docker's own profile has about 20 KB.
const MAX_PROFILE: u64 = 4 << 20;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference is no absolute path.
    #[error("seccomp profile {0}: no such file or directory: localhost_ref must be an absolute path")]
    NotAbsolute(PathBuf),
    /// The file cannot be read.
    #[error("read seccomp profile {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a profile.
    #[error("seccomp profile {path}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        source: serde_json::Error,
    },
    /// The profile says something that cannot be done.
    #[error("seccomp profile {path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What.
        what: String,
    },
}

/// A profile as it stands in its file. What applies of it depends on the container: see [`LocalProfile::to_oci`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalProfile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Option<Vec<String>>,
    /// Docker's older form.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile. Its listener must be one of `listeners`, or below one of them.
///
/// # Errors
/// A path that is not absolute, a file that cannot be read or is no profile, one with a listener that is not allowed.
pub fn load(path: &Path, listeners: &[PathBuf]) -> Result<LocalProfile, Error> {
    if !path.is_absolute() {
        return Err(Error::NotAbsolute(path.to_owned()));
    }
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = path.metadata().map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_PROFILE {
        return Err(failed(io::Error::other(format!(
            "not a regular file of at most {MAX_PROFILE} bytes"
        ))));
    }
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_PROFILE).read_to_end(&mut text))
        .map_err(failed)?;
    let profile = parse(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })?;
    match profile.problem(listeners) {
        Some(what) => Err(Error::Content {
            path: path.to_owned(),
            what,
        }),
        None => Ok(profile),
    }
}

fn parse(text: &[u8]) -> Result<LocalProfile, serde_json::Error> {
    serde_json::from_slice(text)
}

impl LocalProfile {
    fn problem(&self, listeners: &[PathBuf]) -> Option<String> {
        let rules = || self.syscalls.iter().flatten();
        if let Some(what) = self.wrong_listener(listeners) {
            return Some(what);
        }
        let nameless = rules().position(|r| r.names.as_ref().is_none_or(Vec::is_empty) && r.name.is_none());
        if let Some(at) = nameless {
            return Some(format!("rule {at} names no system call"));
        }
        let bad_arg = rules().find(|r| r.args.iter().flatten().any(|a| a.index() > 5));
        bad_arg.map(|_| "an argument index is above 5".to_owned())
    }

    /// Whoever listens decides what becomes of a container's system calls, and can read its memory while they wait: only
    /// who is named in the node's configuration may.
    fn wrong_listener(&self, listeners: &[PathBuf]) -> Option<String> {
        let notify = |action: &LinuxSeccompAction| *action == LinuxSeccompAction::ScmpActNotify;
        let told: Vec<&Rule> = self
            .syscalls
            .iter()
            .flatten()
            .filter(|rule| notify(&rule.action))
            .collect();
        if notify(&self.default_action) {
            return Some("SCMP_ACT_NOTIFY can't be the default action".to_owned());
        }
        // Runtimes write between the filter's beginning and its being handed over.
        let writes = |rule: &&Rule| {
            rule.names
                .iter()
                .flatten()
                .chain(&rule.name)
                .any(|name| name == "write")
        };
        if told.iter().any(writes) {
            return Some("SCMP_ACT_NOTIFY can't be the action for write".to_owned());
        }
        let listed = |path: &PathBuf| listeners.iter().any(|listed| path.starts_with(listed)) && !climbs(path);
        match &self.listener_path {
            None if !told.is_empty() => Some("SCMP_ACT_NOTIFY needs a listenerPath".to_owned()),
            None if self.listener_metadata.is_some() => Some("listenerMetadata without a listenerPath".to_owned()),
            None => None,
            Some(_) if told.is_empty() => Some("a listenerPath without any SCMP_ACT_NOTIFY".to_owned()),
            Some(path) if !listed(path) => Some(format!(
                "its listenerPath {} is not among containers.seccomp_listeners in wharf.toml",
                path.display()
            )),
            Some(_) => None,
        }
    }

    /// What applies to a container with these capabilities on a kernel of this version and this architecture.
    #[must_use]
    pub fn to_oci(&self, caps: CapSet, kernel: (u32, u32)) -> LinuxSeccomp {
        let native = super::architectures(std::env::consts::ARCH);
        let mapped = self
            .arch_map
            .iter()
            .flatten()
            .find(|m| native.first() == Some(&m.architecture));
        let architectures = match (&self.architectures, mapped) {
            (Some(list), _) if !list.is_empty() => Some(list.clone()),
            (_, Some(map)) => Some(
                std::iter::once(map.architecture)
                    .chain(map.sub_architectures.iter().flatten().copied())
                    .collect(),
            ),
            _ => None,
        };
        let applies = |rule: &&Rule| {
            rule.includes.as_ref().is_none_or(|c| c.all(caps, kernel))
                && !rule.excludes.as_ref().is_some_and(|c| c.any(caps))
        };
        let rules = self.syscalls.iter().flatten().filter(applies).map(|rule| {
            let mut out = LinuxSyscall::default();
            out.set_names(rule.names.iter().flatten().chain(&rule.name).cloned().collect())
                .set_action(rule.action)
                .set_errno_ret(rule.errno_ret)
                .set_args(rule.args.clone().filter(|a| !a.is_empty()));
            out
        });
        let mut out = LinuxSeccomp::default();
        out.set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures(architectures)
            .set_flags(self.flags.clone().filter(|f| !f.is_empty()))
            .set_listener_path(self.listener_path.clone())
            .set_listener_metadata(self.listener_metadata.clone())
            .set_syscalls(Some(rules.collect()));
        out
    }
}

impl Condition {
    /// Every capability, one of the architectures, and the kernel.
    fn all(&self, caps: CapSet, kernel: (u32, u32)) -> bool {
        self.caps.iter().flatten().all(|c| has(caps, c))
            && self
                .arches
                .as_ref()
                .is_none_or(|a| a.is_empty() || a.iter().any(|a| is_native(a)))
            && self.min_kernel.as_ref().is_none_or(|min| kernel >= parse_version(min))
    }

    /// One of the capabilities or architectures.
    fn any(&self, caps: CapSet) -> bool {
        self.caps.iter().flatten().any(|c| has(caps, c)) || self.arches.iter().flatten().any(|a| is_native(a))
    }
}

fn climbs(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

fn has(caps: CapSet, name: &str) -> bool {
    caps.has(name.strip_prefix("CAP_").unwrap_or(name))
}

/// Profiles name architectures as Go does.
fn is_native(go_name: &str) -> bool {
    let rust_name = match go_name {
        "amd64" => "x86_64",
        "386" | "x86" => "x86",
        "arm64" => "aarch64",
        "ppc64le" => "powerpc64",
        "loong64" => "loongarch64",
        other => other,
    };
    rust_name == std::env::consts::ARCH
}

fn parse_version(text: &str) -> (u32, u32) {
    let mut parts = text.split('.').map(|p| p.parse().unwrap_or(u32::MAX));
    (parts.next().unwrap_or(u32::MAX), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "comment": "x",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "includes": {}, "excludes": {}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"name": "ptrace", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["nothing"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["m68k"]}}
        ]}"#;

    fn names(profile: &LinuxSeccomp) -> Vec<&str> {
        profile
            .syscalls()
            .iter()
            .flatten()
            .flat_map(|s| s.names())
            .map(String::as_str)
            .collect()
    }

    #[test]
    fn conditions_choose_the_rules() {
        let profile = parse(DOCKER.as_bytes()).unwrap();
        assert_eq!(
            names(&profile.to_oci(CapSet::default(), (4, 4))),
            ["read", "write", "clone"]
        );
        let admin = CapSet::parse(&["SYS_ADMIN"]).unwrap();
        assert_eq!(
            names(&profile.to_oci(admin, (6, 1))),
            ["read", "write", "mount", "ptrace"]
        );
        if cfg!(target_arch = "x86_64") {
            let want = vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86];
            assert_eq!(profile.to_oci(admin, (6, 1)).architectures(), &Some(want));
        }
    }

    #[test]
    fn files_are_named_in_errors() {
        let path = std::env::temp_dir().join(format!("wharf-seccomp-{}.json", std::process::id()));
        let load_text = |text: &str| {
            std::fs::write(&path, text).unwrap();
            load(&path, &[]).map(|_| ()).unwrap_err().to_string()
        };
        for bad in [
            "{",
            "{\"defaultAction\": \"SCMP_ACT_MAYBE\"}",
            "{\"defaultAction\": \"SCMP_ACT_NOTIFY\"}",
        ] {
            let error = load_text(bad);
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(load(&path, &[]).unwrap_err().to_string().contains("No such file"));
        assert!(load(Path::new("relative.json"), &[]).is_err());
    }

    #[test]
    fn a_listener_must_be_allowed() {
        let told = |path: &str, call: &str| {
            let text = format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "{path}", "listenerMetadata": "m",
                    "syscalls": [{{"names": ["{call}"], "action": "SCMP_ACT_NOTIFY"}}]}}"#
            );
            parse(text.as_bytes()).unwrap()
        };
        let listeners = [PathBuf::from("/run/one.sock"), PathBuf::from("/run/agents")];
        for path in ["/run/one.sock", "/run/agents/two.sock"] {
            let profile = told(path, "mkdir");
            assert_eq!(profile.problem(&listeners), None);
            assert!(profile.problem(&[]).unwrap().contains(path));
            let oci = profile.to_oci(CapSet::default(), (6, 1));
            assert_eq!(oci.listener_path().as_deref(), Some(Path::new(path)));
            assert_eq!(oci.listener_metadata().as_deref(), Some("m"));
        }
        for path in [
            "/run/other.sock",
            "/run/one.sock.x",
            "/run/agents/../docker.sock",
            "agents/x",
        ] {
            let problem = told(path, "mkdir").problem(&listeners).unwrap();
            assert!(problem.contains("seccomp_listeners"), "{problem}");
        }
        assert!(
            told("/run/one.sock", "write")
                .problem(&listeners)
                .unwrap()
                .contains("write")
        );
        for (text, says) in [
            (
                r#"{"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/one.sock"}"#,
                "default action",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}"#,
                "needs a listenerPath",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/one.sock"}"#,
                "without any",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "m"}"#,
                "without a listenerPath",
            ),
        ] {
            let problem = parse(text.as_bytes()).unwrap().problem(&listeners).unwrap();
            assert!(problem.contains(says), "{problem}");
        }
    }
}
