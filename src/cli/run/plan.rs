//! From flags to the two CRI messages that describe the pod and the container.

use std::collections::HashMap;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use wharf_proto::cri::{self, NamespaceMode, security_profile::ProfileType};

use super::flags::{self, Arguments};
use super::network::{self, Network};
use crate::cli::error::{Error, Result};
use crate::cli::resolve::RUN_LABEL;
use crate::config::DISK_LIMIT;
use crate::node::{KEEP_LOG, REMOVE};

/// Where logs go unless `--log-dir` says otherwise.
const LOGS: &str = "/var/log/wharf";

/// What is to be made.
pub struct Plan {
    /// Name of the pod and of its container.
    pub name: String,
    /// The pod.
    pub pod: cri::PodSandboxConfig,
    /// The container.
    pub container: cri::ContainerConfig,
    /// Runtime handler; empty for the daemon's default.
    pub runtime_handler: String,
    /// Directory for the log, when it is not a person's own choice.
    pub make_log_dir: Option<PathBuf>,
}

impl Plan {
    /// The plan for these flags; `image_id` is on the node.
    pub fn new(arguments: &Arguments, image_id: &str) -> Result<Self> {
        let uid = unique()?;
        let name = arguments
            .name
            .clone()
            .unwrap_or_else(|| made_up_name(&arguments.image, &uid));
        let (log_dir, make_log_dir) = match &arguments.log_dir {
            Some(dir) => (absolute(dir)?, None),
            None => {
                let dir = Path::new(LOGS).join(format!("{name}_{}", &uid[..8.min(uid.len())]));
                (dir.clone(), Some(dir))
            }
        };
        let mut labels: HashMap<String, String> = arguments.label.iter().cloned().collect();
        labels.insert(RUN_LABEL.to_owned(), "true".to_owned());
        let network = Network::of(arguments)?;
        let pod = pod(arguments, &network, &name, &uid, &log_dir, &labels);
        let container = container(arguments, &network, &name, image_id, &labels)?;
        let runtime_handler = arguments.runtime.clone().unwrap_or_default();
        Ok(Self {
            name,
            pod,
            container,
            runtime_handler,
            make_log_dir,
        })
    }
}

fn pod(
    arguments: &Arguments,
    network: &Network,
    name: &str,
    uid: &str,
    log_dir: &Path,
    labels: &HashMap<String, String>,
) -> cri::PodSandboxConfig {
    let host_network = *network == Network::Host;
    // With the host's network a pod shares the host's name, too, unless one is asked for.
    let hostname = match (&arguments.hostname, host_network) {
        (Some(hostname), _) => hostname.clone(),
        (None, true) => String::new(),
        (None, false) => name.replace('_', "-"),
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: uid.to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname,
        log_directory: log_dir.to_string_lossy().into_owned(),
        port_mappings: arguments.publish.clone(),
        labels: labels.clone(),
        // In the foreground this command removes it itself, once it has read how it ended.
        annotations: (arguments.detach && arguments.rm)
            .then(|| (REMOVE.to_owned(), "true".to_owned()))
            .into_iter()
            .chain(network.annotations(arguments))
            .collect(),
        dns_config: network::dns(arguments),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(network)),
                privileged: arguments.privileged,
                seccomp: Some(seccomp(arguments)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(
    arguments: &Arguments,
    network: &Network,
    name: &str,
    image_id: &str,
    labels: &HashMap<String, String>,
) -> Result<cri::ContainerConfig> {
    let mut annotations = HashMap::new();
    if arguments.log_dir.is_some() {
        annotations.insert(KEEP_LOG.to_owned(), "true".to_owned());
    }
    if let Some(bytes) = arguments.storage_opt {
        annotations.insert(DISK_LIMIT.to_owned(), bytes.to_string());
    }
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        }),
        image: Some(cri::ImageSpec {
            image: image_id.to_owned(),
            user_specified_image: arguments.image.clone(),
            ..Default::default()
        }),
        // CRI: `command` replaces the entrypoint and with it the image's arguments, as --entrypoint does.
        command: arguments.entrypoint.iter().cloned().collect(),
        args: arguments.command.clone(),
        working_dir: arguments.workdir.clone().unwrap_or_default(),
        envs: environment(arguments)?,
        mounts: arguments.volume.clone(),
        labels: labels.clone(),
        annotations,
        log_path: format!("{name}.log"),
        stdin: arguments.interactive,
        // What stays in the background can be attached to again and again.
        stdin_once: arguments.interactive && !arguments.detach,
        tty: arguments.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources {
                memory_limit_in_bytes: arguments.memory.unwrap_or_default(),
                cpu_quota: arguments.cpus.unwrap_or_default(),
                cpu_period: if arguments.cpus.is_some() { 100_000 } else { 0 },
                ..Default::default()
            }),
            security_context: Some(security(arguments, network)),
        }),
        ..Default::default()
    })
}

