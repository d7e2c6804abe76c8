//! The networks that people make, and their pods' comings and goings: the part of [`Networks`] that CRI knows nothing of.

use std::net::IpAddr;

use wharf_proto::record;

use super::{DEFAULT_NETWORK, Membership, Networks, PodNetwork, Result, named, order};
use crate::config::NetworkMode;

impl Networks {
    /// The named networks, and the default one where it is Wharf's own.
    #[must_use]
    pub fn definitions(&self) -> Vec<record::NamedNetwork> {
        let own = (self.0.mode == NetworkMode::Builtin).then(|| {
            let settings = self.0.builtin.settings();
            record::NamedNetwork {
                name: DEFAULT_NETWORK.to_owned(),
                bridge: settings.bridge.clone(),
                mtu: settings.mtu.unwrap_or(0),
                ranges: settings
                    .pools
                    .iter()
                    .map(|pool| record::NetworkRange {
                        subnet: pool.subnet.to_string(),
                        gateway: pool.gateway.to_string(),
                        ip_range: String::new(),
                        v6: pool.subnet.is_v6(),
                    })
                    .collect(),
                ..Default::default()
            }
        });
        own.into_iter().chain(self.0.named.definitions()).collect()
    }

    /// Makes a named network; what is left open is chosen.
    ///
    /// # Errors
    /// When the name is taken, or what is asked for can't be.
    pub async fn create_network(&self, wanted: record::NamedNetwork) -> Result<record::NamedNetwork> {
        self.0.named.create(wanted).await
    }

    /// Removes a named network.
    ///
    /// # Errors
    /// When there is none of that name, or a pod is on it.
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        self.0.named.remove(name).await
    }

    /// Where the pod asks for names of others, if it is on a named network.
    #[must_use]
    pub fn resolver(&self, pod: &PodNetwork) -> Option<IpAddr> {
        self.0.named.resolver(pod.networks.as_deref()?)
    }

    /// This machine's address as the pod sees it, where the pod will be on a network of Wharf's own.
    #[must_use]
    pub fn gateway(&self, pod: &PodNetwork) -> Option<IpAddr> {
        match (&pod.networks, self.0.mode) {
            (Some(wishes), _) => self.0.named.resolver(wishes),
            (None, NetworkMode::Builtin) => self.0.builtin.settings().pools.first().map(|pool| pool.gateway),
            (None, NetworkMode::Cni) => None,
        }
    }

    /// Puts a running pod on one more named network. `note` gets the record to store before anything is made. Host ports
    /// that led nowhere, because no network of the pod was open to the outside, lead to it from then on.
    ///
    /// # Errors
    /// When there is no such network, the pod is on it already, one of its ports is another pod's by now, or the kernel
    /// refuses.
    pub async fn connect<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        now: &record::Network,
        wish: &Membership,
        note: impl Fn(record::Network) -> N + Send + Sync,
    ) -> Result<record::Network> {
        let (named, ports) = (&self.0.named, &self.0.ports);
        let opens =
            now.kind == named::KIND && named.reachable(&now.attachments).is_empty() && named.is_open(&wish.network)?;
        if opens {
            ports.take(&pod.pod_id, &pod.port_mappings).await?;
        }
        let connected = async {
            let network = named.connect(pod, now, wish, &note).await?;
            if opens && let Err(error) = ports.lead(&pod.pod_id, &named.reachable(&network.attachments)).await {
                named.disconnect(pod, &network, &wish.network).await?;
                note(now.clone()).await;
                return Err(error);
            }
            Ok(network)
        };
        match connected.await {
            Ok(mut network) => {
                order(&mut network.ips, self.0.preference);
                Ok(network)
            }
            Err(error) if opens => {
                ports.give_back(&pod.pod_id).await?;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a running pod off a named network; its host ports then lead to it by another, if there is one.
    ///
    /// # Errors
    /// When the pod is not on it, or something can't be released.
    pub async fn disconnect(&self, pod: &PodNetwork, now: &record::Network, name: &str) -> Result<record::Network> {
        let left: Vec<_> = now
            .attachments
            .iter()
            .filter(|one| one.network != name)
            .cloned()
            .collect();
        if now.kind == named::KIND && left.len() < now.attachments.len() {
            match self.0.named.reachable(&left) {
                none if none.is_empty() => self.0.ports.give_back(&pod.pod_id).await?,
                addresses => self.0.ports.lead(&pod.pod_id, &addresses).await?,
            }
        }
        let mut network = self.0.named.disconnect(pod, now, name).await?;
        order(&mut network.ips, self.0.preference);
        Ok(network)
    }
}
