//! Wharf's table: masquerading for pods that talk to the outside, host ports that lead to pods.
//!
//! A host port is an element of a map, so that adding and removing one is one small transaction whatever the number of
//! pods, and needs no handle that would have to be remembered.

use std::net::{IpAddr, Ipv4Addr};

use super::batch::{APPEND, Attributes, Batch, CREATE, Command};
use super::expr::{Steps, octets};
use crate::netns::Result;
use crate::netns::subnet::Subnet;

/// `NFT_SET_MAP`.
const MAP: u32 = 8;
/// Type numbers by which `nft list` knows how to print keys and values; 6 bits each.
const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_PORT: u32 = 13;

const HOOK_PREROUTING: u32 = 0;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_RAW: i32 = -300;
const PRIORITY_DESTINATION: i32 = -100;
const PRIORITY_SOURCE: i32 = 100;

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
    fn map(&self) -> &'static str {
        match (self.pod_ip.is_ipv6(), self.host_ip.is_some()) {
            (false, false) => "ports4",
            (false, true) => "address_ports4",
            (true, false) => "ports6",
            (true, true) => "address_ports6",
        }
    }

    /// Every part of a key takes a multiple of four bytes.
    fn key(&self) -> Vec<u8> {
        let mut key = self.host_ip.map(octets).unwrap_or_default();
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(self.host_port.to_be_bytes());
        key.extend([0, 0]);
        key
    }

    fn value(&self) -> Vec<u8> {
        let mut value = octets(self.pod_ip);
        value.extend(self.pod_port.to_be_bytes());
        value.extend([0, 0]);
        value
    }
}

/// The table that belongs to one bridge.
#[derive(Debug, Clone)]
pub(in crate::netns) struct Table {
    name: String,
    bridge: String,
    subnets: Vec<Subnet>,
}

impl Table {
    /// The table for pods on `bridge` with addresses in `subnets`.
    pub(in crate::netns) fn new(bridge: &str, subnets: Vec<Subnet>) -> Self {
        Self {
            name: format!("wharf-{bridge}"),
            bridge: bridge.to_owned(),
            subnets,
        }
    }

    /// Makes the table, or makes it anew, with `ports` in it; there is no moment without it.
    ///
    /// # Errors
    /// When the kernel refuses, for example because it lacks nftables.
    pub(in crate::netns) fn install(&self, ports: &[HostPort]) -> Result<()> {
        self.installation(ports).commit(|_| false).map(drop)
    }

