//! Networks that people make, and the pods on them.

use std::sync::Arc;

use wharf_proto::record::{Attachment, NamedNetwork, Network};

use super::{Error, Node, Result};
use crate::{
    netns::{self, DEFAULT_NETWORK, Membership},
    sandbox::{self, Sandbox},
    store,
};

/// A network and who is on it.
#[derive(Debug)]
pub struct NetworkView {
    /// What it is.
    pub definition: NamedNetwork,
    /// Its pods, with what they have there.
    pub members: Vec<(Arc<Sandbox>, Attachment)>,
}

impl Node {
    /// Every network of Wharf's own, the default one first.
    #[must_use]
    pub fn networks(&self) -> Vec<NetworkView> {
        let pods: Vec<_> = {
            let pods = self
                .inner
                .pods
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            pods.values().cloned().collect()
        };
        let view = |definition: NamedNetwork| NetworkView {
            members: pods
                .iter()
                .filter_map(|pod| Some((pod, pod.record.get().network.clone()?)))
                .filter(|(pod, _)| pod.is_ready())
                .filter_map(|(pod, network)| Some((Arc::clone(pod), attachment(&network, &definition.name)?)))
                .collect(),
            definition,
        };
        self.mechanisms().networks.definitions().into_iter().map(view).collect()
    }

    /// Makes a network.
    ///
    /// # Errors
    /// When the name is taken, or what is asked for can't be.
    pub async fn create_network(&self, mut wanted: NamedNetwork) -> Result<NamedNetwork> {
        wanted.schema = store::SCHEMA;
        wanted.created_at = store::now();
        let node = self.clone();
        self.own(async move { Ok(node.mechanisms().networks.create_network(wanted).await?) })
            .await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// When there is none of that name, or pods are on it.
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        if name == DEFAULT_NETWORK {
            return Err(Error::Invalid(
                "the default network is the configuration's and can't be removed".into(),
            ));
        }
        let (node, name) = (self.clone(), name.to_owned());
        self.own(async move { Ok(node.mechanisms().networks.remove_network(&name).await?) })
            .await
    }

    /// Removes every network that no pod is on. Gives their names.
    ///
    /// # Errors
    /// When one can't be removed; the others are tried as well.
    pub async fn prune_networks(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let mut outcome = Ok(());
        for network in self
            .networks()
            .into_iter()
            .filter(|network| network.definition.name != DEFAULT_NETWORK)
        {
            let name = network.definition.name;
            match self.remove_network(&name).await {
                Ok(()) => removed.push(name),
                // The network room knows of pods that are not in lists: those that are being made, or not taken down yet.
                Err(Error::Network(error)) if matches!(*error, netns::Error::NetworkInUse { .. }) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| removed)
    }

    /// Puts a pod on a network.
    ///
    /// # Errors
    /// When there is no such pod or network, or it is on it already.
    pub async fn connect_network(&self, pod: &str, wish: Membership) -> Result<()> {
        not_default(&wish.network)?;
        let (node, pod) = (self.clone(), self.pod(pod)?);
        self.own(async move { Ok(sandbox::connect(node.mechanisms(), &pod, &wish).await?) })
            .await
    }

    /// Takes a pod off a network.
    ///
    /// # Errors
    /// When there is no such pod, or it is not on it.
    pub async fn disconnect_network(&self, pod: &str, network: &str) -> Result<()> {
        not_default(network)?;
        let (node, pod, network) = (self.clone(), self.pod(pod)?, network.to_owned());
        self.own(async move { Ok(sandbox::disconnect(node.mechanisms(), &pod, &network).await?) })
            .await
    }
}

fn not_default(network: &str) -> Result<()> {
    match network == DEFAULT_NETWORK {
        true => Err(Error::Invalid(
            "a pod is on the default network from its beginning to its end, or never".into(),
        )),
        false => Ok(()),
    }
}

/// What a pod has on a network, if it is on it.
fn attachment(network: &Network, name: &str) -> Option<Attachment> {
    if name == DEFAULT_NETWORK {
        return (network.kind == "builtin").then(|| Attachment {
            network: name.to_owned(),
            device: "eth0".to_owned(),
            host_device: network.host_device.clone(),
            ips: network.ips.clone(),
            ..Attachment::default()
        });
    }
    network.attachments.iter().find(|one| one.network == name).cloned()
}
