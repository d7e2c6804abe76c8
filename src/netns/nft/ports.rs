//! The table of host ports.
//!
//! A host port is an element of a map, so that adding and removing one is one small transaction whatever the number of
//! pods, and needs no handle that would have to be remembered.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::batch::Batch;
use super::expr::{Steps, octets};
use super::writer::{Element, Hook, TYPE_DEVICE, TYPE_IPV4, TYPE_IPV6, TYPE_PORT, TYPE_PROTOCOL, Writer};
use crate::netns::Result;
use crate::netns::subnet::Subnet;

/// A port of this machine that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::netns) struct HostPort {
    /// IP protocol number.
    pub(in crate::netns) protocol: u8,
    /// The address of this machine that it is for; none is all.
    pub(in crate::netns) host_ip: Option<IpAddr>,
    pub(in crate::netns) host_port: u16,
    pub(in crate::netns) pod_ip: IpAddr,
    pub(in crate::netns) pod_port: u16,
}

impl HostPort {
    /// Every part of a key takes a multiple of four bytes.
    fn element(&self) -> Element<'static> {
        let mut key = self.host_ip.map(octets).unwrap_or_default();
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(self.host_port.to_be_bytes());
        key.extend([0, 0]);
        let mut value = octets(self.pod_ip);
        value.extend(self.pod_port.to_be_bytes());
        value.extend([0, 0]);
        Element {
            set: map(self.pod_ip.is_ipv6(), self.host_ip.is_some()),
            key,
            value: Some(value),
            what: format!("host port {}/{}", self.protocol, self.host_port),
        }
    }
}

/// The map for a family, with the machine's address as part of the key or without.
fn map(v6: bool, with_address: bool) -> &'static str {
    match (v6, with_address) {
        (false, false) => "ports4",
        (false, true) => "address_ports4",
        (true, false) => "ports6",
        (true, true) => "address_ports6",
    }
}

/// Ports for one address go before those for all.
const LOOKUPS: [(bool, bool); 4] = [(false, true), (false, false), (true, true), (true, false)];

/// The table.
#[derive(Debug, Clone)]
pub(in crate::netns) struct PortTable(String);

impl PortTable {
    /// The table of the daemon whose built-in bridge is `bridge`.
    pub(in crate::netns) fn new(bridge: &str) -> Self {
        Self(format!("wharf-ports-{bridge}"))
    }

    pub(in crate::netns) fn name(&self) -> &str {
        &self.0
    }

    /// Makes the table, or makes it anew, with `ports` in it; there is no moment without it. Who calls from one of the
    /// subnets that are `near` a pod comes from this machine's address, so that the answer comes back by here; `devices`
    /// lead to pods and let localhost's packets through.
    ///
    /// # Errors
    /// When the kernel refuses, for example because it lacks nftables.
    pub(in crate::netns) fn install(
        &self,
        ports: &[HostPort],
        near: &BTreeSet<Subnet>,
        devices: &BTreeSet<String>,
    ) -> Result<()> {
        self.installation(ports, near, devices).commit(|_| false).map(drop)
    }

    /// Removes the table; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::netns) fn remove(&self) -> Result<()> {
        let mut writer = Writer::new(&self.0);
        writer.delete();
        writer
            .finish()
            .commit(|refusal| refusal.errno() == libc::ENOENT)
            .map(drop)
    }

    /// Adds the ports, all or none. Tells whether the table was there.
    ///
    /// # Errors
    /// When the kernel refuses, for example if one of them leads elsewhere already.
    pub(in crate::netns) fn add(&self, ports: &[HostPort]) -> Result<bool> {
        let mut writer = Writer::new(&self.0);
        for port in ports {
            writer.add(&port.element());
        }
        writer.finish().commit(|refusal| refusal.errno() == libc::ENOENT)
    }

    /// Takes the ports away; those that are gone are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::netns) fn take_away(&self, ports: &[HostPort]) -> Result<()> {
        let remove = |ports: &[HostPort]| {
            let mut writer = Writer::new(&self.0);
            for port in ports {
                writer.remove(&port.element());
            }
            writer.finish().commit(|refusal| refusal.errno() == libc::ENOENT)
        };
        if !remove(ports)? {
            // At least one is gone and so the rest stayed.
            for port in ports {
                remove(std::slice::from_ref(port))?;
            }
        }
        Ok(())
    }

    fn installation(&self, ports: &[HostPort], near: &BTreeSet<Subnet>, devices: &BTreeSet<String>) -> Batch {
        let mut writer = Writer::new(&self.0);
        writer.anew();
        for (v6, with_address) in LOOKUPS {
            let (kind, length) = if v6 { (TYPE_IPV6, 16) } else { (TYPE_IPV4, 4) };
            let plain = TYPE_PROTOCOL << 6 | TYPE_PORT;
            let key = if with_address {
                (kind << 12 | plain, length + 8)
            } else {
                (plain, 8)
            };
            writer.map(map(v6, with_address), key, (kind << 6 | TYPE_PORT, length + 4));
        }
        writer.set("devices", (TYPE_DEVICE, libc::IFNAMSIZ as u32));
        let loopback = Subnet::holding(IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
        writer.chain("guard", Hook::Raw);
        // These devices route loopback addresses so that localhost has host ports too. Others must not use that way.
        writer.rule("guard", |steps| {
            steps.came_by_one_of("devices").sent_to(&loopback).drop();
        });
        for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::OutputNat)] {
            writer.chain(chain, hook);
            for (v6, with_address) in LOOKUPS {
                writer.rule(chain, |steps| {
                    steps.family(v6).for_this_machine();
                    if v6 {
                        steps.not_for_localhost_v6();
                    }
                    steps.load_destination(v6, with_address);
                    steps.look_up(map(v6, with_address)).redirect(v6);
                });
            }
        }
        writer.chain("postrouting", Hook::Postrouting);
        for (v6, with_address) in LOOKUPS {
            // What was redirected by this table, and not by somebody else.
            let ours = |steps: &mut Steps<'_, '_>| {
                steps
                    .family(v6)
                    .was_redirected()
                    .load_first_destination(v6, with_address);
                steps.look_up(map(v6, with_address));
            };
            if !v6 {
                writer.rule("postrouting", |steps| {
                    ours(steps);
                    steps.sent_from(&loopback).masquerade();
                });
            }
            for subnet in near.iter().filter(|subnet| subnet.is_v6() == v6) {
                // A pod that reaches a pod, or itself.
                writer.rule("postrouting", |steps| {
                    ours(steps);
                    steps.sent_from(subnet).sent_to(subnet).masquerade();
                });
            }
        }
        for device in devices.iter().filter(|device| !device.is_empty()) {
            let mut key = device.as_bytes().to_vec();
            key.resize(libc::IFNAMSIZ, 0);
            writer.add(&Element {
                set: "devices",
                key,
                value: None,
                what: format!("device {device}"),
            });
        }
        for port in ports {
            writer.add(&port.element());
        }
        writer.finish()
    }
}
