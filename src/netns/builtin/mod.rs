//! The built-in network: a bridge, addresses from a subnet, masquerading; over netlink, without programs.
//!
//! What exists is derived from the leases on disk. The bridge and the table come with the first pod and stay until the
//! daemon ends without pods: taking them down costs three RCU grace periods, which the last pod's stop must not wait for.

mod host;
mod leases;
mod pod;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Mutex;
use wharf_proto::record;

use super::link::Links;
use super::nft::Table;
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
        let mut subnets = Vec::new();
        if !config.subnet.is_empty() {
            subnets.push(Subnet::parse("builtin_network.subnet", &config.subnet, false)?);
        }
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

    /// See [`super::Networks::attach`]. `answered` gets the pod's addresses before the attach counts as done. What was done
    /// before an error is for [`Builtin::detach`].
    pub(super) async fn attach<N: Future<Output = ()> + Send, A: Future<Output = Result<()>> + Send>(
        &self,
        pod: &PodNetwork,
        note: impl FnOnce(record::Network) -> N + Send,
        answered: impl FnOnce(Vec<(IpAddr, u8)>) -> A + Send,
    ) -> Result<record::Network> {
        let (inner, id) = (self.inner.clone(), pod.pod_id.clone());
        let addresses = thread::run("wharf-net", move || inner.claim(&id)).await?;
        let network = record::Network {
            kind: KIND.to_owned(),
            ips: addresses.iter().map(IpAddr::to_string).collect(),
            netns: pod.netns.to_string_lossy().into_owned(),
            attempted: true,
            host_device: pod::device_name(&pod.pod_id),
            ..Default::default()
        };
        note(network.clone()).await;
        let prefixes = self.inner.settings.subnets.iter().map(Subnet::prefix);
        let targets = addresses.iter().copied().zip(prefixes).collect();
        self.connect(pod, addresses).await?;
        answered(targets).await?;
        Ok(network)
    }

    async fn connect(&self, pod: &PodNetwork, addresses: Vec<IpAddr>) -> Result<()> {
        {
            let mut held = self.held.lock().await;
            held.pods.insert(pod.pod_id.clone());
            if !held.built {
                let inner = self.inner.clone();
                thread::run("wharf-net", move || host::build(&inner.settings, &mut Links::open()?)).await?;
                held.built = true;
            }
        }
        let (inner, id, netns) = (self.inner.clone(), pod.pod_id.clone(), pod.netns.clone());
        let bandwidth = Bandwidth::of(&pod.annotations)?;
        let reflect = pod.port_mappings.iter().any(|mapping| mapping.host_port > 0);
        thread::run("wharf-net", move || {
            inner.connect(&id, &netns, &addresses, bandwidth, reflect)
        })
        .await
    }

    /// See [`super::Networks::detach`].
    pub(super) async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        let (inner, id, ips) = (self.inner.clone(), pod.pod_id.clone(), network.ips.clone());
        thread::run("wharf-net", move || inner.release(&id, &ips)).await?;
        self.held.lock().await.pods.remove(&pod.pod_id);
        Ok(())
    }

    /// Makes the rules anew, for somebody has taken them away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn rebuild(&self) -> Result<()> {
        let held = self.held.lock().await;
        if held.built {
            let inner = self.inner.clone();
            thread::run("wharf-net", move || inner.settings.table().install()).await?;
        }
        Ok(())
    }

    /// Whether this is the name of the network's table.
    pub(super) fn has_table(&self, name: &str) -> bool {
        self.inner.settings.table().name() == name
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
    pub(super) async fn recover(&self, live: &[(PodNetwork, record::Network)], configured: bool) -> Result<()> {
        let live: Vec<(String, Vec<String>)> = live
            .iter()
            .filter(|(_, network)| network.kind == KIND)
            .map(|(pod, network)| (pod.pod_id.clone(), network.ips.clone()))
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
    /// Takes an address of each subnet, or nothing.
    fn claim(&self, pod_id: &str) -> Result<Vec<IpAddr>> {
        let mut taken = Vec::new();
        let claimed = self.claim_into(pod_id, &mut taken);
        if claimed.is_err() {
            for address in &taken {
                self.leases.release(&address.to_string(), pod_id)?;
            }
        }
        claimed.map(|()| taken)
    }

    fn claim_into(&self, pod_id: &str, taken: &mut Vec<IpAddr>) -> Result<()> {
        for (subnet, next) in self.settings.subnets.iter().zip(&self.next) {
            let mut places = (0..subnet.size()).map(|_| next.fetch_add(1, Ordering::Relaxed) % subnet.size());
            let address = loop {
                let place = places.next().ok_or_else(|| Error::NoAddress {
                    subnet: subnet.to_string(),
                })?;
                let address = subnet.pod_address(place);
                if self.leases.take(&address.to_string(), pod_id)? {
                    break address;
                }
            };
            taken.push(address);
        }
        Ok(())
    }
}
