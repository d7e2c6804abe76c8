//! Networks that people make and name: each a bridge of its own, kept apart from the others, with a resolver for the names
//! of the pods on it. A pod can be on several, and can join and leave while it runs.

mod plan;
mod pod;
mod store;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;
use wharf_proto::record::{self, NamedNetwork};

use super::builtin::{Builtin, Devices, Seat, Settings, device_on};
use super::dns::{Member, Names, Resolver};
use super::link::Links;
use super::nft::Policy;
use super::{Error, Membership, PodNetwork, Result, thread};
use plan::{BRIDGE_PREFIX, Used};
use pod::{add_routes, addresses, first_ips, free_device};
use store::Store;

/// How a pod that is on named networks only is called in records.
pub(super) const KIND: &str = "named";

/// All named networks.
#[derive(Debug)]
pub(super) struct Named {
    store: Store,
    state_dir: PathBuf,
    default: Arc<Builtin>,
    networks: RwLock<BTreeMap<String, Arc<Network>>>,
    /// Held while one is made or removed.
    changing: Mutex<()>,
    names: Arc<Names>,
}

#[derive(Debug)]
struct Network {
    definition: NamedNetwork,
    net: Builtin,
    /// It comes with the first pod.
    resolver: Mutex<Option<Resolver>>,
}

impl Named {
    /// Reads the definitions; changes nothing on the machine.
    ///
    /// # Errors
    /// When their directory can't be read.
    pub(super) async fn open(state_dir: &Path, default: Arc<Builtin>) -> Result<Self> {
        let dir = state_dir.to_owned();
        let (store, definitions) = thread::run("wharf-net", move || {
            let store = Store::open(&dir)?;
            let definitions = store.all()?;
            Ok((store, definitions))
        })
        .await?;
        let named = Self {
            store,
            state_dir: state_dir.to_owned(),
            default,
            networks: RwLock::default(),
            changing: Mutex::default(),
            names: Arc::default(),
        };
        for definition in definitions {
            let name = definition.name.clone();
            if let Err(error) = named.insert(definition).await {
                tracing::error!(network = name, %error, "a network can't be used");
            }
        }
        Ok(named)
    }

    async fn insert(&self, definition: NamedNetwork) -> Result<()> {
        let settings = self.settings(&definition)?;
        let network = Network {
            net: Builtin::open(settings, &self.state_dir).await?,
            definition: definition.clone(),
            resolver: Mutex::default(),
        };
        let mut networks = self.networks.write().unwrap_or_else(PoisonError::into_inner);
        networks.insert(definition.name, Arc::new(network));
        Ok(())
    }

    fn settings(&self, definition: &NamedNetwork) -> Result<Settings> {
        let pools = definition
            .ranges
            .iter()
            .map(plan::pool)
            .collect::<std::result::Result<_, _>>();
        Ok(Settings {
            network: definition.name.clone(),
            bridge: definition.bridge.clone(),
            pools: pools.map_err(|reason| Error::BadNetwork {
                name: definition.name.clone(),
                reason,
            })?,
            mtu: Some(definition.mtu).filter(|mtu| *mtu > 0),
            policy: Policy {
                internal: definition.internal,
                apart_from: Some(BRIDGE_PREFIX.to_owned()),
                apart_from_bridge: Some(self.default.settings().bridge.clone()),
                resolver: true,
            },
            owner: self.default.settings().owner.clone(),
        })
    }

