//! The built-in network: a bridge, addresses from a subnet, masquerading, host ports; over netlink, without programs.
//!
//! What exists is derived from the leases on disk. The bridge and the table come with the first pod and stay until the
//! daemon ends without pods: taking them down costs three RCU grace periods, which the last pod's stop must not wait for.

mod host;
mod leases;
mod pod;
mod ports;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Mutex;
use wharf_proto::record;

use super::link::Links;
use super::nft::{HostPort, Table};
use super::subnet::Subnet;
use super::{Bandwidth, Error, PodNetwork, Result, thread};
use crate::config::BuiltinNetwork;
use leases::Leases;
pub use leases::{Reserved, reserved};

/// How this kind of network is called in records.
pub(super) const KIND: &str = "builtin";

/// The configuration, checked.
#[derive(Debug)]
struct Settings {
    bridge: String,
    /// IPv4, then IPv6 if configured.
    subnets: Vec<Subnet>,
    mtu: Option<u32>,
}

impl Settings {
    fn table(&self) -> Table {
        Table::new(&self.bridge, self.subnets.clone())
    }
}

/// What threads of this network look at.
#[derive(Debug)]
struct Inner {
    settings: Settings,
    leases: Leases,
    /// Per subnet, where to look for the next free address.
    next: Vec<AtomicU32>,
}

/// Who keeps the bridge and the table there.
#[derive(Debug, Default)]
struct Held {
    pods: HashSet<String>,
    built: bool,
}

/// The network; see the module.
#[derive(Debug)]
pub(super) struct Builtin {
    inner: Arc<Inner>,
    /// Held across making and removing the bridge and table, so that the last pod's going never meets the next one's
    /// coming half way.
    held: Mutex<Held>,
}

/// What a pod was given.
#[derive(Debug, Clone)]
struct Claim {
    addresses: Vec<IpAddr>,
    ports: Vec<HostPort>,
}

impl Builtin {
    /// Reads the leases; changes nothing on the machine.
    ///
    /// # Errors
    /// When a setting can't be used or the leases can't be read.
    pub(super) async fn open(config: &BuiltinNetwork, state_dir: &Path) -> Result<Self> {
        if config.bridge.is_empty() || config.bridge.len() >= libc::IFNAMSIZ || config.bridge.contains(['/', ' ']) {
            let reason = format!("{:?} is no device name", config.bridge);
            return Err(Error::Setting {
                setting: "builtin_network.bridge",
                reason,
            });
        }
        let mut subnets = vec![Subnet::parse("builtin_network.subnet", &config.subnet, false)?];
        if let Some(v6) = &config.subnet_v6 {
            subnets.push(Subnet::parse("builtin_network.subnet_v6", v6, true)?);
        }
        let settings = Settings {
            bridge: config.bridge.clone(),
            subnets,
            mtu: config.mtu,
        };
        let dir = state_dir.join("ipam").join(&config.bridge);
        thread::run("wharf-net", move || {
            let leases = Leases::open(dir)?;
            let all = leases.all()?;
            // Start behind what is in use, so that an address rests before it is used again.
            let next = settings.subnets.iter().map(|subnet| {
                let places = all.iter().filter_map(|lease| subnet.place(lease.name.parse().ok()?));
                AtomicU32::new(places.max().map_or(0, |place| place + 1))
            });
            let pods: HashSet<String> = all.iter().map(|lease| lease.holder.clone()).collect();
            let held = Held {
                built: !pods.is_empty(),
                pods,
            };
            let inner = Inner {
                next: next.collect(),
                settings,
                leases,
            };
            Ok(Self {
                inner: Arc::new(inner),
                held: Mutex::new(held),
            })
        })
        .await
    }

