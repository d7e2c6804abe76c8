//! Runtime handlers by name, as RuntimeClass refers to them.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BUILTIN_RUNTIME as BUILTIN, Config, model::bytes};

/// Annotations of pods that ask for something of the node, and which a handler must allow: the names that CRI-O gave
/// them, and [`DISK_LIMIT`]. Some take `/NAME` of a container behind them.
pub const KNOWN_ANNOTATIONS: [&str; 16] = [
    "cpu-load-balancing.crio.io",
    "cpu-quota.crio.io",
    "irq-load-balancing.crio.io",
    "cpu-c-states.crio.io",
    "cpu-freq-governor.crio.io",
    "cpu-shared.crio.io",
    PLATFORM,
    SECCOMP_NOTIFIER[0],
    SECCOMP_NOTIFIER[1],
    SHM_SIZE[0],
    SHM_SIZE[1],
    DEVICES[0],
    DEVICES[1],
    UMASK[0],
    UMASK[1],
    DISK_LIMIT,
];

/// An OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeHandler {
    /// The runtime's command, for example `/usr/sbin/runc`. Absolute; empty only for the built-in one.
    pub path: PathBuf,
    /// The runtime's own state (its `--root`); unset is a directory of Wharf's.
    pub root: Option<PathBuf>,
    /// Privileged containers do not get the node's devices.
    pub privileged_without_host_devices: bool,
    /// They may use and make any device all the same; only with `privileged_without_host_devices`.
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// Containers that are not privileged may write to their own cgroup.
    pub cgroup_writable: bool,
    /// A spec whose environment, resource limits, hooks, annotations and further mounts all its containers get. Absolute.
    pub base_runtime_spec: Option<PathBuf>,
    /// Annotations of pods that have an effect, out of [`KNOWN_ANNOTATIONS`]; others are only kept.
    pub allowed_annotations: Vec<String>,
    /// What counts where a pod does not have the annotation.
    pub default_annotations: BTreeMap<String, String>,
    /// Where commands begin to run in containers that have CPUs of their own.
    pub exec_cpu_affinity: ExecCpuAffinity,
    /// Arguments of the command before what Wharf gives it; only with `path`.
    pub arguments: Vec<String>,
    /// It runs what the default handler runs: its `path`, `root`, `arguments` and `platform_paths`.
    pub inherit_default_runtime: bool,
    /// Other commands, by the platform that a pod's annotation [`PLATFORM`] names. Absolute.
    pub platform_paths: BTreeMap<String, PathBuf>,
    /// Annotations of pods that the spec gets, for runtimes that read them: names, or with `*` at the end their beginnings.
    pub pod_annotations: Vec<String>,
    /// The same for annotations of containers.
    pub container_annotations: Vec<String>,
    /// Least memory limit of a container in bytes. A number, or text such as `"12MiB"`.
    #[serde(deserialize_with = "bytes")]
    pub min_memory: u64,
    /// The seccomp profile that `RuntimeDefault` means, in OCI's or Docker's form; unset is Wharf's. Absolute.
    pub seccomp_profile: Option<PathBuf>,
    /// Seconds after which a container that is being made and started is given up; 0 is never.
    pub create_timeout_secs: u64,
    /// Where the CNI configurations of its pods lie; unset is `cni.conf_dir`. Absolute.
    pub cni_conf_dir: Option<PathBuf>,
    /// How many networks its pods are attached to at most; unset is `cni.max_networks`.
    pub cni_max_networks: Option<usize>,
}

/// The annotation that has blocked system calls told, and its older name.
pub const SECCOMP_NOTIFIER: [&str; 2] = [
    "seccomp-notifier-action.crio.io",
    "io.kubernetes.cri-o.seccompNotifierAction",
];

/// The annotation that says how large a pod's /dev/shm is, and its older name.
pub const SHM_SIZE: [&str; 2] = ["shm-size.crio.io", "io.kubernetes.cri-o.ShmSize"];

/// The annotation that gives all containers of a pod devices of the node, and its older name: as Docker writes them, with
/// commas between them.
pub const DEVICES: [&str; 2] = ["devices.crio.io", "io.kubernetes.cri-o.Devices"];

/// The annotation that says with which file creation mask a pod's processes begin, in octal, and its older name.
pub const UMASK: [&str; 2] = ["umask.crio.io", "io.kubernetes.cri-o.umask"];