    fn get(&self, name: &str) -> Result<Arc<Network>> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        networks
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NoSuchNetwork(name.to_owned()))
    }

    fn all(&self) -> Vec<Arc<Network>> {
        let networks = self.networks.read().unwrap_or_else(PoisonError::into_inner);
        networks.values().cloned().collect()
    }

    /// The definitions, by name.
    pub(super) fn definitions(&self) -> Vec<NamedNetwork> {
        self.all().iter().map(|network| network.definition.clone()).collect()
    }

    /// Makes a network. Its bridge comes with the first pod.
    ///
    /// # Errors
    /// When the name is taken, when what is asked for can't be, or when it can't be written down.
    pub(super) async fn create(&self, wanted: NamedNetwork) -> Result<NamedNetwork> {
        let _one_at_a_time = self.changing.lock().await;
        if self.get(&wanted.name).is_ok() {
            return Err(Error::NetworkExists(wanted.name));
        }
        let mut used = Vec::new();
        for pool in &self.default.settings().pools {
            used.push(Used {
                subnet: pool.subnet,
                by: "the default network".to_owned(),
            });
        }
        let mut bridges = HashSet::from([self.default.settings().bridge.clone()]);
        for network in self.all() {
            bridges.insert(network.definition.bridge.clone());
            used.extend(network.net.settings().pools.iter().map(|pool| Used {
                subnet: pool.subnet,
                by: format!("network {}", network.definition.name),
            }));
        }
        let store = self.store.clone();
        let definition = thread::run("wharf-net", move || {
            let mut links = Links::open()?;
            for (subnet, index) in links.subnets()? {
                let device = links.at(index)?.map(|link| link.name).unwrap_or_default();
                if !bridges.contains(&device) {
                    used.push(Used {
                        subnet,
                        by: format!("device {device}"),
                    });
                }
            }
            let definition = plan::complete(wanted, &used)?;
            if store.has(&definition.name) {
                return Err(Error::BadNetwork {
                    name: definition.name,
                    reason: "a definition of that name can't be read; `wharf fsck --repair` sets it aside".to_owned(),
                });
            }
            if let Some(link) = links.find(&definition.bridge)? {
                return Err(Error::ForeignBridge {
                    bridge: link.name,
                    owner: Some(link.alias)
                        .filter(|alias| !alias.is_empty())
                        .unwrap_or_else(|| "somebody else".to_owned()),
                });
            }
            store.put(&definition)?;
            Ok(definition)
        })
        .await?;
        self.insert(definition.clone()).await?;
        Ok(definition)
    }

    /// Removes a network that no pod is on.
    ///
    /// # Errors
    /// When there is none of that name, when pods are on it, or when something can't be removed; call again.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        let _one_at_a_time = self.changing.lock().await;
        let network = self.get(name)?;
        network.net.remove().await?;
        if let Some(resolver) = network.resolver.lock().await.take() {
            resolver.end().await;
        }
        let (store, owned) = (self.store.clone(), name.to_owned());
        thread::run("wharf-net", move || store.remove(&owned)).await?;
        self.networks
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
        Ok(())
    }

    /// Where pods on these networks ask for names; none if they are on none.
    pub(super) fn resolver(&self, memberships: &[Membership]) -> Option<IpAddr> {
        let network = self.get(&memberships.first()?.network).ok()?;
        network.net.settings().pools.first().map(|pool| pool.gateway)
    }

    /// Takes addresses for a pod on a network. Nothing is made yet.
    ///
    /// # Errors
    /// When there is no such network or no such address.
    async fn claim(&self, pod: &PodNetwork, wish: &Membership, device: String) -> Result<record::Attachment> {
        let network = self.get(&wish.network)?;
        let ips = network.net.claim(&pod.pod_id, &wish.ips).await?;
        let short = pod.pod_id.get(..12).unwrap_or(&pod.pod_id);
        let mut names: Vec<String> = Vec::new();
        let all = [pod.name.as_str(), pod.hostname.as_str(), short];
        for name in all.into_iter().chain(wish.aliases.iter().map(String::as_str)) {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            if !name.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(record::Attachment {
            network: wish.network.clone(),
            device,
            host_device: device_on(&wish.network, &pod.pod_id),
            ips: ips.iter().map(IpAddr::to_string).collect(),
            names,
            servers: pod.dns.as_ref().map(|dns| dns.servers.clone()).unwrap_or_default(),
        })
    }

    /// Attaches a new pod to networks, in their order. See [`super::Networks::attach`].
    pub(super) async fn attach<N: Future<Output = ()> + Send, A: Future<Output = Result<()>> + Send>(
        &self,
        pod: &PodNetwork,
        wishes: &[Membership],
        note: impl FnOnce(record::Network) -> N + Send,
        answered: impl FnOnce(Vec<(IpAddr, u8)>) -> A + Send,
    ) -> Result<record::Network> {
        let mut network = record::Network {
            kind: KIND.to_owned(),
            netns: pod.netns.to_string_lossy().into_owned(),
            attempted: true,
            ..Default::default()
        };
        for (number, wish) in wishes.iter().enumerate() {
            if wishes[..number].iter().any(|before| before.network == wish.network) {
                self.leave_all(pod, &network.attachments).await?;
                return Err(Error::BadNetwork {
                    name: wish.network.clone(),
                    reason: format!("pod {} asks for it twice", pod.pod_id),
                });
            }
            match self.claim(pod, wish, format!("eth{number}")).await {
                Ok(attachment) => network.attachments.push(attachment),
                Err(error) => {
                    self.leave_all(pod, &network.attachments).await?;
                    return Err(error);
                }
            }
        }
        first_ips(&mut network);
        note(network.clone()).await;
        for attachment in &network.attachments {
            self.join(pod, attachment).await?;
        }
        let reachable = self.reachable(&network.attachments);
        let has_ports = pod.port_mappings.iter().any(|mapping| mapping.host_port > 0);
        if has_ports && reachable.is_empty() {
            return Err(Error::PortMapping {
                mapping: "host ports".to_owned(),
                reason: "the pod is on no network that can be reached from outside".to_owned(),
            });
        }
        answered(reachable).await?;
        Ok(network)
    }

    /// Whether the network can be reached from outside.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(super) fn is_open(&self, name: &str) -> Result<bool> {
        self.get(name).map(|network| !network.definition.internal)
    }

    /// Addresses of the first network that the outside can reach.
    pub(super) fn reachable(&self, attachments: &[record::Attachment]) -> Vec<(IpAddr, u8)> {
        let networks = attachments
            .iter()
            .filter_map(|one| Some((one, self.get(&one.network).ok()?)));
        let mut open = networks.filter(|(_, network)| !network.definition.internal);
        let first = open.next();
        first
            .map(|(one, network)| network.net.with_prefixes(&addresses(one)))
            .unwrap_or_default()
    }

    /// Attaches a running pod to one more network. `note` gets the record to store before anything is made, and the one
    /// before again if that failed.
    ///
    /// # Errors
    /// When the pod is on it already; as in an attach.
    pub(super) async fn connect<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        now: &record::Network,
        wish: &Membership,
        note: &(impl Fn(record::Network) -> N + Sync),
    ) -> Result<record::Network> {
        if now.attachments.iter().any(|one| one.network == wish.network) {
            return Err(Error::BadNetwork {
                name: wish.network.clone(),
                reason: format!("pod {} is on it already", pod.pod_id),
            });
        }
        let device = free_device(pod.netns.clone()).await?;
        let attachment = self.claim(pod, wish, device).await?;
        let mut network = now.clone();
        network.attachments.push(attachment.clone());
        first_ips(&mut network);
        note(network.clone()).await;
        if let Err(error) = self.join(pod, &attachment).await {
            self.leave(pod, &attachment).await?;
            note(now.clone()).await;
            return Err(error);
        }
        Ok(network)
    }

    /// Takes a running pod off a network. Gives the record to store.
    ///
    /// # Errors
    /// When the pod is not on it; when something can't be released; call again.
    pub(super) async fn disconnect(
        &self,
        pod: &PodNetwork,
        now: &record::Network,
        name: &str,
    ) -> Result<record::Network> {
        let mut network = now.clone();
        let place = network.attachments.iter().position(|one| one.network == name);
        let attachment = network.attachments.remove(place.ok_or_else(|| Error::BadNetwork {
            name: name.to_owned(),
            reason: format!("pod {} is not on it", pod.pod_id),
        })?);
        self.leave(pod, &attachment).await?;
        first_ips(&mut network);
        // The way out may have gone with it.
        let gateways: Vec<IpAddr> = network
            .attachments
            .iter()
            .filter_map(|one| self.get(&one.network).ok())
            .filter(|other| !other.definition.internal)
            .flat_map(|other| {
                other
                    .net
                    .settings()
                    .pools
                    .iter()
                    .map(|pool| pool.gateway)
                    .collect::<Vec<_>>()
            })
            .collect();
        add_routes(pod.netns.clone(), gateways).await?;
        Ok(network)
    }

    async fn join(&self, pod: &PodNetwork, attachment: &record::Attachment) -> Result<()> {
        let network = self.get(&attachment.network)?;
        network.net.prepare(&pod.pod_id).await?;
        self.answer_names(&network).await?;
        let ips = addresses(attachment);
        let devices = Devices {
            host: attachment.host_device.clone(),
            pod: attachment.device.clone(),
        };
        network.net.plug(pod, devices, &ips).await?;
        self.enter(&network, &pod.pod_id, attachment);
        Ok(())
    }

    fn enter(&self, network: &Network, pod: &str, attachment: &record::Attachment) {
        let member = Member {
            pod: pod.to_owned(),
            names: attachment.names.clone(),
            ips: addresses(attachment),
            servers: attachment
                .servers
                .iter()
                .filter_map(|server| server.parse().ok())
                .collect(),
        };
        self.names
            .enter(&attachment.network, network.definition.internal, member);
    }

    /// Starts the network's resolver unless it runs.
    async fn answer_names(&self, network: &Network) -> Result<()> {
        let mut resolver = network.resolver.lock().await;
        if resolver.is_none() {
            let gateways: Vec<IpAddr> = network.net.settings().pools.iter().map(|pool| pool.gateway).collect();
            *resolver = Some(Resolver::start(&network.definition.name, &gateways, &self.names).await?);
        }
        Ok(())
    }

    async fn leave(&self, pod: &PodNetwork, attachment: &record::Attachment) -> Result<()> {
        self.names.leave(&attachment.network, &pod.pod_id);
        match self.get(&attachment.network) {
            Ok(network) => {
                let seat = Seat {
                    pod: pod.pod_id.clone(),
                    ips: attachment.ips.clone(),
                };
                network.net.unplug(seat).await
            }
            // It can't be removed while a pod is on it.
            Err(_) => Ok(()),
        }
    }

    /// Takes a pod off all its networks; the first error is returned when all were tried.
    ///
    /// # Errors
    /// When something could not be released; call again.
    pub(super) async fn leave_all(&self, pod: &PodNetwork, attachments: &[record::Attachment]) -> Result<()> {
        let mut outcome = Ok(());
        for attachment in attachments {
            let left = self.leave(pod, attachment).await;
            outcome = outcome.and(left);
        }
        outcome
    }

    /// See [`super::Networks::recover`].
    pub(super) async fn recover(&self, live: &[(PodNetwork, record::Network)]) -> Result<()> {
        for network in self.all() {
            let name = &network.definition.name;
            let members: Vec<_> = live
                .iter()
                .flat_map(|(pod, record)| record.attachments.iter().map(move |one| (pod, one)))
                .filter(|(_, one)| one.network == *name)
                .collect();
            let seats = members.iter().map(|(pod, one)| Seat {
                pod: pod.pod_id.clone(),
                ips: one.ips.clone(),
            });
            // One that can't be built keeps none of the others from their pods.
            if let Err(error) = network.net.recover(seats.collect(), true).await {
                tracing::error!(network = name, %error, "could not recover a network");
                continue;
            }
            for (pod, one) in &members {
                self.enter(&network, &pod.pod_id, one);
            }
            if !members.is_empty()
                && let Err(error) = self.answer_names(&network).await
            {
                tracing::error!(network = name, %error, "names of pods are not answered");
            }
        }
        Ok(())
    }

    /// See [`super::Networks::release_unused`].
    pub(super) async fn release_unused(&self) -> Result<()> {
        let mut outcome = Ok(());
        for network in self.all() {
            let released = network.net.release_unused().await;
            if matches!(released, Ok(true))
                && let Some(resolver) = network.resolver.lock().await.take()
            {
                resolver.end().await;
            }
            outcome = outcome.and(released.map(drop));
        }
        outcome
    }

    /// Makes all rules anew.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn rebuild(&self) -> Result<()> {
        let mut outcome = Ok(());
        for network in self.all() {
            let rebuilt = network.net.rebuild().await;
            outcome = outcome.and(rebuilt);
        }
        outcome
    }

    /// Whether this is the name of a network's table.
    pub(super) fn has_table(&self, name: &str) -> bool {
        self.all().iter().any(|network| network.net.has_table(name))
    }
}
