//! What becomes of each field that a request of CRI can have. A field that is neither honoured nor refused nor known to say
//! nothing here is a silent fault; one that a newer protocol brings is in no list, and the test fails until somebody decides.

use std::collections::BTreeSet;

use wharf_proto::json;

/// Read, and what they ask for is done or refused: the message, and its fields.
const HONOURED: &str = "
AttachRequest container_id stdin tty stdout stderr
AuthConfig username password auth server_address identity_token registry_token
CDIDevice name
Capability add_capabilities drop_capabilities add_ambient_capabilities
CheckpointContainerRequest container_id location timeout
CheckpointPodRequest pod_sandbox_id output_path container_ids
ContainerConfig metadata image command args working_dir envs mounts devices labels annotations log_path stdin stdin_once tty
ContainerConfig linux CDI_devices stop_signal
ContainerFilter id state pod_sandbox_id label_selector
ContainerMetadata name attempt
ContainerStateValue state
ContainerStatsFilter id pod_sandbox_id label_selector
ContainerStatsRequest container_id
ContainerStatusRequest container_id verbose
CreateContainerRequest pod_sandbox_id config sandbox_config
DNSConfig servers searches options
Device container_path host_path permissions
ExecRequest container_id cmd tty stdin stdout stderr
ExecSyncRequest container_id cmd timeout
HugepageLimit page_size limit
IDMapping host_id container_id length
ImageFilter image
ImageSpec image user_specified_image runtime_handler
ImageStatusRequest image verbose
Int64Value value
KeyValue key value
LinuxContainerConfig resources security_context
LinuxContainerResources cpu_period cpu_quota cpu_shares memory_limit_in_bytes oom_score_adj cpuset_cpus cpuset_mems
LinuxContainerResources hugepage_limits unified memory_swap_limit_in_bytes
LinuxContainerSecurityContext capabilities privileged namespace_options selinux_options run_as_user run_as_group
LinuxContainerSecurityContext run_as_username readonly_rootfs supplemental_groups supplemental_groups_policy no_new_privs
LinuxContainerSecurityContext masked_paths readonly_paths seccomp apparmor apparmor_profile seccomp_profile_path
LinuxPodSandboxConfig cgroup_parent security_context sysctls overhead resources
LinuxSandboxSecurityContext namespace_options selinux_options run_as_user run_as_group supplemental_groups_policy privileged
ListContainerStatsRequest filter
ListContainersRequest filter
ListImagesRequest filter
ListPodSandboxRequest filter
ListPodSandboxStatsRequest filter
Mount container_path host_path readonly selinux_relabel propagation uidMappings gidMappings recursive_read_only image
Mount image_sub_path mount_options
NamespaceOption network pid ipc target_id userns_options
NetworkConfig pod_cidr
PodSandboxConfig metadata hostname log_directory dns_config port_mappings labels annotations linux
PodSandboxFilter id state label_selector
PodSandboxMetadata name uid namespace attempt
PodSandboxStateValue state
PodSandboxStatsFilter id label_selector
PodSandboxStatsRequest pod_sandbox_id
PodSandboxStatusRequest pod_sandbox_id verbose
PortForwardRequest pod_sandbox_id port
PortMapping protocol container_port host_port host_ip
PullImageRequest image auth
RemoveContainerRequest container_id
RemoveImageRequest image
RemovePodSandboxRequest pod_sandbox_id
ReopenContainerLogRequest container_id
RestorePodRequest checkpoint_path config runtime_handler container_configs
RunPodSandboxRequest config runtime_handler
RuntimeConfig network_config
SELinuxOption user role type level
SecurityProfile profile_type localhost_ref
StartContainerRequest container_id
StatusRequest verbose
StopContainerRequest container_id timeout
StopPodSandboxRequest pod_sandbox_id
StreamContainerStatsRequest filter
StreamContainersRequest filter
StreamImagesRequest filter
StreamPodSandboxStatsRequest filter
StreamPodSandboxesRequest filter
UpdateContainerResourcesRequest container_id linux annotations
UpdatePodSandboxResourcesRequest pod_sandbox_id overhead resources
UpdateRuntimeConfigRequest runtime_config
UserNamespace mode uids gids
";

/// Whoever sets them gets an error.
const REFUSED: &[(&str, &str)] = &[
    ("CheckpointPodRequest options", "no handler has any"),
    ("RestorePodRequest options", "no handler has any"),
    ("ContainerConfig windows", "a Linux node"),
    ("PodSandboxConfig windows", "a Linux node"),
    ("UpdateContainerResourcesRequest windows", "a Linux node"),
];

/// Neither can they be obeyed nor is anything wrong with them.
const MEANINGLESS: &[(&str, &str)] = &[
    ("ImageSpec annotations", "no key is defined; told as they came"),
    (
        "ImageSpec image_ref",
        "what kubelet knows already of a volume's image, which `image` names; told anew in the status",
    ),
    (
        "LinuxSandboxSecurityContext readonly_rootfs supplemental_groups seccomp apparmor seccomp_profile_path",
        "of the pod's own process, and there is none",
    ),
    (
        "PullImageRequest sandbox_config",
        "a pull is the daemon's work and on nobody's account; credentials come with the request",
    ),
    ("VersionRequest version", "no version is told another answer"),
    // Only in what is refused above.
    (
        "WindowsContainerConfig resources security_context",
        "refused as a whole",
    ),
    (
        "WindowsContainerResources cpu_shares cpu_count cpu_maximum memory_limit_in_bytes rootfs_size_in_bytes affinity_cpus",
        "refused as a whole",
    ),
    (
        "WindowsContainerSecurityContext run_as_username credential_spec host_process",
        "refused as a whole",
    ),
    ("WindowsCpuGroupAffinity cpu_mask cpu_group", "refused as a whole"),
    ("WindowsNamespaceOption network", "refused as a whole"),
    ("WindowsPodSandboxConfig security_context", "refused as a whole"),
    (
        "WindowsSandboxSecurityContext run_as_username credential_spec host_process namespace_options",
        "refused as a whole",
    ),
];

/// `Message.field` of each field in a line.
fn fields(line: &str) -> impl Iterator<Item = String> {
    let mut words = line.split_whitespace();
    let message = words.next().unwrap_or_default();
    words.map(move |field| format!("{message}.{field}"))
}

#[test]
fn every_field_of_a_request_is_honoured_refused_or_known_to_mean_nothing() {
    let told = REFUSED.iter().chain(MEANINGLESS).map(|(line, why)| {
        assert!(!why.is_empty(), "{line}");
        *line
    });
    let mut decided = BTreeSet::new();
    for field in HONOURED.lines().chain(told).flat_map(fields) {
        assert!(decided.insert(field.clone()), "{field} is decided twice");
    }
    let mut known = json::fields_of_requests("runtime.v1.RuntimeService");
    known.extend(json::fields_of_requests("runtime.v1.ImageService"));
    assert!(known.len() > 200, "{known:?}");
    let new: Vec<_> = known.difference(&decided).collect();
    assert!(new.is_empty(), "what becomes of them is not decided: {new:?}");
    let gone: Vec<_> = decided.difference(&known).collect();
    assert!(gone.is_empty(), "no request has them any more: {gone:?}");
}
