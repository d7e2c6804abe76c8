//! The manifests of `deploy/kubernetes` hold together: fields that Kubernetes has (the few that are used here, as its API of
//! 1.34 names and types them), selectors that match, volumes that are there, and actions that `node.sh` knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

type Map = BTreeMap<String, String>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Object {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Option<Spec>,
    /// Of a RuntimeClass.
    handler: Option<String>,
    scheduling: Option<Scheduling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    labels: Map,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Scheduling {
    #[expect(dead_code, reason = "read for its type")]
    node_selector: Map,
}

/// Of a DaemonSet or of a pod, which have no field in common.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    selector: Option<Selector>,
    update_strategy: Option<Strategy>,
    template: Option<Template>,
    affinity: Option<serde_json::Value>,
    #[serde(default)]
    node_selector: Map,
    #[serde(default)]
    tolerations: Vec<Toleration>,
    priority_class_name: Option<String>,
    automount_service_account_token: Option<bool>,
    termination_grace_period_seconds: Option<u64>,
    #[serde(rename = "hostPID")]
    host_pid: Option<bool>,
    host_network: Option<bool>,
    runtime_class_name: Option<String>,
    #[serde(default)]
    init_containers: Vec<Container>,
    #[serde(default)]
    containers: Vec<Container>,
    #[serde(default)]
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selector {
    match_labels: Map,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read for its types")]
struct Strategy {
    r#type: String,
    rolling_update: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Template {
    metadata: Metadata,
    spec: Box<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Toleration {
    operator: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Container {
    name: String,
    image: String,
    #[serde(default)]
    command: Vec<String>,
    #[serde(default)]
    args: Vec<String>,
    security_context: Option<serde_json::Value>,
    #[serde(default)]
    volume_mounts: Vec<VolumeMount>,
    resources: Option<BTreeMap<String, Map>>,
    ports: Option<serde_json::Value>,
    readiness_probe: Option<serde_json::Value>,
    liveness_probe: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeMount {
    name: String,
    mount_path: String,
    mount_propagation: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Volume {
    name: String,
    host_path: BTreeMap<String, String>,
}

fn deploy(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/kubernetes")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

fn read(name: &str) -> Vec<Object> {
    serde_saphyr::from_multiple(&deploy(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn check_pod(what: &str, spec: &Spec) {
    assert!(!spec.containers.is_empty(), "{what}: a pod has containers");
    assert!(
        spec.selector.is_none() && spec.template.is_none() && spec.update_strategy.is_none(),
        "{what}: fields of a DaemonSet in a pod"
    );
    let volumes: BTreeSet<_> = spec.volumes.iter().map(|volume| volume.name.as_str()).collect();
    let mut names = BTreeSet::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        assert!(
            names.insert(&container.name),
            "{what}: two containers called {}",
            container.name
        );
        assert!(!container.image.is_empty(), "{what}");
        for mount in &container.volume_mounts {
            assert!(
                volumes.contains(mount.name.as_str()),
                "{what}: no volume {}",
                mount.name
            );
            assert!(mount.mount_path.starts_with('/'), "{what}: {}", mount.mount_path);
            let propagation = mount.mount_propagation.as_deref().unwrap_or("None");
            assert!(
                ["None", "HostToContainer", "Bidirectional"].contains(&propagation),
                "{what}"
            );
        }
        for field in container.resources.iter().flat_map(BTreeMap::keys) {
            assert!(field == "requests" || field == "limits", "{what}: resources.{field}");
        }
        for (field, keys) in [
            (
                &container.security_context,
                &[
                    "privileged",
                    "allowPrivilegeEscalation",
                    "readOnlyRootFilesystem",
                    "runAsNonRoot",
                    "runAsUser",
                    "capabilities",
                    "seccompProfile",
                ][..],
            ),
            (&container.readiness_probe, &["httpGet", "exec", "periodSeconds"]),
            (&container.liveness_probe, &["httpGet", "exec", "periodSeconds"]),
        ] {
            for key in field.iter().flat_map(|value| value.as_object().unwrap().keys()) {
                assert!(keys.contains(&key.as_str()), "{what}: {key}");
            }
        }
        assert!(
            container.ports.as_ref().is_none_or(serde_json::Value::is_array),
            "{what}: ports"
        );
    }
    for volume in &spec.volumes {
        assert!(volume.host_path["path"].starts_with('/'), "{what}: {}", volume.name);
    }
    for toleration in &spec.tolerations {
        assert_eq!(toleration.operator, "Exists", "{what}");
    }
}

#[test]
fn the_installer_is_whole_and_calls_what_node_sh_has() {
    let script = deploy("node.sh");
    let objects = read("install.yaml");
    assert_eq!(
        (objects[0].kind.as_str(), objects[0].api_version.as_str()),
        ("Namespace", "v1")
    );
    let namespace = objects[0].metadata.name.as_deref();
    let (mut images, mut actions) = (BTreeSet::new(), BTreeSet::new());
    for object in &objects[1..] {
        let what = object.metadata.name.as_deref().unwrap();
        assert_eq!(
            (object.kind.as_str(), object.api_version.as_str()),
            ("DaemonSet", "apps/v1"),
            "{what}"
        );
        assert_eq!(object.metadata.namespace.as_deref(), namespace, "{what}");
        let spec = object.spec.as_ref().unwrap();
        let template = spec.template.as_ref().unwrap();
        let wanted = &spec.selector.as_ref().unwrap().match_labels;
        assert!(!wanted.is_empty(), "{what}");
        for (key, value) in wanted {
            assert_eq!(
                template.metadata.labels.get(key),
                Some(value),
                "{what}: the selector finds its pods"
            );
            assert_eq!(object.metadata.labels.get(key), Some(value), "{what}");
        }
        let pod = &*template.spec;
        check_pod(what, pod);
        assert_eq!(
            pod.priority_class_name.as_deref(),
            Some("system-node-critical"),
            "{what}"
        );
        assert_eq!(
            pod.automount_service_account_token,
            Some(false),
            "{what}: it needs no cluster"
        );
        assert!(pod.host_pid == Some(true) && pod.host_network == Some(true), "{what}");
        assert!(
            pod.termination_grace_period_seconds.is_some() && pod.runtime_class_name.is_none(),
            "{what}"
        );
        // By a label of its own, or by a list of them.
        assert!(
            pod.node_selector.contains_key("wharf/node") != pod.affinity.is_some(),
            "{what}"
        );
        for container in pod.init_containers.iter().chain(&pod.containers) {
            images.insert(container.image.clone());
            for line in container.args.iter().flat_map(|arg| arg.lines()) {
                if let Some((_, action)) = line.split_once("node.sh ") {
                    assert!(
                        script.contains(&format!("\n  {action}) ")),
                        "{what}: node.sh has no {action:?}"
                    );
                    actions.insert(action.to_owned());
                }
            }
            assert!(!container.command.is_empty(), "{what}");
        }
    }
    assert_eq!(images.len(), 1, "one image is to be set: {images:?}");
    assert_eq!(actions.len(), 4, "{actions:?}");
}

#[test]
fn the_examples_are_whole() {
    let objects = read("runtimeclasses.yaml");
    let classes: Vec<_> = objects.iter().filter(|object| object.kind == "RuntimeClass").collect();
    assert!(
        classes
            .iter()
            .all(|class| class.api_version == "node.k8s.io/v1" && class.spec.is_none())
    );
    let handlers: Vec<_> = classes.iter().filter_map(|class| class.handler.as_deref()).collect();
    assert_eq!(handlers, ["builtin", "runc", "crun"]);
    assert!(classes.iter().any(|class| class.scheduling.is_some()));
    let names: Vec<_> = classes
        .iter()
        .filter_map(|class| class.metadata.name.as_deref())
        .collect();
    let alone = read("static-pod.yaml");
    let pods = objects.iter().chain(&alone).filter(|object| object.kind == "Pod");
    let mut seen = 0;
    for pod in pods {
        let what = pod.metadata.name.as_deref().unwrap();
        let spec = pod.spec.as_ref().unwrap();
        check_pod(what, spec);
        if let Some(class) = &spec.runtime_class_name {
            assert!(names.contains(&class.as_str()), "{what}: {class}");
        }
        assert!(pod.handler.is_none() && pod.scheduling.is_none(), "{what}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}