/// The annotation that says how much a container may write.
pub const DISK_LIMIT: &str = "disk-limit.wharf.run";

/// The annotation that names the platform whose command runs the pod.
pub const PLATFORM: &str = "platform-runtime-path.crio.io";

impl Default for RuntimeHandler {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            root: None,
            privileged_without_host_devices: false,
            privileged_without_host_devices_all_devices_allowed: false,
            cgroup_writable: false,
            base_runtime_spec: None,
            allowed_annotations: Vec::new(),
            default_annotations: BTreeMap::new(),
            exec_cpu_affinity: ExecCpuAffinity::default(),
            arguments: Vec::new(),
            inherit_default_runtime: false,
            platform_paths: BTreeMap::new(),
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            min_memory: LEAST_MEMORY,
            seccomp_profile: None,
            create_timeout_secs: 240,
            cni_conf_dir: None,
            cni_max_networks: None,
        }
    }
}

/// Below this many bytes no process starts.
const LEAST_MEMORY: u64 = 512 << 10;

/// Where commands begin to run in containers that have CPUs of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecCpuAffinity {
    /// On any of the container's CPUs.
    #[default]
    Any,
    /// On its first CPU; where it has shared CPUs too, on the first of those.
    First,
}

impl RuntimeHandler {
    /// Of a pod's annotations those that have an effect with this handler: the allowed ones, and the defaults for what
    /// the pod leaves out.
    #[must_use]
    pub fn effective(&self, of_pod: &HashMap<String, String>) -> HashMap<String, String> {
        let allowed = |key: &str| {
            let below = |base: &String| {
                key.strip_prefix(base.as_str())
                    .is_some_and(|rest| rest.starts_with('/'))
            };
            self.allowed_annotations.iter().any(|base| base == key || below(base))
        };
        let defaults = self.default_annotations.iter();
        let mut out: HashMap<_, _> = defaults.map(|(key, value)| (key.clone(), value.clone())).collect();
        let of_pod = of_pod.iter().filter(|(key, _)| allowed(key));
        out.extend(of_pod.map(|(key, value)| (key.clone(), value.clone())));
        out
    }

    /// Of the annotations of a pod and of a container those that the spec gets.
    #[must_use]
    pub fn passed(
        &self,
        of_pod: &HashMap<String, String>,
        of_container: &HashMap<String, String>,
    ) -> HashMap<String, String> {
        let pick = |from: &HashMap<String, String>, patterns: &[String]| {
            let wanted = |key: &str| {
                let matches = |pattern: &String| match pattern.strip_suffix('*') {
                    Some(begin) => key.starts_with(begin),
                    None => key == pattern,
                };
                patterns.iter().any(matches)
            };
            let pairs = from.iter().filter(|(key, _)| wanted(key));
            pairs
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect::<HashMap<_, _>>()
        };
        let mut out = pick(of_pod, &self.pod_annotations);
        out.extend(pick(of_container, &self.container_annotations));
        out
    }

    /// The command that runs a pod with these annotations; empty for the built-in runtime.
    ///
    /// # Errors
    /// What is wrong, for people: the annotation names a platform without a command.
    pub fn command(&self, of_pod: &HashMap<String, String>) -> Result<&Path, String> {
        let Some(platform) = self.effective(of_pod).remove(PLATFORM) else {
            return Ok(&self.path);
        };
        let known = || {
            self.platform_paths
                .keys()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ")
        };
        self.platform_paths.get(&platform).map(PathBuf::as_path).ok_or_else(|| {
            format!(
                "annotation {PLATFORM}: the pod's handler has no command for {platform:?}, only for: {}",
                known()
            )
        })
    }
}

impl Config {
    /// Fills in what handlers take from the default one.
    pub(super) fn inherit(&mut self) {
        let default = self.handler_settings("");
        for handler in self
            .runtimes
            .values_mut()
            .filter(|handler| handler.inherit_default_runtime)
        {
            handler.path.clone_from(&default.path);
            handler.root.clone_from(&default.root);
            handler.arguments.clone_from(&default.arguments);
            handler.platform_paths.clone_from(&default.platform_paths);
        }
    }

    /// The name behind a request's handler: the empty one stands for the default.
    #[must_use]
    pub fn resolve_handler<'a>(&'a self, name: &'a str) -> &'a str {
        if name.is_empty() { &self.default_runtime } else { name }
    }

