//! A pod's network in the words of containerd's verbose status, which its users' scripts read: `.info.cniResult.Interfaces.eth0`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use wharf_proto::record;

/// The parts of a CNI result (specification 1.1.0, "Success") that are told.
#[derive(Default, Deserialize)]
#[serde(default)]
struct CniResult {
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    routes: Vec<Value>,
    dns: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
    mac: String,
    sandbox: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Ip {
    address: String,
    gateway: Option<String>,
    interface: Option<usize>,
}

/// Interfaces by name, each with its addresses.
pub(super) fn told(network: &record::Network) -> Value {
    let result: CniResult = serde_json::from_slice(&network.cni_result).unwrap_or_default();
    let mut interfaces: BTreeMap<String, Value> = BTreeMap::new();
    for (at, interface) in result.interfaces.iter().enumerate() {
        let own = result.ips.iter().filter(|ip| ip.interface == Some(at));
        let told = own.map(|ip| address(ip.address.split('/').next().unwrap_or_default(), ip.gateway.as_deref()));
        let told: Vec<Value> = told.collect();
        let told = json!({ "IPConfigs": told, "Mac": interface.mac, "Sandbox": interface.sandbox });
        interfaces.insert(interface.name.clone(), told);
    }
    // The built-in network has no plugin that says more.
    if interfaces.is_empty() && !network.ips.is_empty() {
        let told: Vec<Value> = network.ips.iter().map(|ip| address(ip, None)).collect();
        let told = json!({ "IPConfigs": told, "Mac": "", "Sandbox": network.netns });
        interfaces.insert("eth0".to_owned(), told);
    }
    for one in &network.attachments {
        let told: Vec<Value> = one.ips.iter().map(|ip| address(ip, None)).collect();
        let told = json!({ "IPConfigs": told, "Mac": "", "Sandbox": network.netns });
        interfaces.insert(one.device.clone(), told);
    }
    json!({ "Interfaces": interfaces, "DNS": [result.dns], "Routes": result.routes })
}

fn address(ip: &str, gateway: Option<&str>) -> Value {
    json!({ "IP": ip, "Gateway": gateway.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stand_at_their_interface() {
        let network = record::Network {
            cni_result: br#"{"cniVersion":"1.0.0","interfaces":[{"name":"cni0","mac":"aa"},{"name":"eth0","mac":"bb","sandbox":"/n"}],
                "ips":[{"address":"10.1.0.2/16","gateway":"10.1.0.1","interface":1},{"address":"fd00::2/64","interface":1}],
                "routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#
                .to_vec(),
            ..Default::default()
        };
        let told = told(&network);
        assert_eq!(
            told["Interfaces"]["eth0"]["IPConfigs"],
            json!([{ "IP": "10.1.0.2", "Gateway": "10.1.0.1" }, { "IP": "fd00::2", "Gateway": "" }])
        );
        assert_eq!(told["Interfaces"]["cni0"]["IPConfigs"], json!([]));
        assert_eq!(told["Routes"][0]["dst"], "0.0.0.0/0");
    }

    #[test]
    fn the_built_in_network_is_told_in_the_same_words() {
        let network = record::Network {
            ips: vec!["10.2.0.2".into()],
            netns: "/run/ns".into(),
            ..Default::default()
        };
        let told = told(&network);
        assert_eq!(told["Interfaces"]["eth0"]["IPConfigs"][0]["IP"], "10.2.0.2");
        assert_eq!(told["Interfaces"]["eth0"]["Sandbox"], "/run/ns");
        let more = record::Attachment {
            device: "eth1".into(),
            ips: vec!["10.3.0.2".into()],
            ..Default::default()
        };
        let network = record::Network {
            attachments: vec![more],
            ..network
        };
        let told = super::told(&network);
        assert_eq!(told["Interfaces"]["eth1"]["IPConfigs"][0]["IP"], "10.3.0.2");
    }
}
