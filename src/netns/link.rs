//! Devices, addresses and routes over rtnetlink, in the namespace of the thread that opens the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Result;
use super::socket::{Conversation, Refusal};
use super::subnet::Subnet;

/// A device as far as this room looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    /// Index of the bridge that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) is_bridge: bool,
    pub(super) mac: Vec<u8>,
    /// What its maker has written on it; mostly empty.
    pub(super) alias: String,
    pub(super) up: bool,
}

/// A veth pair that has one end here and the other in a pod.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    pub(super) host_name: &'a str,
    pub(super) bridge: u32,
    pub(super) mtu: u32,
    pub(super) peer_name: &'a str,
    pub(super) peer_mac: [u8; 6],
    pub(super) peer_netns: BorrowedFd<'a>,
}

/// A connection to rtnetlink.
pub(super) struct Links(Conversation);

impl Links {
    pub(super) fn open() -> Result<Self> {
        Conversation::open(NETLINK_ROUTE).map(Self)
    }

    /// The device of that name, if there is one.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<Link>> {
        self.get(LinkMessage::default(), vec![LinkAttribute::IfName(name.to_owned())])
            .map_err(|refusal| refusal.during(format!("look up device {name}")))
    }

    /// All ports of the bridge with this index.
    pub(super) fn ports(&mut self, bridge: u32) -> Result<Vec<Link>> {
        let answers = self
            .request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
            .map_err(|refusal| refusal.during("list devices"))?;
        Ok(answers
            .into_iter()
            .filter_map(as_link)
            .filter(|link| link.master == Some(bridge))
            .collect())
    }

    pub(super) fn set_up(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        up(&mut message);
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|refusal| refusal.during(format!("bring up device {name}")))
    }

    /// Writes on the device whose it is.
    pub(super) fn set_alias(&mut self, name: &str, alias: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::IfAlias(alias.to_owned()),
        ];
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|refusal| refusal.during(format!("name the owner of device {name}")))
    }

    /// Every subnet that a device leads to, with the device's index; not the default routes, nor the machine's own addresses.
    pub(super) fn subnets(&mut self) -> Result<Vec<(Subnet, u32)>> {
        let mut subnets = Vec::new();
        for family in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let answers = self
                .request(RouteNetlinkMessage::GetRoute(route(family)), NLM_F_DUMP)
                .map_err(|refusal| refusal.during("list routes"))?;
            for answer in answers {
                let RouteNetlinkMessage::NewRoute(found) = answer else {
                    continue;
                };
                let (prefix, unicast) = (
                    found.header.destination_prefix_length,
                    found.header.kind == RouteType::Unicast,
                );
                let mut destination = None;
                let mut device = None;
                for attribute in found.attributes {
                    match attribute {
                        RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = Some(IpAddr::V4(v4)),
                        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = Some(IpAddr::V6(v6)),
                        RouteAttribute::Oif(index) => device = Some(index),
                        _ => {}
                    }
                }
                let local = destination.is_some_and(|ip| match ip {
                    IpAddr::V4(v4) => v4.is_loopback(),
                    // fe80::/10 and ff00::/8 are every device's.
                    IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast() || v6.is_loopback(),
                });
                if let (Some(destination), Some(device)) = (destination, device)
                    && unicast
                    && !local
                    && prefix > 0
                {
                    subnets.push((Subnet::holding(destination, prefix), device));
                }
            }
        }
        Ok(subnets)
    }

    /// The device with this index.
    pub(super) fn at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get(message, Vec::new())
            .map_err(|refusal| refusal.during(format!("look up device {index}")))
    }

    /// Makes a bridge that is up. Its hardware address stays what it is when ports come and go, so that pods never
    /// have a stale one of their gateway.
    pub(super) fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        up(&mut message);
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
            ]),
        ];
        self.create(RouteNetlinkMessage::NewLink(message), libc::EEXIST)
            .map_err(|refusal| refusal.during(format!("create bridge {name}")))
    }

    /// Makes both ends at once: this one up and in the bridge, the other one in the pod. One request is all: moving
    /// a finished device to another namespace costs the kernel several times as much.
    pub(super) fn add_veth(&mut self, veth: &Veth<'_>) -> Result<()> {
        // The kernel can't bring the peer up here: it does so before the ends know each other.
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.peer_name.to_owned()),
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        up(&mut message);
        message.attributes = vec![
            LinkAttribute::IfName(veth.host_name.to_owned()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.create(RouteNetlinkMessage::NewLink(message), 0)
            .map_err(|refusal| refusal.during(format!("create veth pair {} and {}", veth.host_name, veth.peer_name)))
    }

    /// Lets the bridge send back to this port of it what came from there: a pod that reaches itself by the node's address,
    /// where the kernel rewrites addresses of bridged packets too (`bridge-nf-call-iptables`).
    pub(super) fn reflect(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
        ];
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|refusal| refusal.during(format!("let the bridge send back to device {name}")))
    }

    /// Deletes the device; one that is gone is no error.
    pub(super) fn delete(&mut self, name: &str) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.request(RouteNetlinkMessage::DelLink(message), NLM_F_ACK) {
            Err(refusal) if refusal.errno() != libc::ENODEV => Err(refusal.during(format!("delete device {name}"))),
            _ => Ok(()),
        }
    }

    /// As [`Links::delete`], but returns as soon as nobody can find the device: by then nothing reaches the other end or comes from
    /// it. The kernel frees what it held a grace period of RCU later, some 10 ms, and answers only then; a thread of its
    /// own waits for that.
    pub(super) fn delete_from_sight(&mut self, name: &str) -> Result<()> {
        let (told, heard) = mpsc::channel();
        let device = name.to_owned();
        // Threads begin in the namespaces of whoever starts them.
        let started = std::thread::Builder::new()
            .name("wharf-net-end".to_owned())
            .stack_size(super::thread::STACK)
            .spawn(move || {
                let result = Self::open().and_then(|mut links| {
                    let _ = told.send(None);
                    links.delete(&device)
                });
                // Nobody listens any more when the device was seen to be gone.
                let _ = told.send(Some(result));
            });
        if started.is_err() {
            return self.delete(name);
        }
        loop {
            match heard.recv_timeout(Duration::from_micros(500)) {
                Ok(Some(result)) => return result,
                // It begins now, or has begun.
                Ok(None) | Err(RecvTimeoutError::Timeout) => {}
                // The thread has panicked.
                Err(RecvTimeoutError::Disconnected) => return self.delete(name),
            }
            if self.find(name)?.is_none() {
                return Ok(());
            }
        }
    }

    /// Gives the device an address that is usable at once; one that it has already is no error.
    pub(super) fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        if address.is_ipv6() {
            // Addresses are handed out once only: no need to ask the others for a second.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        self.create(RouteNetlinkMessage::NewAddress(message), libc::EEXIST)
            .map_err(|refusal| refusal.during(format!("add address {address}/{prefix} to device {index}")))
    }

    /// The device's lasting addresses that can be reached from elsewhere, with their prefix lengths.
    pub(super) fn addresses(&mut self, index: u32) -> Result<Vec<(IpAddr, u8)>> {
        let answers = self
            .request(RouteNetlinkMessage::GetAddress(AddressMessage::default()), NLM_F_DUMP)
            .map_err(|refusal| refusal.during(format!("list addresses of device {index}")))?;
        let of_it = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(found) if found.header.index == index => Some(found),
            _ => None,
        });
        let lasting = of_it.filter(|found| {
            let flags = found.header.flags;
            found.header.scope == AddressScope::Universe && flags.contains(AddressHeaderFlags::Permanent)
        });
        // Where there is a peer's address, the local one is the device's; IPv6 has one of them only.
        let own = lasting.filter_map(|found| {
            let address = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| found.attributes.iter().find_map(wanted);
            let local = address(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = || {
                address(|attribute| match attribute {
                    AddressAttribute::Address(ip) => Some(*ip),
                    _ => None,
                })
            };
            local.or_else(any).map(|ip| (ip, found.header.prefix_len))
        });
        Ok(own.collect())
    }

    /// Moves the device to another namespace, where it has that name, is down and has no address.
    pub(super) fn hand_over(&mut self, link: &Link, name: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link.index;
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
        ];
        self.request(RouteNetlinkMessage::SetLink(message), NLM_F_ACK)
            .map(drop)
            .map_err(|refusal| refusal.during(format!("move device {} to another namespace as {name}", link.name)))
    }

    /// Adds the route for everything that has no better one; one that is there already is no error.
    pub(super) fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<()> {
        let mut message = route(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Boot;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
        self.create(RouteNetlinkMessage::NewRoute(message), libc::EEXIST)
            .map_err(|refusal| refusal.during(format!("add default route by {gateway}")))
    }

    /// The device by which `destination` is reached, if it is reached at all. Sends nothing.
    pub(super) fn device_towards(&mut self, destination: IpAddr) -> Result<Option<Link>> {
        let attempt = || format!("look up route to {destination}");
        let mut message = route(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(destination))];
        let answers = match self.request(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK) {
            Ok(answers) => answers,
            Err(refusal) if matches!(refusal.errno(), libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES) => {
                return Ok(None);
            }
            Err(refusal) => return Err(refusal.during(attempt())),
        };
        let device = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(found) => {
                found.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(index),
                    _ => None,
                })
            }
            _ => None,
        });
        let Some(index) = device else { return Ok(None) };
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get(message, Vec::new())
            .map_err(|refusal| refusal.during(attempt()))
    }

    fn get(
        &mut self,
        mut message: LinkMessage,
        attributes: Vec<LinkAttribute>,
    ) -> std::result::Result<Option<Link>, Refusal> {
        message.attributes = attributes;
        match self.request(RouteNetlinkMessage::GetLink(message), NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().find_map(as_link)),
            Err(refusal) if refusal.errno() == libc::ENODEV => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    fn create(&mut self, message: RouteNetlinkMessage, fine: i32) -> std::result::Result<(), Refusal> {
        match self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Err(refusal) if refusal.errno() != fine => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Makes the object, or changes the one that is there.
    pub(super) fn replace(&mut self, message: RouteNetlinkMessage) -> std::result::Result<(), Refusal> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)
            .map(drop)
    }

    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> std::result::Result<Vec<RouteNetlinkMessage>, Refusal> {
        let seq = self.0.next_seq();
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = seq;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let answers = self.0.ask(&bytes, seq..=seq).map_err(|(_, refusal)| refusal)?;
        // What can't be decoded is nothing that was asked for.
        Ok(answers
            .iter()
            .filter_map(|bytes| NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok())
            .filter_map(|message| match message.payload {
                NetlinkPayload::InnerMessage(inner) => Some(inner),
                _ => None,
            })
            .collect())
    }
}

fn up(message: &mut LinkMessage) {
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn route(towards: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(towards);
    message
}

fn as_link(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        master: None,
        is_bridge: false,
        mac: Vec::new(),
        alias: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(mac) => link.mac = mac,
            LinkAttribute::IfAlias(alias) => link.alias = alias,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::LinkInfo(infos) => link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    Some(link)
}