    /// Removes the table; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::netns) fn remove(&self) -> Result<()> {
        let mut batch = Batch::new();
        self.table(&mut batch, Command::DelTable, 0);
        batch.commit(|refusal| refusal.errno() == libc::ENOENT).map(drop)
    }

    /// Adds the ports, all or none. Tells whether the table was there.
    ///
    /// # Errors
    /// When the kernel refuses, for example if one of them leads elsewhere already.
    pub(in crate::netns) fn add_ports(&self, ports: &[HostPort]) -> Result<bool> {
        let mut batch = Batch::new();
        for port in ports {
            self.element(&mut batch, Command::NewSetElem, CREATE, port);
        }
        batch.commit(|refusal| refusal.errno() == libc::ENOENT)
    }

    /// Removes the ports; those that are gone are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::netns) fn remove_ports(&self, ports: &[HostPort]) -> Result<()> {
        let remove = |ports: &[HostPort]| {
            let mut batch = Batch::new();
            for port in ports {
                self.element(&mut batch, Command::DelSetElem, 0, port);
            }
            batch.commit(|refusal| refusal.errno() == libc::ENOENT)
        };
        if !remove(ports)? {
            // At least one is gone and so the rest stayed.
            for port in ports {
                remove(std::slice::from_ref(port))?;
            }
        }
        Ok(())
    }

    pub(super) fn installation(&self, ports: &[HostPort]) -> Batch {
        let mut batch = Batch::new();
        self.table(&mut batch, Command::NewTable, CREATE);
        self.table(&mut batch, Command::DelTable, 0);
        self.table(&mut batch, Command::NewTable, CREATE);
        for (v6, address) in [(false, TYPE_IPV4), (true, TYPE_IPV6)] {
            if self.has(v6) {
                let length = if v6 { 16 } else { 4 };
                let suffix = if v6 { "6" } else { "4" };
                let plain = TYPE_PROTOCOL << 6 | TYPE_PORT;
                let value = (address << 6 | TYPE_PORT, length + 4);
                self.map(&mut batch, &format!("ports{suffix}"), (plain, 8), value);
                let key = (address << 12 | plain, length + 8);
                self.map(&mut batch, &format!("address_ports{suffix}"), key, value);
            }
        }
        self.chain(&mut batch, "guard", "filter", HOOK_PREROUTING, PRIORITY_RAW);
        self.chain(&mut batch, "prerouting", "nat", HOOK_PREROUTING, PRIORITY_DESTINATION);
        self.chain(&mut batch, "output", "nat", HOOK_OUTPUT, PRIORITY_DESTINATION);
        self.chain(&mut batch, "postrouting", "nat", HOOK_POSTROUTING, PRIORITY_SOURCE);
        let loopback = Subnet::holding(IpAddr::V4(Ipv4Addr::LOCALHOST), 8);
        if self.has(false) {
            // The bridge routes loopback addresses so that localhost has host ports too. Pods must not use that way.
            self.rule(&mut batch, "guard", |steps| {
                steps.came_by(&self.bridge).sent_to(&loopback).drop()
            });
        }
        for chain in ["prerouting", "output"] {
            for v6 in [false, true] {
                if self.has(v6) {
                    let suffix = if v6 { "6" } else { "4" };
                    for (map, with_address) in [("address_ports", true), ("ports", false)] {
                        self.rule(&mut batch, chain, |steps| {
                            steps.family(v6).for_this_machine().load_destination(v6, with_address);
                            steps.look_up(&format!("{map}{suffix}")).redirect(v6);
                        });
                    }
                }
            }
        }
        for subnet in &self.subnets {
            self.rule(&mut batch, "postrouting", |steps| {
                steps.leaves_not_by(&self.bridge).sent_from(subnet).masquerade();
            });
            // A pod that reaches a pod, or itself, by a host port: the answer must come back by this machine.
            self.rule(&mut batch, "postrouting", |steps| {
                steps
                    .leaves_by(&self.bridge)
                    .was_redirected()
                    .sent_from(subnet)
                    .masquerade();
            });
        }
        if self.has(false) {
            self.rule(&mut batch, "postrouting", |steps| {
                steps
                    .leaves_by(&self.bridge)
                    .was_redirected()
                    .sent_from(&loopback)
                    .masquerade();
            });
        }
        for port in ports {
            self.element(&mut batch, Command::NewSetElem, CREATE, port);
        }
        batch
    }

    fn has(&self, v6: bool) -> bool {
        self.subnets.iter().any(|subnet| subnet.is_v6() == v6)
    }

    fn table(&self, batch: &mut Batch, command: Command, flags: u16) {
        let verb = if matches!(command, Command::DelTable) {
            "delete"
        } else {
            "create"
        };
        batch.add(
            command,
            flags,
            format!("{verb} nftables table inet {}", self.name),
            |a| {
                a.text(1, &self.name);
            },
        );
    }

    fn map(&self, batch: &mut Batch, name: &str, key: (u32, u32), value: (u32, u32)) {
        batch.add(
            Command::NewSet,
            CREATE,
            format!("create nftables map {} {name}", self.name),
            |a| {
                a.text(1, &self.name)
                    .text(2, name)
                    .number(3, MAP)
                    .number(4, key.0)
                    .number(5, key.1);
                // An id by which the transaction may refer to it; unique because names differ, needed by the kernel only.
                a.number(6, value.0).number(7, value.1).number(10, key.0 ^ value.0);
            },
        );
    }

    fn chain(&self, batch: &mut Batch, name: &str, kind: &str, hook: u32, priority: i32) {
        batch.add(
            Command::NewChain,
            CREATE,
            format!("create nftables chain {} {name}", self.name),
            |a| {
                a.text(1, &self.name).text(3, name);
                a.nest(4, |a| {
                    a.number(1, hook).bytes(2, &priority.to_be_bytes());
                });
                a.text(7, kind);
            },
        );
    }

    fn rule(&self, batch: &mut Batch, chain: &str, steps: impl FnOnce(&mut Steps<'_, '_>)) {
        let attempt = format!("add rule to nftables chain {} {chain}", self.name);
        batch.add(Command::NewRule, CREATE | APPEND, attempt, |a| {
            a.text(1, &self.name).text(2, chain).nest(4, |a| steps(&mut Steps(a)));
        });
    }

    fn element(&self, batch: &mut Batch, command: Command, flags: u16, port: &HostPort) {
        let verb = if matches!(command, Command::DelSetElem) {
            "remove"
        } else {
            "add"
        };
        let attempt = format!(
            "{verb} host port {}/{} in nftables table inet {}",
            port.protocol, port.host_port, self.name
        );
        batch.add(command, flags, attempt, |a: &mut Attributes<'_>| {
            a.text(1, &self.name).text(2, port.map()).nest(3, |list| {
                list.nest(1, |element| {
                    element.nest(1, |key| {
                        key.bytes(1, &port.key());
                    });
                    if !matches!(command, Command::DelSetElem) {
                        element.nest(2, |value| {
                            value.bytes(1, &port.value());
                        });
                    }
                });
            });
        });
    }
}
