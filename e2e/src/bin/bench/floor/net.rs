//! The few messages of rtnetlink that a pod's network takes. See rtnetlink(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Of the bridge.
pub const GATEWAY: [u8; 4] = [10, 231, 0, 1];

/// The address of a pod.
pub fn address(n: usize) -> [u8; 4] {
    let [high, low] = u16::try_from(n % 60_000 + 2).unwrap_or(2).to_be_bytes();
    [10, 231, high, low]
}

/// A connection in the network namespace in which it was opened.
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message that grows.
struct Message(Vec<u8>);

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

impl Message {
    /// struct nlmsghdr; length and sequence are set by [`Netlink::ask`].
    fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self(bytes)
    }

    /// struct ifinfomsg.
    fn link(mut self, up: bool) -> Self {
        let flag = if up { libc::IFF_UP as u32 } else { 0 };
        self.0.extend([0; 8]);
        self.0.extend(flag.to_ne_bytes());
        self.0.extend(flag.to_ne_bytes());
        self
    }

    fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend(((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn name(self, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.push(0);
        self.put(IFLA_IFNAME, &bytes)
    }

    /// Everything that `fill` adds as the value of one attribute.
    fn nested(self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let inner = fill(Self(Vec::new()));
        self.put(kind, &inner.0)
    }
}

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let number = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, belongs to nobody.
        let socket = unsafe { OwnedFd::from_raw_fd(number) };
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request; what comes before the acknowledgement is returned.
    fn ask(&mut self, message: Message) -> io::Result<Vec<u8>> {
        let mut bytes = message.0;
        self.sequence += 1;
        let length = bytes.len() as u32;
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        let fd = self.socket.as_raw_fd();
        // SAFETY: the buffer is as long as told.
        if unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answers = Vec::new();
        let mut buffer = vec![0_u8; 32 << 10];
        loop {
            // SAFETY: the buffer is as long as told.
            let read = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
            let mut rest = &buffer[..read];
            while let (Some(length), Some(kind)) = (number(rest, 0), rest.get(4..6)) {
                let kind = u16::from_ne_bytes([kind[0], kind[1]]);
                if i32::from(kind) == libc::NLMSG_ERROR {
                    return match number(rest, 16) {
                        Some(0) => Ok(answers),
                        Some(code) => Err(io::Error::from_raw_os_error(-code.cast_signed())),
                        None => Err(io::ErrorKind::InvalidData.into()),
                    };
                }
                answers.extend(rest.get(16..length as usize).unwrap_or_default());
                rest = rest.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    pub fn add_bridge(&mut self, name: &str) -> io::Result<u32> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let message = Message::new(libc::RTM_NEWLINK, create)
            .link(true)
            .name(name)
            .put(IFLA_ADDRESS, &[0x0a, 0x58, 10, 231, 0, 1])
            .nested(IFLA_LINKINFO, |info| info.put(IFLA_INFO_KIND, b"bridge"));
        self.ask(message)?;
        let index = self.index(name)?;
        self.add_address(index, GATEWAY, 16)?;
        Ok(index)
    }

    /// Both ends at once, as cheaply as the kernel does it: one up and in the bridge, the other in the pod.
    pub fn add_veth(&mut self, name: &str, bridge: u32, peer: &str, netns: BorrowedFd) -> io::Result<()> {
        let create = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let message = Message::new(libc::RTM_NEWLINK, create)
            .link(true)
            .name(name)
            .put(IFLA_MASTER, &bridge.to_ne_bytes())
            .nested(IFLA_LINKINFO, |info| {
                info.put(IFLA_INFO_KIND, b"veth").nested(IFLA_INFO_DATA, |data| {
                    data.nested(VETH_INFO_PEER, |inner| {
                        inner
                            .link(false)
                            .name(peer)
                            .put(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes())
                    })
                })
            });
        self.ask(message).map(drop)
    }

    pub fn index(&mut self, name: &str) -> io::Result<u32> {
        let answer = self.ask(Message::new(libc::RTM_GETLINK, 0).link(false).name(name))?;
        // struct ifinfomsg: family, type, index.
        number(&answer, 4).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        self.ask(Message::new(libc::RTM_SETLINK, 0).link(true).name(name))
            .map(drop)
    }

    pub fn delete(&mut self, name: &str) -> io::Result<()> {
        self.ask(Message::new(libc::RTM_DELLINK, 0).link(false).name(name))
            .map(drop)
    }

    pub fn add_address(&mut self, index: u32, address: [u8; 4], prefix: u8) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ifaddrmsg: family, prefix, flags, scope, index.
        message.0.extend([libc::AF_INET as u8, prefix, 0, 0]);
        message.0.extend(index.to_ne_bytes());
        let message = message.put(IFA_LOCAL, &address).put(IFA_ADDRESS, &address);
        self.ask(message).map(drop)
    }

    pub fn add_default_route(&mut self, index: u32, gateway: [u8; 4]) -> io::Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
        let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
        let (scope, kind) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
        message
            .0
            .extend([libc::AF_INET as u8, 0, 0, 0, table, protocol, scope, kind]);
        message.0.extend([0; 4]);
        let message = message.put(RTA_GATEWAY, &gateway).put(RTA_OIF, &index.to_ne_bytes());
        self.ask(message).map(drop)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}