fn namespaces(network: &Network) -> cri::NamespaceOption {
    let network = match network {
        Network::Host => NamespaceMode::Node,
        _ => NamespaceMode::Pod,
    };
    cri::NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn seccomp(arguments: &Arguments) -> cri::SecurityProfile {
    let kind = if arguments.privileged {
        ProfileType::Unconfined
    } else {
        ProfileType::RuntimeDefault
    };
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    }
}

fn security(arguments: &Arguments, network: &Network) -> cri::LinuxContainerSecurityContext {
    let bare = |name: &String| {
        let name = name.to_ascii_uppercase();
        name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
    };
    let paths = |list: &[&str]| match arguments.privileged {
        true => Vec::new(),
        false => list.iter().map(|path| (*path).to_owned()).collect(),
    };
    let user = arguments.user.clone();
    let value = |value: i64| cri::Int64Value { value };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: arguments.cap_add.iter().map(bare).collect(),
            drop_capabilities: arguments.cap_drop.iter().map(bare).collect(),
            ..Default::default()
        }),
        privileged: arguments.privileged,
        namespace_options: Some(namespaces(network)),
        run_as_user: user.as_ref().and_then(|user| user.uid).map(value),
        run_as_group: user.as_ref().and_then(|user| user.gid).map(value),
        run_as_username: user.map(|user| user.name).unwrap_or_default(),
        readonly_rootfs: arguments.read_only,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READ_ONLY),
        seccomp: Some(seccomp(arguments)),
        ..Default::default()
    }
}

/// Files first, then flags; the last one to set a variable wins, as in Docker.
fn environment(arguments: &Arguments) -> Result<Vec<cri::KeyValue>> {
    let lookup = |key: &str| std::env::var_os(key).map(OsStringExt::into_vec);
    let mut list: Vec<cri::KeyValue> = Vec::new();
    let mut set = |variable: Option<cri::KeyValue>| {
        if let Some(variable) = variable {
            list.retain(|other| other.key != variable.key);
            list.push(variable);
        }
    };
    for file in &arguments.env_file {
        let text = std::fs::read_to_string(file)
            .map_err(|source| Error::new(format!("read environment file {}: {source}", file.display())))?;
        for (number, line) in flags::env_lines(&text) {
            set(flags::env(line, lookup)
                .map_err(|problem| Error::new(format!("{}:{number}: {problem}", file.display())))?);
        }
    }
    for text in &arguments.env {
        set(flags::env(text, lookup).map_err(Error::new)?);
    }
    Ok(list)
}

fn absolute(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).map_err(|source| Error::new(format!("--log-dir {}: {source}", dir.display())))
}

/// A random id, from the kernel.
fn unique() -> Result<String> {
    const SOURCE: &str = "/proc/sys/kernel/random/uuid";
    let uuid = std::fs::read_to_string(SOURCE).map_err(|source| Error::new(format!("read {SOURCE}: {source}")))?;
    Ok(uuid.trim().to_owned())
}

