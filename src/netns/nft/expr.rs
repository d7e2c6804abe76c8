//! Expressions: what a rule does, step by step, with the kernel's registers. A comparison that fails ends the rule.

use std::net::{IpAddr, Ipv6Addr};

use super::batch::Attributes;
use crate::netns::subnet::Subnet;

const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// `NFT_REG_1`, the first of four registers of 16 bytes.
pub(super) const REG_1: u32 = 1;
pub(super) const REG_2: u32 = 2;
/// `NFT_REG32_00`: the same memory as `NFT_REG_1`, in 16 pieces of 4 bytes.
const REG32_00: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

/// `NF_DROP`.
const DROP: u32 = 0;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: source ports at random, so that two connections seldom race for one.
const RANDOM_FULLY: u32 = 0x10;
/// `IPS_DST_NAT` in the status of a connection.
const DESTINATION_CHANGED: u32 = 1 << 5;
/// `RTN_LOCAL`: an address of this machine.
const LOCAL: u32 = 2;

#[derive(Clone, Copy)]
#[repr(u32)]
enum Base {
    Network = 1,
    Transport = 2,
}

/// A 4-byte piece of the register file.
pub(super) fn piece(number: u32) -> u32 {
    REG32_00 + number
}

/// The steps of one rule.
pub(super) struct Steps<'a, 'b>(pub(super) &'a mut Attributes<'b>);

