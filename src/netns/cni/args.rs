//! What a plugin is told about the pod: environment arguments and the capabilities' part of its configuration.

use serde_json::{Map, Value, json};
use wharf_proto::cri;

use super::config::Plugin;
use crate::netns::{Bandwidth, PodNetwork, Result};

/// No limit of its own on bursts; the largest that plugins take.
const BURST: i32 = i32::MAX;

/// What goes into `CNI_ARGS`.
pub(super) fn environment(pod: &PodNetwork) -> Vec<[String; 2]> {
    [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &pod.pod_id),
        ("K8S_POD_UID", &pod.uid),
    ]
    .into_iter()
    .map(|(key, value)| [key.to_owned(), value.to_owned()])
    .collect()
}

/// The arguments as one text. A separator in a value would be taken for the next argument.
pub(super) fn join(arguments: &[[String; 2]]) -> String {
    let one = |[key, value]: &[String; 2]| format!("{key}={}", value.replace([';', '='], "_"));
    arguments.iter().map(one).collect::<Vec<_>>().join(";")
}

/// Everything that a plugin can ask to be told, and there is.
///
/// # Errors
/// When a bandwidth annotation is not a bandwidth.
pub(super) fn capabilities(pod: &PodNetwork) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let mut offer = |capability: &str, value: Option<Value>| {
        all.extend(value.map(|value| (capability.to_owned(), value)));
    };
    offer("portMappings", ports(&pod.port_mappings));
    offer("bandwidth", bandwidth(pod)?);
    offer(
        "dns",
        pod.dns
            .as_ref()
            .map(|dns| json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options})),
    );
    offer("ips", (!pod.ips.is_empty()).then(|| json!(pod.ips)));
    offer("mac", pod.mac.clone().map(Value::String));
    offer(
        "cgroupPath",
        (!pod.cgroup_parent.is_empty()).then(|| pod.cgroup_parent.clone().into()),
    );
    offer(
        "io.kubernetes.cri.pod-annotations",
        (!pod.annotations.is_empty()).then(|| json!(pod.annotations)),
    );
    Ok(all)
}

/// The `runtimeConfig` for `plugin`: of `capabilities` what it is configured to be told of.
pub(super) fn runtime_config(plugin: &Plugin, capabilities: &Map<String, Value>) -> Map<String, Value> {
    let wanted = capabilities.iter().filter(|(capability, _)| plugin.wants(capability));
    wanted
        .map(|(capability, value)| (capability.clone(), value.clone()))
        .collect()
}

fn ports(mappings: &[cri::PortMapping]) -> Option<Value> {
    let list: Vec<Value> = mappings
        .iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol().as_str_name().to_ascii_lowercase(),
                "hostIP": mapping.host_ip,
            })
        })
        .collect();
    (!list.is_empty()).then_some(Value::Array(list))
}

fn bandwidth(pod: &PodNetwork) -> Result<Option<Value>> {
    let asked = Bandwidth::of(&pod.annotations)?;
    let mut value = Map::new();
    for (bits, rate, burst) in [
        (asked.ingress, "ingressRate", "ingressBurst"),
        (asked.egress, "egressRate", "egressBurst"),
    ] {
        if let Some(bits) = bits {
            value.insert(rate.to_owned(), bits.into());
            value.insert(burst.to_owned(), BURST.into());
        }
    }
    Ok((!value.is_empty()).then_some(Value::Object(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::cni::config::NetworkList;

    fn plugin(capabilities: &str) -> Plugin {
        let text =
            format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"x","capabilities":{capabilities}}}]}}"#);
        NetworkList::parse("test", &text).unwrap().plugins.remove(0)
    }

    fn pod() -> PodNetwork {
        let mapping = |host_port| cri::PortMapping {
            host_port,
            container_port: 80,
            protocol: 1,
            ..Default::default()
        };
        PodNetwork {
            pod_id: "id".into(),
            name: "a;b=c".into(),
            port_mappings: vec![mapping(8080), mapping(0)],
            dns: Some(cri::DnsConfig {
                servers: vec!["1.1.1.1".into()],
                ..Default::default()
            }),
            ips: vec!["10.1.2.3".into()],
            mac: Some("02:00:00:00:00:01".into()),
            annotations: [("kubernetes.io/ingress-bandwidth".to_owned(), "10M".to_owned())].into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_plugin_is_told_what_it_is_configured_to_be_told() {
        let all = capabilities(&pod()).unwrap();
        let wanted = r#"{"portMappings":true,"bandwidth":true,"dns":true,"cgroupPath":true,"ips":true,"mac":true}"#;
        assert_eq!(
            Value::Object(runtime_config(&plugin(wanted), &all)),
            json!({
                "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "udp", "hostIP": ""}],
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": i32::MAX},
                "dns": {"servers": ["1.1.1.1"], "searches": [], "options": []},
                "ips": ["10.1.2.3"],
                "mac": "02:00:00:00:00:01",
            })
        );
        assert!(runtime_config(&plugin("{}"), &all).is_empty());
    }

    #[test]
    fn no_value_becomes_two_arguments() {
        let text = join(&environment(&pod()));
        assert!(
            text.starts_with("IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=a_b_c;"),
            "{text}"
        );
    }
}
