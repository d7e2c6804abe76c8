//! A network of Wharf's own: a bridge, addresses from subnets, masquerading; over netlink, without programs. There is the
//! default one, which the configuration describes, and any number of named ones (see [`super::named`]).
//!
//! What exists is derived from the leases on disk. The bridge and the table come with the first pod and stay until the
//! daemon ends without pods: taking them down costs three RCU grace periods, which the last pod's stop must not wait for.

mod host;
mod leases;
mod pod;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Mutex;
use wharf_proto::record;

use super::link::Links;
use super::nft::{Policy, Table};
use super::pool::Pool;
use super::subnet::Subnet;
use super::{Bandwidth, Error, PodNetwork, Result, thread};
use crate::config::BuiltinNetwork;
use leases::Leases;
pub use leases::{Reserved, reserved};
pub(super) use pod::{Devices, device_on};

/// How the default network is called in records.
pub(super) const KIND: &str = "builtin";

/// What a network is, checked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// Its name; empty for the default one.
    pub(super) network: String,
    pub(super) bridge: String,
    /// At most one for each family, IPv4 first.
    pub(super) pools: Vec<Pool>,
    pub(super) mtu: Option<u32>,
    pub(super) policy: Policy,
    /// Written on the bridge, so that it is known whose it is.
    pub(super) owner: String,
}

impl Settings {
    pub(super) fn table(&self) -> Table {
        let subnets = self.pools.iter().map(|pool| pool.subnet).collect();
        Table::new(&self.bridge, subnets, self.policy.clone())
    }
}

/// What a pod has on a network, as far as it must be given back.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) pod: String,
    pub(super) ips: Vec<String>,
}

/// What threads of this network look at.
#[derive(Debug)]
struct Inner {
    settings: Settings,
    leases: Leases,
    /// Per pool, where to look for the next free address.
    next: Vec<AtomicU32>,
}

/// Who keeps the bridge and the table there.
#[derive(Debug, Default)]
struct Held {
    pods: HashSet<String>,
    built: bool,
    /// The network was removed: no pod comes any more.
    closed: bool,
}

/// The network; see the module.
#[derive(Debug)]
pub(super) struct Builtin {
    inner: Arc<Inner>,
    dir: PathBuf,
    /// Held across making and removing the bridge and table, so that the last pod's going never meets the next one's
    /// coming half way.
    held: Mutex<Held>,
}

impl Builtin {
    /// The default network; changes nothing on the machine.
    ///
    /// # Errors
    /// When a setting can't be used or the leases can't be read.
    pub(super) async fn of_config(config: &BuiltinNetwork, state_dir: &Path) -> Result<Self> {
        if config.bridge.is_empty() || config.bridge.len() >= libc::IFNAMSIZ || config.bridge.contains(['/', ' ']) {
            let reason = format!("{:?} is no device name", config.bridge);
            return Err(Error::Setting {
                setting: "builtin_network.bridge",
                reason,
            });
        }
        let mut pools = Vec::new();
        if !config.subnet.is_empty() {
            let subnet = Subnet::parse("builtin_network.subnet", &config.subnet, false)?;
            pools.push(Pool::whole(subnet));
        }
        if let Some(v6) = &config.subnet_v6 {
            pools.push(Pool::whole(Subnet::parse("builtin_network.subnet_v6", v6, true)?));
        }
        let settings = Settings {
            network: String::new(),
            bridge: config.bridge.clone(),
            pools,
            mtu: config.mtu,
            policy: Policy::default(),
            owner: owner(state_dir),
        };
        Self::open(settings, state_dir).await
    }

    /// Reads the leases; changes nothing on the machine.
    ///
    /// # Errors
    /// When the leases can't be read.
    pub(super) async fn open(settings: Settings, state_dir: &Path) -> Result<Self> {
        let dir = state_dir.join("ipam").join(&settings.bridge);
        thread::run("wharf-net", move || {
            let leases = Leases::open(dir.clone())?;
            let all = leases.all()?;
            // Start behind what is in use, so that an address rests before it is used again.
            let next = settings.pools.iter().map(|pool| {
                let places = all.iter().filter_map(|lease| pool.place(lease.name.parse().ok()?));
                AtomicU32::new(places.max().map_or(0, |place| place + 1))
            });
            let pods: HashSet<String> = all.iter().map(|lease| lease.holder.clone()).collect();
            let held = Held {
                built: !pods.is_empty(),
                pods,
                closed: false,
            };
            let inner = Inner {
                next: next.collect(),
                settings,
                leases,
            };
            Ok(Self {
                inner: Arc::new(inner),
                dir,
                held: Mutex::new(held),
            })
        })
        .await
    }

