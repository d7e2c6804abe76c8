//! Named networks of pods that people start: what they asked for, and joining and leaving while the pod runs.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use wharf_proto::record::{self, Owner};

use super::{Error, Mechanisms, Result, Sandbox, files, start::blocking};
use crate::netns::Membership;

/// Annotation of a person's pod: the named networks that it is on, as a JSON list of [`Membership`].
pub const NETWORKS: &str = "wharf.run/networks";
/// Annotation of a person's pod: more lines of /etc/hosts, as a JSON list of [`HostEntry`].
pub const HOSTS: &str = "wharf.run/hosts";
/// Stands for this machine's address in a [`HostEntry`].
const GATEWAY: &str = "host-gateway";

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// What is called so.
    pub name: String,
    /// An address, or `host-gateway`.
    pub ip: String,
}

/// A person's annotation. Kubernetes' pods have none: whoever may make those must not join people's networks.
fn annotation<T: serde::de::DeserializeOwned>(record: &record::Pod, key: &str) -> Result<Option<T>> {
    let text = match record.owner() {
        Owner::User => record.config.as_ref().and_then(|config| config.annotations.get(key)),
        Owner::Cri => None,
    };
    let read = |text: &String| {
        serde_json::from_str(text).map_err(|error| Error::Invalid(format!("annotation {key} {text:?}: {error}")))
    };
    text.map(read).transpose()
}

/// The named networks that a pod is asked to be on; none is the configured one.
///
/// # Errors
/// When the annotation can't be read.
pub(super) fn networks(record: &record::Pod) -> Result<Option<Vec<Membership>>> {
    annotation(record, NETWORKS)
}

/// Lines for /etc/hosts, with `gateway` as this machine's address.
///
/// # Errors
/// When the annotation can't be read, or a line can't be.
pub(super) fn hosts(record: &record::Pod, gateway: Option<IpAddr>) -> Result<String> {
    let entries: Vec<HostEntry> = annotation(record, HOSTS)?.unwrap_or_default();
    let line = |entry: &HostEntry| {
        let wrong = |reason: &str| Error::Invalid(format!("host entry {}:{}: {reason}", entry.name, entry.ip));
        let ip = match entry.ip.as_str() {
            GATEWAY => gateway.ok_or_else(|| wrong("the pod's network has no address of this machine"))?,
            text => text.parse().map_err(|_| wrong("not an IP address"))?,
        };
        files::check_hostname(&entry.name).map_err(|_| wrong("not a name"))?;
        match entry.name.is_empty() {
            true => Err(wrong("not a name")),
            false => Ok(format!("{ip}\t{}\n", entry.name)),
        }
    };
    entries.iter().map(line).collect()
}

/// Puts a ready pod on one more named network. Its containers find names there from then on.
///
/// # Errors
/// When the pod is not ready or has the node's network; as the network room's.
pub async fn connect(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>, wish: &Membership) -> Result<()> {
    let _one_at_a_time = sandbox.teardown.lock().await;
    let now = attached(sandbox)?;
    let note = |network: record::Network| async move {
        let edit = |pod: &mut record::Pod| pod.network = Some(network.clone());
        sandbox.record.change_regardless(edit).await;
    };
    let pod = sandbox.pod_network(&mechanisms.config.get());
    let networks = &mechanisms.networks;
    let network = networks
        .connect(&pod, &now, wish, note)
        .await
        .map_err(sandbox.network_error())?;
    sandbox.record.change(|pod| pod.network = Some(network.clone())).await?;
    ask(mechanisms, sandbox, &network).await
}

/// Takes a ready pod off a named network.
///
/// # Errors
/// When the pod is not ready or not on it; as the network room's.
pub async fn disconnect(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>, name: &str) -> Result<()> {
    let _one_at_a_time = sandbox.teardown.lock().await;
    let now = attached(sandbox)?;
    let pod = sandbox.pod_network(&mechanisms.config.get());
    let left = mechanisms.networks.disconnect(&pod, &now, name).await;
    let network = left.map_err(sandbox.network_error())?;
    sandbox.record.change(|pod| pod.network = Some(network.clone())).await?;
    ask(mechanisms, sandbox, &network).await
}

fn attached(sandbox: &Sandbox) -> Result<record::Network> {
    let record = sandbox.record.get();
    match (&record.network, sandbox.is_ready()) {
        (Some(network), true) => Ok(network.clone()),
        (None, true) => Err(Error::Invalid(format!("pod {} has the node's network", sandbox.id))),
        (_, false) => Err(Error::Invalid(format!("pod {} is not ready", sandbox.id))),
    }
}

/// Writes whom the pod's containers ask for names. In place: containers have the file mounted.
async fn ask(mechanisms: &Mechanisms, sandbox: &Arc<Sandbox>, network: &record::Network) -> Result<()> {
    let wish = |one: &record::Attachment| Membership {
        network: one.network.clone(),
        ..Membership::default()
    };
    let mut pod = sandbox.pod_network(&mechanisms.config.get());
    pod.networks = Some(network.attachments.iter().map(wish).collect());
    let resolver = mechanisms.networks.resolver(&pod);
    let sandbox = Arc::clone(sandbox);
    blocking(&Arc::clone(&sandbox), move || {
        let record = sandbox.record.get();
        let dns = record.config.as_ref().and_then(|config| config.dns_config.clone());
        let node = super::start::node_resolv_conf(false).map_err(sandbox.io("read the node's resolv.conf"))?;
        let text = super::start::resolv_conf(resolver, dns.as_ref(), &node).map_err(sandbox.io("make resolv.conf"))?;
        std::fs::write(sandbox.paths.etc("resolv.conf"), text).map_err(sandbox.io("write resolv.conf"))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(owner: Owner, key: &str, value: &str) -> record::Pod {
        let config = wharf_proto::cri::PodSandboxConfig {
            annotations: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        record::Pod {
            owner: owner.into(),
            config: Some(config),
            ..Default::default()
        }
    }

    #[test]
    fn only_a_persons_pod_chooses_its_networks() {
        let text = r#"[{"network":"web","aliases":["db"],"ips":["10.1.0.7"]}]"#;
        let wishes = networks(&pod(Owner::User, NETWORKS, text)).unwrap().unwrap();
        assert_eq!((wishes[0].network.as_str(), wishes[0].ips.len()), ("web", 1));
        assert_eq!(networks(&pod(Owner::User, NETWORKS, "[]")).unwrap(), Some(vec![]));
        assert_eq!(networks(&pod(Owner::Cri, NETWORKS, text)).unwrap(), None);
        assert!(networks(&pod(Owner::User, NETWORKS, "web")).is_err());
    }

    #[test]
    fn host_entries_become_lines_and_add_none_of_their_own() {
        let gateway = Some("10.1.0.1".parse().unwrap());
        let lines = |text: &str| hosts(&pod(Owner::User, HOSTS, text), gateway);
        let text = r#"[{"name":"db","ip":"192.0.2.7"},{"name":"node","ip":"host-gateway"}]"#;
        assert_eq!(lines(text).unwrap(), "192.0.2.7\tdb\n10.1.0.1\tnode\n");
        for bad in [
            r#"[{"name":"a\nb","ip":"192.0.2.7"}]"#,
            r#"[{"name":"","ip":"192.0.2.7"}]"#,
            r#"[{"name":"a","ip":"x"}]"#,
        ] {
            assert!(lines(bad).is_err(), "{bad}");
        }
    }
}
