//! One pod on the built-in network: its veth pair and its addresses. Blocking, on a thread of its own.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use sha2::{Digest, Sha256};

use super::{Inner, Seat, host};
use crate::netns::link::{Links, Veth};
use crate::netns::{Bandwidth, Error, Result};

/// Begins the names of host ends; what does not begin so is not ours.
const DEVICE_PREFIX: &str = "wh";
/// Name of the pod's first end; kubelet and every test expect it.
const POD_DEVICE: &str = "eth0";

/// The two ends of a pod's way to a network.
#[derive(Debug, Clone)]
pub(in crate::netns) struct Devices {
    pub(in crate::netns) host: String,
    pub(in crate::netns) pod: String,
}

impl Devices {
    /// Those of a pod that is on the default network.
    pub(in crate::netns) fn first(pod_id: &str) -> Self {
        Self {
            host: device_on("", pod_id),
            pod: POD_DEVICE.to_owned(),
        }
    }
}

/// The name of the host's end: found again from the network's name and the pod's id alone.
pub(in crate::netns) fn device_on(network: &str, pod_id: &str) -> String {
    let room = libc::IFNAMSIZ - 1 - DEVICE_PREFIX.len();
    // On the default network a person recognises the pod by it.
    let digits = match network {
        "" => pod_id.to_owned(),
        network => hex::encode(Sha256::digest(format!("{network} {pod_id}"))),
    };
    format!("{DEVICE_PREFIX}{}", digits.chars().take(room).collect::<String>())
}

impl Inner {
    /// Makes the pair and configures both ends, each of which limits what it sends: the host's what comes to the pod, the
    /// pod's what goes out. Leaves the calling thread in the pod's namespace.
    /// `reflect` is for pods that may call themselves by the node's address.
    pub(super) fn plug(
        &self,
        devices: &Devices,
        netns: &Path,
        addresses: &[IpAddr],
        bandwidth: Bandwidth,
        reflect: bool,
    ) -> Result<()> {
        let handle = File::open(netns).map_err(|source| Error::io("open network namespace", netns, source))?;
        let mut links = Links::open()?;
        let bridge = match links.find(&self.settings.bridge)? {
            Some(bridge) => {
                host::check_owner(&self.settings, &bridge)?;
                bridge
            }
            // Someone took it away.
            None => host::build(&self.settings, &mut links)?,
        };
        let first = addresses.first().copied().ok_or_else(|| Error::NoAddress {
            subnet: format!("network {}", self.settings.network),
        })?;
        let veth = Veth {
            host_name: &devices.host,
            bridge: bridge.index,
            mtu: bridge.mtu,
            peer_name: &devices.pod,
            peer_mac: host::mac(first),
            peer_netns: handle.as_fd(),
        };
        match links.add_veth(&veth) {
            // Left by a daemon that was killed on the way.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                links.delete(&devices.host)?;
                links.add_veth(&veth)?;
            }
            other => other?,
        }
        if reflect {
            links.reflect(&devices.host)?;
        }
        if let Some(bits) = bandwidth.ingress
            && let Some(device) = links.find(&devices.host)?
        {
            links.limit_rate(device.index, bits)?;
        }
        setns(&handle, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::io("enter network namespace", netns, errno.into()))?;
        let mut links = Links::open()?;
        let device = links
            .find(&devices.pod)?
            .ok_or_else(|| Error::Thread(format!("device {} vanished from {}", devices.pod, netns.display())))?;
        links.set_up(&devices.pod)?;
        if let Some(bits) = bandwidth.egress {
            links.limit_rate(device.index, bits)?;
        }
        for address in addresses {
            let Some(pool) = self.settings.pools.iter().find(|pool| pool.subnet.contains(*address)) else {
                continue;
            };
            links.add_address(device.index, *address, pool.subnet.prefix())?;
            if !self.settings.policy.internal {
                // One that another network gave before stays.
                links.add_default_route(device.index, pool.gateway)?;
            }
        }
        Ok(())
    }

    /// Gives back what the pod holds, in an order in which nothing is free before it is unused.
    pub(super) fn release(&self, seat: &Seat) -> Result<()> {
        Links::open()?.delete_from_sight(&device_on(&self.settings.network, &seat.pod))?;
        for ip in &seat.ips {
            self.leases.release(ip, &seat.pod)?;
        }
        Ok(())
    }

    /// Makes leases, devices and rules those of the `live` pods, each with its addresses.
    pub(super) fn recover(&self, live: &HashMap<String, Vec<String>>) -> Result<()> {
        let mut links = Links::open()?;
        let network = &self.settings.network;
        for lease in self
            .leases
            .all()?
            .iter()
            .filter(|lease| !live.contains_key(&lease.holder))
        {
            if !lease.holder.is_empty() {
                links.delete(&device_on(network, &lease.holder))?;
            }
            self.leases.release(&lease.name, &lease.holder)?;
        }
        let devices: HashSet<String> = live.keys().map(|id| device_on(network, id)).collect();
        if let Some(bridge) = links.find(&self.settings.bridge)?
            && host::check_owner(&self.settings, &bridge).is_ok()
        {
            for port in links.ports(bridge.index)? {
                if port.name.starts_with(DEVICE_PREFIX) && !devices.contains(&port.name) {
                    links.delete(&port.name)?;
                }
            }
        }
        if live.is_empty() {
            return host::tear_down(&self.settings);
        }
        for (id, ips) in live {
            for ip in ips {
                self.leases.take(ip, id)?;
            }
        }
        host::build(&self.settings, &mut links).map(drop)
    }
}