    /// What the network is.
    pub(super) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// Attaches a pod to this network alone. See [`super::Networks::attach`]. `answered` gets the pod's addresses before the
    /// attach counts as done. What was done before an error is for [`Builtin::unplug`].
    pub(super) async fn attach<N: Future<Output = ()> + Send, A: Future<Output = Result<()>> + Send>(
        &self,
        pod: &PodNetwork,
        note: impl FnOnce(record::Network) -> N + Send,
        answered: impl FnOnce(Vec<(IpAddr, u8)>) -> A + Send,
    ) -> Result<record::Network> {
        let addresses = self.claim(&pod.pod_id, &[]).await?;
        let devices = Devices::first(&pod.pod_id);
        let network = record::Network {
            kind: KIND.to_owned(),
            ips: addresses.iter().map(IpAddr::to_string).collect(),
            netns: pod.netns.to_string_lossy().into_owned(),
            attempted: true,
            host_device: devices.host.clone(),
            ..Default::default()
        };
        note(network.clone()).await;
        self.prepare(&pod.pod_id).await?;
        self.plug(pod, devices, &addresses).await?;
        answered(self.with_prefixes(&addresses)).await?;
        Ok(network)
    }

    /// Takes an address of each pool for the pod, or those that are asked for; all or none.
    ///
    /// # Errors
    /// When there is none, or one that is asked for can't be had.
    pub(super) async fn claim(&self, pod_id: &str, asked: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let (inner, id, asked) = (self.inner.clone(), pod_id.to_owned(), asked.to_vec());
        thread::run("wharf-net", move || inner.claim(&id, &asked)).await
    }

    /// Makes the bridge and the rules if they are not there, and keeps them for the pod.
    ///
    /// # Errors
    /// When the kernel refuses, or the network was removed.
    pub(super) async fn prepare(&self, pod_id: &str) -> Result<()> {
        let mut held = self.held.lock().await;
        if held.closed {
            return Err(Error::NoSuchNetwork(self.inner.settings.network.clone()));
        }
        held.pods.insert(pod_id.to_owned());
        if !held.built {
            let inner = self.inner.clone();
            thread::run("wharf-net", move || host::build(&inner.settings, &mut Links::open()?)).await?;
            held.built = true;
        }
        Ok(())
    }