    /// Whether `name` (empty for the default) is a configured handler.
    #[must_use]
    pub fn has_handler(&self, name: &str) -> bool {
        let name = self.resolve_handler(name);
        name == BUILTIN || self.runtimes.contains_key(name)
    }

    /// The OCI runtime command of handler `name`; `None` for the built-in one.
    #[must_use]
    pub fn handler(&self, name: &str) -> Option<&RuntimeHandler> {
        let handler = self.runtimes.get(self.resolve_handler(name));
        handler.filter(|handler| !handler.path.as_os_str().is_empty())
    }

    /// Every handler's name with its OCI runtime command; `None` for the built-in one.
    pub fn programs(&self) -> impl Iterator<Item = (&str, Option<&Path>)> {
        let program = |name| self.handler(name).map(|handler| handler.path.as_path());
        self.handler_names().into_iter().map(move |name| (name, program(name)))
    }

    /// The settings of handler `name` (empty for the default), the built-in one's too.
    #[must_use]
    pub fn handler_settings(&self, name: &str) -> RuntimeHandler {
        self.runtimes
            .get(self.resolve_handler(name))
            .cloned()
            .unwrap_or_default()
    }

    /// Names of all handlers, the built-in one first.
    #[must_use]
    pub fn handler_names(&self) -> Vec<&str> {
        let commands = self.runtimes.keys().map(String::as_str).filter(|name| *name != BUILTIN);
        std::iter::once(BUILTIN).chain(commands).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_spec_gets_the_annotations_that_the_handler_passes_on() {
        let handler = RuntimeHandler {
            pod_annotations: vec!["io.katacontainers.*".into()],
            container_annotations: vec!["one".into()],
            ..Default::default()
        };
        let of_pod = map(&[("io.katacontainers.config.x", "1"), ("one", "2"), ("io.kata", "3")]);
        let of_container = map(&[("one", "4"), ("ones", "5"), ("io.katacontainers.y", "6")]);
        let expected = map(&[("io.katacontainers.config.x", "1"), ("one", "4")]);
        assert_eq!(handler.passed(&of_pod, &of_container), expected);
    }

    #[test]
    fn a_pod_chooses_a_command_by_its_platform() {
        let handler = RuntimeHandler {
            path: "/bin/runc".into(),
            allowed_annotations: vec![PLATFORM.into()],
            platform_paths: [("linux/arm64".to_owned(), PathBuf::from("/bin/runc-arm64"))].into(),
            ..Default::default()
        };
        assert_eq!(handler.command(&map(&[])).unwrap(), Path::new("/bin/runc"));
        let arm = map(&[(PLATFORM, "linux/arm64")]);
        assert_eq!(handler.command(&arm).unwrap(), Path::new("/bin/runc-arm64"));
        let error = handler.command(&map(&[(PLATFORM, "linux/s390x")])).unwrap_err();
        assert!(
            error.contains("linux/s390x") && error.contains("linux/arm64"),
            "{error}"
        );
        let deaf = RuntimeHandler {
            path: "/bin/runc".into(),
            ..Default::default()
        };
        assert_eq!(deaf.command(&arm).unwrap(), Path::new("/bin/runc"));
    }

    #[test]
    fn only_allowed_annotations_count_and_defaults_fill_in() {
        let handler = RuntimeHandler {
            allowed_annotations: vec!["cpu-quota.crio.io".into()],
            default_annotations: [("cpu-quota.crio.io", "disable"), ("cpu-c-states.crio.io", "enable")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Default::default()
        };
        let of_pod = [
            ("cpu-quota.crio.io", "enable"),
            ("cpu-quota.crio.io/main", "disable"),
            ("cpu-quota.crio.iox", "x"),
            ("cpu-c-states.crio.io", "disable"),
            ("other", "y"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        let expected = [
            ("cpu-quota.crio.io", "enable"),
            ("cpu-quota.crio.io/main", "disable"),
            ("cpu-c-states.crio.io", "enable"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(handler.effective(&of_pod.into()), HashMap::from(expected));
        assert!(
            RuntimeHandler::default()
                .effective(&HashMap::from([("cpu-quota.crio.io".into(), "disable".into())]))
                .is_empty()
        );
    }
}