/// The image's last part and four random digits, for example "busybox-3f2a".
fn made_up_name(image: &str, uid: &str) -> String {
    let last = image
        .split('@')
        .next()
        .unwrap_or_default()
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let digest = image.starts_with("sha256:") || (last.len() > 12 && last.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let fits = !last.is_empty() && last.len() <= 50 && !digest;
    format!(
        "{}-{}",
        if fits { last } else { "container" },
        uid.get(..4).unwrap_or(uid)
    )
}

/// What Docker hides from containers; CRI leaves the choice to the client.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What Docker makes read-only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn plan(line: &str) -> Plan {
        let words = std::iter::once("run").chain(line.split(' '));
        Plan::new(&Line::try_parse_from(words).unwrap().arguments, "sha256:1d").unwrap()
    }

    #[test]
    fn flags_after_the_image_belong_to_the_command() {
        let plan = plan("--rm busybox ls -l --all");
        assert_eq!(plan.container.args, ["ls", "-l", "--all"]);
        assert!(plan.container.command.is_empty());
        let image = plan.container.image.unwrap();
        assert_eq!(
            (image.image.as_str(), image.user_specified_image.as_str()),
            ("sha256:1d", "busybox")
        );
    }

    #[test]
    fn a_pod_is_named_after_its_image() {
        let plan = plan("localhost:5000/team/app:1.2");
        assert!(plan.name.starts_with("app-") && plan.name.len() == 8, "{}", plan.name);
        assert_eq!(plan.pod.hostname, plan.name);
        let dir = format!("{LOGS}/{}_", plan.name);
        assert!(plan.pod.log_directory.starts_with(&dir), "{}", plan.pod.log_directory);
        assert_eq!(plan.pod.labels[RUN_LABEL], "true");
        assert!(made_up_name("0123456789abcdef", "3f2a-").starts_with("container-"));
        assert_eq!(made_up_name("a/busybox@sha256:00", "3f2a-"), "busybox-3f2a");
    }

    #[test]
    fn the_default_is_confined_and_privileged_is_not() {
        let security = |plan: &Plan| plan.container.linux.clone().unwrap().security_context.unwrap();
        let confined = security(&plan("--cap-add cap_net_admin --cap-drop ALL a"));
        assert_eq!(confined.capabilities.unwrap().add_capabilities, ["NET_ADMIN"]);
        assert_eq!(confined.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
        assert!(confined.masked_paths.contains(&"/proc/kcore".to_owned()));
        let plan = plan("--privileged --network host a");
        let privileged = security(&plan);
        assert!(privileged.privileged && privileged.masked_paths.is_empty());
        assert_eq!(privileged.seccomp.unwrap().profile_type(), ProfileType::Unconfined);
        assert_eq!(privileged.namespace_options.unwrap().network(), NamespaceMode::Node);
        assert_eq!(plan.pod.hostname, "");
    }

    #[test]
    fn limits_and_environment_reach_the_container() {
        let plan = plan("-m 64m --cpus 0.5 -e A=1 -e B=2 -e A=3 --log-dir /tmp/l a");
        let resources = plan.container.linux.unwrap().resources.unwrap();
        assert_eq!(
            (
                resources.memory_limit_in_bytes,
                resources.cpu_quota,
                resources.cpu_period
            ),
            (64 << 20, 50_000, 100_000)
        );
        let pairs: Vec<_> = plan
            .container
            .envs
            .iter()
            .map(|kv| (kv.key.as_str(), kv.value.as_slice()))
            .collect();
        assert_eq!(pairs, [("B", b"2".as_slice()), ("A", b"3".as_slice())]);
        assert_eq!(plan.pod.log_directory, "/tmp/l");
        assert!(plan.make_log_dir.is_none() && plan.container.annotations.contains_key(KEEP_LOG));
    }

    #[test]
    fn networks_names_and_hosts_reach_the_daemon() {
        let pod =
            plan("--network web --network back --network-alias db --ip 10.1.0.7 --add-host a:1.2.3.4 --dns 9.9.9.9 x")
                .pod;
        let networks: serde_json::Value = serde_json::from_str(&pod.annotations[crate::node::NETWORKS]).unwrap();
        assert_eq!(
            networks[0],
            serde_json::json!({"network": "web", "aliases": ["db"], "ips": ["10.1.0.7"]})
        );
        assert_eq!(networks[1]["ips"], serde_json::json!([]));
        assert_eq!(pod.annotations[crate::node::HOSTS], r#"[{"ip":"1.2.3.4","name":"a"}]"#);
        assert_eq!(pod.dns_config.unwrap().servers, ["9.9.9.9"]);
        assert_eq!(plan("--network none x").pod.annotations[crate::node::NETWORKS], "[]");
        assert!(plan("--network default x").pod.annotations.is_empty());
        for wrong in [
            "--network host --network web x",
            "--ip 10.1.0.7 x",
            "--network none -p 80:80 x",
            "--network-alias a x",
        ] {
            let words = std::iter::once("run").chain(wrong.split(' '));
            assert!(
                Plan::new(&Line::try_parse_from(words).unwrap().arguments, "sha256:1d").is_err(),
                "{wrong}"
            );
        }
    }
}