    /// Makes the pod's devices, after [`Builtin::prepare`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn plug(&self, pod: &PodNetwork, devices: Devices, addresses: &[IpAddr]) -> Result<()> {
        let (inner, netns, addresses) = (self.inner.clone(), pod.netns.clone(), addresses.to_vec());
        let bandwidth = Bandwidth::of(&pod.annotations)?;
        let reflect = pod.port_mappings.iter().any(|mapping| mapping.host_port > 0);
        thread::run("wharf-net", move || {
            inner.plug(&devices, &netns, &addresses, bandwidth, reflect)
        })
        .await
    }

    /// Gives back what a pod has: any number of times, and after a part of it was made.
    ///
    /// # Errors
    /// When something could not be released; call again.
    pub(super) async fn unplug(&self, seat: Seat) -> Result<()> {
        let (inner, pod) = (self.inner.clone(), seat.pod.clone());
        thread::run("wharf-net", move || inner.release(&seat)).await?;
        self.held.lock().await.pods.remove(&pod);
        Ok(())
    }

    /// Addresses with the lengths of their prefixes.
    pub(super) fn with_prefixes(&self, addresses: &[IpAddr]) -> Vec<(IpAddr, u8)> {
        let pools = &self.inner.settings.pools;
        let prefix = |ip: &IpAddr| {
            pools
                .iter()
                .find(|pool| pool.subnet.contains(*ip))
                .map(|pool| pool.subnet.prefix())
        };
        addresses.iter().filter_map(|ip| Some((*ip, prefix(ip)?))).collect()
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

    /// See [`super::Networks::release_unused`]. Tells whether nothing of the network is there now.
    pub(super) async fn release_unused(&self) -> Result<bool> {
        let mut held = self.held.lock().await;
        if held.pods.is_empty() && held.built {
            let inner = self.inner.clone();
            thread::run("wharf-net", move || host::tear_down(&inner.settings)).await?;
            held.built = false;
        }
        Ok(!held.built)
    }

    /// Ends the network for good: its bridge, its rules, its leases.
    ///
    /// # Errors
    /// [`Error::NetworkInUse`] while pods are on it; when the kernel refuses.
    pub(super) async fn remove(&self) -> Result<()> {
        let mut held = self.held.lock().await;
        if !held.pods.is_empty() {
            let mut pods: Vec<String> = held.pods.iter().cloned().collect();
            pods.sort();
            return Err(Error::NetworkInUse {
                name: self.inner.settings.network.clone(),
                pods: pods.join(", "),
            });
        }
        held.closed = true;
        let (inner, dir) = (self.inner.clone(), self.dir.clone());
        let removed = thread::run("wharf-net", move || {
            host::tear_down(&inner.settings)?;
            match std::fs::remove_dir_all(&dir) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::io("remove directory", &dir, source))
                }
                _ => Ok(()),
            }
        })
        .await;
        held.closed = removed.is_ok();
        held.built &= removed.is_err();
        removed
    }

    /// Makes what is there that of the `live` pods. A network that is not `configured` is left alone unless it is in use.
    ///
    /// # Errors
    /// When the leases can't be read or the kernel refuses.
    pub(super) async fn recover(&self, live: Vec<Seat>, configured: bool) -> Result<()> {
        let pods: HashSet<String> = live.iter().map(|seat| seat.pod.clone()).collect();
        let mut held = self.held.lock().await;
        if !configured && held.pods.is_empty() && pods.is_empty() {
            return Ok(());
        }
        let (inner, built) = (self.inner.clone(), !pods.is_empty());
        let live: HashMap<String, Vec<String>> = live.into_iter().map(|seat| (seat.pod, seat.ips)).collect();
        thread::run("wharf-net", move || inner.recover(&live)).await?;
        *held = Held {
            pods,
            built,
            closed: false,
        };
        Ok(())
    }
}

impl Inner {
    /// Takes an address of each pool, or nothing.
    fn claim(&self, pod_id: &str, asked: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let mut taken = Vec::new();
        let claimed = self.claim_into(pod_id, asked, &mut taken);
        if claimed.is_err() {
            for address in &taken {
                self.leases.release(&address.to_string(), pod_id)?;
            }
        }
        claimed.map(|()| taken)
    }

    fn claim_into(&self, pod_id: &str, asked: &[IpAddr], taken: &mut Vec<IpAddr>) -> Result<()> {
        let pools = &self.settings.pools;
        let wrong = |reason: String| Error::BadNetwork {
            name: self.settings.network.clone(),
            reason,
        };
        if let Some(stray) = asked
            .iter()
            .find(|ip| pools.iter().all(|pool| pool.subnet.is_v6() != ip.is_ipv6()))
        {
            return Err(wrong(format!("has no addresses of the family of {stray}")));
        }
        for (pool, next) in pools.iter().zip(&self.next) {
            if let Some(address) = asked.iter().find(|ip| ip.is_ipv6() == pool.subnet.is_v6()) {
                pool.check(*address).map_err(wrong)?;
                if !self.leases.take(&address.to_string(), pod_id)? {
                    let holder = self.leases.get(&address.to_string())?.map(|lease| lease.holder);
                    return Err(wrong(format!(
                        "{address} is held by pod {}",
                        holder.unwrap_or_default()
                    )));
                }
                taken.push(*address);
                continue;
            }
            let mut places = (0..pool.size()).map(|_| next.fetch_add(1, Ordering::Relaxed) % pool.size());
            let address = loop {
                let place = places.next().ok_or_else(|| Error::NoAddress {
                    subnet: pool.subnet.to_string(),
                })?;
                if let Some(address) = pool.address(place)
                    && self.leases.take(&address.to_string(), pod_id)?
                {
                    break address;
                }
            };
            taken.push(address);
        }
        Ok(())
    }
}

/// What is written on the bridges of the daemon with this state directory.
pub(super) fn owner(state_dir: &Path) -> String {
    format!("wharf of {}", state_dir.display())
}