    /// See [`super::Networks::attach`].
    pub(super) async fn attach<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        note: impl FnOnce(record::Network) -> N + Send,
    ) -> Result<record::Network> {
        let (inner, id, mappings) = (self.inner.clone(), pod.pod_id.clone(), pod.port_mappings.clone());
        let claim = thread::run("wharf-net", move || inner.claim(&id, &mappings)).await?;
        let network = record::Network {
            kind: KIND.to_owned(),
            ips: claim.addresses.iter().map(IpAddr::to_string).collect(),
            netns: pod.netns.to_string_lossy().into_owned(),
            attempted: true,
            host_device: pod::device_name(&pod.pod_id),
            ..Default::default()
        };
        note(network.clone()).await;
        match self.connect(pod, claim).await {
            Ok(()) => Ok(network),
            Err(error) => {
                if let Err(second) = self.detach(pod, &network).await {
                    tracing::warn!(pod = pod.pod_id, error = %second, "could not undo a failed attach; a detach is due");
                }
                Err(error)
            }
        }
    }

    async fn connect(&self, pod: &PodNetwork, claim: Claim) -> Result<()> {
        {
            let mut held = self.held.lock().await;
            held.pods.insert(pod.pod_id.clone());
            if !held.built {
                let inner = self.inner.clone();
                thread::run("wharf-net", move || {
                    host::build(&inner.settings, &inner.leases, &mut Links::open()?)
                })
                .await?;
                held.built = true;
            }
        }
        let (inner, id, netns) = (self.inner.clone(), pod.pod_id.clone(), pod.netns.clone());
        let bandwidth = Bandwidth::of(&pod.annotations)?;
        thread::run("wharf-net", move || inner.connect(&id, &netns, &claim, bandwidth)).await
    }

    /// See [`super::Networks::detach`].
    pub(super) async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        let (inner, id, mappings) = (self.inner.clone(), pod.pod_id.clone(), pod.port_mappings.clone());
        let ips = network.ips.clone();
        thread::run("wharf-net", move || inner.release(&id, &ips, &mappings)).await?;
        self.held.lock().await.pods.remove(&pod.pod_id);
        Ok(())
    }

    /// See [`super::Networks::release_unused`].
    pub(super) async fn release_unused(&self) -> Result<()> {
        let mut held = self.held.lock().await;
        if held.pods.is_empty() && held.built {
            let inner = self.inner.clone();
            thread::run("wharf-net", move || {
                host::tear_down(&inner.settings, &inner.settings.table())
            })
            .await?;
            held.built = false;
        }
        Ok(())
    }

    /// See [`super::Networks::recover`]. A network that is not `configured` is left alone unless it is in use.
    pub(super) async fn recover(&self, live: &[(String, record::Network)], configured: bool) -> Result<()> {
        let live: Vec<(String, Vec<String>)> = live
            .iter()
            .filter(|(_, network)| network.kind == KIND)
            .map(|(id, network)| (id.clone(), network.ips.clone()))
            .collect();
        let pods: HashSet<String> = live.iter().map(|(id, _)| id.clone()).collect();
        let mut held = self.held.lock().await;
        if !configured && held.pods.is_empty() && pods.is_empty() {
            return Ok(());
        }
        let (inner, built) = (self.inner.clone(), !pods.is_empty());
        thread::run("wharf-net", move || inner.recover(&live)).await?;
        *held = Held { pods, built };
        Ok(())
    }
}

impl Inner {
    /// Takes an address of each subnet and all ports, or nothing.
    fn claim(&self, pod_id: &str, mappings: &[wharf_proto::cri::PortMapping]) -> Result<Claim> {
        let mut taken = Vec::new();
        let claimed = self.claim_into(pod_id, mappings, &mut taken);
        if claimed.is_err() {
            for name in &taken {
                self.leases.release(name, pod_id)?;
            }
        }
        claimed
    }

    fn claim_into(
        &self,
        pod_id: &str,
        mappings: &[wharf_proto::cri::PortMapping],
        taken: &mut Vec<String>,
    ) -> Result<Claim> {
        let mut addresses = Vec::new();
        for (subnet, next) in self.settings.subnets.iter().zip(&self.next) {
            let mut places = (0..subnet.size()).map(|_| next.fetch_add(1, Ordering::Relaxed) % subnet.size());
            let address = loop {
                let place = places.next().ok_or_else(|| Error::NoAddress {
                    subnet: subnet.to_string(),
                })?;
                let address = subnet.pod_address(place);
                if self.leases.take(&address.to_string(), pod_id, "")? {
                    break address;
                }
            };
            taken.push(address.to_string());
            addresses.push(address);
        }
        let ports = ports::wanted(mappings, &addresses)?;
        for port in &ports {
            let name = ports::lease_name(port);
            if !self.leases.take(&name, pod_id, &ports::lease_note(port))? {
                let holder = self.leases.get(&name)?.map(|lease| lease.holder).unwrap_or_default();
                return Err(Error::PortTaken {
                    port: ports::display(port),
                    holder,
                });
            }
            taken.push(name);
        }
        Ok(Claim { addresses, ports })
    }
}
