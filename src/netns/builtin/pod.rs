//! One pod on the built-in network: its veth pair and its addresses. Blocking, on a thread of its own.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

use super::{Inner, host};
use crate::netns::link::{Links, Veth};
use crate::netns::{Bandwidth, Error, Result};

/// Begins the names of host ends; what does not begin so is not ours.
const DEVICE_PREFIX: &str = "wh";
/// Name of the pod's end; kubelet and every test expect it.
const POD_DEVICE: &str = "eth0";

/// The name of the host's end: found again from the pod's id alone.
pub(super) fn device_name(pod_id: &str) -> String {
    let room = libc::IFNAMSIZ - 1 - DEVICE_PREFIX.len();
    format!("{DEVICE_PREFIX}{}", pod_id.chars().take(room).collect::<String>())
}

impl Inner {
    /// Makes the pair and configures both ends, each of which limits what it sends: the host's what comes to the pod, the
    /// pod's what goes out. Leaves the calling thread in the pod's namespace.
    /// `reflect` is for pods that may call themselves by the node's address.
    pub(super) fn connect(
        &self,
        pod_id: &str,
        netns: &Path,
        addresses: &[IpAddr],
        bandwidth: Bandwidth,
        reflect: bool,
    ) -> Result<()> {
        let handle = File::open(netns).map_err(|source| Error::io("open network namespace", netns, source))?;
        let mut links = Links::open()?;
        let bridge = match links.find(&self.settings.bridge)? {
            Some(bridge) => bridge,
            // Someone took it away.
            None => host::build(&self.settings, &mut links)?,
        };
        let host_name = device_name(pod_id);
        let veth = Veth {
            host_name: &host_name,
            bridge: bridge.index,
            mtu: bridge.mtu,
            peer_name: POD_DEVICE,
            peer_mac: host::mac(addresses[0]),
            peer_netns: handle.as_fd(),
        };
        match links.add_veth(&veth) {
            // Left by a daemon that was killed on the way.
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                links.delete(&host_name)?;
                links.add_veth(&veth)?;
            }
            other => other?,
        }
        if reflect {
            links.reflect(&host_name)?;
        }
        if let Some(bits) = bandwidth.ingress
            && let Some(device) = links.find(&host_name)?
        {
            links.limit_rate(device.index, bits)?;
        }
        setns(&handle, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::io("enter network namespace", netns, errno.into()))?;
        let mut links = Links::open()?;
        let device = links
            .find(POD_DEVICE)?
            .ok_or_else(|| Error::Thread(format!("device {POD_DEVICE} vanished from {}", netns.display())))?;
        links.set_up(POD_DEVICE)?;
        if let Some(bits) = bandwidth.egress {
            links.limit_rate(device.index, bits)?;
        }
        for (address, subnet) in addresses.iter().zip(&self.settings.subnets) {
            links.add_address(device.index, *address, subnet.prefix())?;
            links.add_default_route(device.index, subnet.gateway())?;
        }
        Ok(())
    }

    /// Gives back what the pod holds, in an order in which nothing is free before it is unused.
    pub(super) fn release(&self, pod_id: &str, ips: &[String]) -> Result<()> {
        Links::open()?.delete(&device_name(pod_id))?;
        for ip in ips {
            self.leases.release(ip, pod_id)?;
        }
        Ok(())
    }

    /// Makes leases, devices and rules those of the `live` pods, each with its addresses.
    pub(super) fn recover(&self, live: &[(String, Vec<String>)]) -> Result<()> {
        let mut links = Links::open()?;
        let known: HashSet<&str> = live.iter().map(|(id, _)| id.as_str()).collect();
        for lease in self
            .leases
            .all()?
            .iter()
            .filter(|lease| !known.contains(lease.holder.as_str()))
        {
            if !lease.holder.is_empty() {
                links.delete(&device_name(&lease.holder))?;
            }
            self.leases.release(&lease.name, &lease.holder)?;
        }
        let devices: HashSet<String> = known.iter().map(|id| device_name(id)).collect();
        if let Some(bridge) = links.find(&self.settings.bridge)? {
            for port in links.ports(bridge.index)? {
                if port.name.starts_with(DEVICE_PREFIX) && !devices.contains(&port.name) {
                    links.delete(&port.name)?;
                }
            }
        }
        if live.is_empty() {
            return host::tear_down(&self.settings, &self.settings.table());
        }
        for (id, ips) in live {
            for ip in ips {
                self.leases.take(ip, id)?;
            }
        }
        host::build(&self.settings, &mut links).map(drop)
    }
}