impl Steps<'_, '_> {
    fn step(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.0.nest(LIST_ELEM, |element| {
            element.text(1, name).nest(2, fill);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.step("meta", |a| {
            a.number(2, key).number(1, register);
        })
    }

    fn payload(&mut self, base: Base, offset: u32, length: u32, register: u32) -> &mut Self {
        self.step("payload", |a| {
            a.number(1, register)
                .number(2, base as u32)
                .number(3, offset)
                .number(4, length);
        })
    }

    fn compare(&mut self, equal: bool, value: &[u8]) -> &mut Self {
        self.step("cmp", |a| {
            a.number(1, REG_1).number(2, u32::from(!equal)).nest(3, |data| {
                data.bytes(DATA_VALUE, value);
            });
        })
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        self.step("bitwise", |a| {
            a.number(1, REG_1)
                .number(2, REG_1)
                .number(3, mask.len() as u32)
                .nest(4, |data| {
                    data.bytes(DATA_VALUE, mask);
                })
                .nest(5, |data| {
                    data.bytes(DATA_VALUE, &vec![0; mask.len()]);
                });
        })
    }

    fn device(&mut self, key: u32, equal: bool, name: &str) -> &mut Self {
        let mut value = [0; libc::IFNAMSIZ];
        value[..name.len()].copy_from_slice(name.as_bytes());
        self.meta(key, REG_1).compare(equal, &value)
    }

    /// Goes on if the packet came in by this device.
    pub(super) fn came_by(&mut self, device: &str) -> &mut Self {
        self.device(6, true, device)
    }

    /// Goes on if the packet came in by another device.
    pub(super) fn came_not_by(&mut self, device: &str) -> &mut Self {
        self.device(6, false, device)
    }

    /// Goes on if the packet came in by a device whose name begins so.
    pub(super) fn came_by_any(&mut self, prefix: &str) -> &mut Self {
        self.meta(6, REG_1).compare(true, prefix.as_bytes())
    }

    /// Goes on if the packet leaves by this device.
    pub(super) fn leaves_by(&mut self, device: &str) -> &mut Self {
        self.device(7, true, device)
    }

    /// Goes on if the packet leaves by a device whose name begins so.
    pub(super) fn leaves_by_any(&mut self, prefix: &str) -> &mut Self {
        self.meta(7, REG_1).compare(true, prefix.as_bytes())
    }

    /// Goes on if the packet is this machine's ICMP message that nobody listens at a port of UDP.
    pub(super) fn tells_that_nobody_listens(&mut self, v6: bool, port: u16) -> &mut Self {
        // ICMP: type 3 (destination unreachable), code 3 (port); ICMPv6: type 1, code 4. Behind its 8 bytes comes the header
        // of the packet that it is about, without options, and then that packet's ports.
        let (protocol, kind, header) = if v6 { (58, [1, 4], 40) } else { (1, [3, 3], 20) };
        self.meta(16, REG_1)
            .compare(true, &[protocol])
            .payload(Base::Transport, 0, 2, REG_1)
            .compare(true, &kind)
            .payload(Base::Transport, 8 + header + 2, 2, REG_1)
            .compare(true, &port.to_be_bytes())
    }

    /// Goes on if the packet came in by one of the devices in the set.
    pub(super) fn came_by_one_of(&mut self, set: &str) -> &mut Self {
        self.meta(6, REG_1).step("lookup", |a| {
            a.text(1, set).number(2, REG_1);
        })
    }

    /// Goes on if the packet leaves by another device.
    pub(super) fn leaves_not_by(&mut self, device: &str) -> &mut Self {
        self.device(7, false, device)
    }

    /// Goes on if the packet is of this address family.
    pub(super) fn family(&mut self, v6: bool) -> &mut Self {
        self.meta(15, REG_1)
            .compare(true, &[if v6 { libc::AF_INET6 } else { libc::AF_INET } as u8])
    }

    /// Goes on if the sender is in `subnet`; checks the address family itself.
    pub(super) fn sent_from(&mut self, subnet: &Subnet) -> &mut Self {
        self.address_in(subnet, if subnet.is_v6() { 8 } else { 12 })
    }

    /// Goes on if the receiver is in `subnet`; checks the address family itself.
    pub(super) fn sent_to(&mut self, subnet: &Subnet) -> &mut Self {
        self.address_in(subnet, if subnet.is_v6() { 24 } else { 16 })
    }

    fn address_in(&mut self, subnet: &Subnet, offset: u32) -> &mut Self {
        let (network, mask) = (octets(subnet.network()), octets(subnet.mask()));
        self.family(subnet.is_v6())
            .payload(Base::Network, offset, network.len() as u32, REG_1)
            .mask(&mask)
            .compare(true, &network)
    }

    /// Goes on if the receiver is not IPv6's localhost, which the kernel does not let out: better refused than never answered.
    pub(super) fn not_for_localhost_v6(&mut self) -> &mut Self {
        self.payload(Base::Network, 24, 16, REG_1)
            .compare(false, &octets(Ipv6Addr::LOCALHOST.into()))
    }

    /// Goes on if the packet is for an address of this machine.
    pub(super) fn for_this_machine(&mut self) -> &mut Self {
        self.step("fib", |a| {
            // Result: type of the address; look at the destination.
            a.number(1, REG_1).number(2, 3).number(3, 2);
        })
        .compare(true, &LOCAL.to_ne_bytes())
    }

    /// Goes on if the connection's destination was changed here.
    pub(super) fn was_redirected(&mut self) -> &mut Self {
        self.step("ct", |a| {
            a.number(2, 2).number(1, REG_1);
        })
        .mask(&DESTINATION_CHANGED.to_ne_bytes())
        .compare(false, &[0; 4])
    }

    /// Goes on if the connection's destination was not changed here.
    pub(super) fn was_not_redirected(&mut self) -> &mut Self {
        self.step("ct", |a| {
            a.number(2, 2).number(1, REG_1);
        })
        .mask(&DESTINATION_CHANGED.to_ne_bytes())
        .compare(true, &[0; 4])
    }

    /// Loads the packet's destination address, protocol and port from register piece 0 on; the address only if `with_address`.
    pub(super) fn load_destination(&mut self, v6: bool, with_address: bool) -> &mut Self {
        let mut next = 0;
        if with_address {
            let (offset, length) = if v6 { (24, 16) } else { (16, 4) };
            self.payload(Base::Network, offset, length, REG_1);
            next = length / 4;
        }
        self.meta(16, piece(next))
            .payload(Base::Transport, 2, 2, piece(next + 1))
    }

    /// As [`Steps::load_destination`], of the destination that the connection's first packet had when it came.
    pub(super) fn load_first_destination(&mut self, v6: bool, with_address: bool) -> &mut Self {
        let mut next = 0;
        if with_address {
            let (key, length) = if v6 { (22, 16) } else { (20, 4) };
            self.connection(key, REG_1);
            next = length / 4;
        }
        self.meta(16, piece(next)).connection(12, piece(next + 1))
    }

    /// A fact about the connection in its first direction.
    fn connection(&mut self, key: u32, register: u32) -> &mut Self {
        self.step("ct", |a| {
            a.number(2, key).number(1, register).bytes(3, &[0]);
        })
    }

    /// Replaces what lies from register 1 on by the map's value for it; goes on if there is one.
    pub(super) fn look_up(&mut self, map: &str) -> &mut Self {
        self.step("lookup", |a| {
            a.text(1, map).number(2, REG_1).number(3, REG_1);
        })
    }

    /// Sends the connection to the address and port that lie from register 1 on.
    pub(super) fn redirect(&mut self, v6: bool) {
        let (family, port) = if v6 {
            (libc::AF_INET6, REG_2)
        } else {
            (libc::AF_INET, piece(1))
        };
        self.step("nat", |a| {
            a.number(1, 1).number(2, family as u32).number(3, REG_1).number(5, port);
        });
    }

    /// Makes the packet come from the machine's own address.
    pub(super) fn masquerade(&mut self) {
        self.step("masq", |a| {
            a.number(1, RANDOM_FULLY);
        });
    }

    /// Drops the packet.
    pub(super) fn drop(&mut self) {
        self.step("immediate", |a| {
            a.number(1, VERDICT_REGISTER).nest(2, |data| {
                data.nest(DATA_VERDICT, |verdict| {
                    verdict.number(1, DROP);
                });
            });
        });
    }
}

/// The address in network byte order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
