//! What connects pods: devices, packet filters, forwarding, plugins.

use std::io;
use std::path::Path;
use std::thread;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};
use wharf_proto::api::Finding;

use super::{failure, ok, warning};
use crate::config::{Cni, Config, NetworkMode};

/// All about the configured network.
pub fn findings(config: &Config) -> Vec<Finding> {
    let mut all = devices(config.network);
    all.push(forwarding(config.network));
    if config.network == NetworkMode::Cni {
        all.extend(cni(&config.cni));
    }
    all
}

/// Makes a bridge and a veth pair and asks for nftables, in a network namespace that ends with its thread: modules
/// may be built in, loaded, or loaded on demand, and only trying tells.
fn devices(mode: NetworkMode) -> Vec<Finding> {
    let tried = thread::Builder::new().name("doctor".into()).spawn(|| -> io::Result<_> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok([
            ("bridge", make(InfoKind::Bridge, "doctor0"), "CONFIG_BRIDGE"),
            ("veth", make(InfoKind::Veth, "doctor1"), "CONFIG_VETH"),
            (
                "nftables",
                nftables(),
                "CONFIG_NF_TABLES with CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_MASQ",
            ),
        ])
    });
    let tried = tried.and_then(|thread| {
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
    });
    // CNI plugins may do without; Wharf's own network can't.
    let judge = if mode == NetworkMode::Builtin { failure } else { warning };
    match tried {
        Ok(results) => results
            .into_iter()
            .map(|(check, result, option)| match result {
                Ok(()) => ok(check, "available"),
                Err(error) => judge(check, error.to_string(), format!("Use a kernel with {option}.")),
            })
            .collect(),
        Err(error) => {
            let found = format!("not tried: a network namespace can't be made: {error}");
            let advice = "Run this as root.";
            ["bridge", "veth", "nftables"]
                .map(|check| warning(check, found.as_str(), advice))
                .into()
        }
    }
}

fn make(kind: InfoKind, name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
    ];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let answer = ask(NETLINK_ROUTE, &bytes)?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::Error(error) => error.code.map_or(Ok(()), |_| Err(error.to_io())),
        _ => Ok(()),
    }
}

/// Asks nftables for its generation (NFT_MSG_GETGEN), the smallest question it answers.
fn nftables() -> io::Result<()> {
    const NFNL_SUBSYS_NFTABLES: u16 = 10;
    const NFT_MSG_GETGEN: u16 = 16;
    const LENGTH: usize = 20;
    let mut message = [0u8; LENGTH];
    message[..4].copy_from_slice(&(LENGTH as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN).to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&1u32.to_ne_bytes());
    let answer = ask(NETLINK_NETFILTER, &message)?;
    const NLMSG_ERROR: u16 = 2;
    let field = |at: usize| {
        answer
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, i32::from_ne_bytes)
    };
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u16::from_ne_bytes);
    match (kind, field(16)) {
        (NLMSG_ERROR, code) if code != 0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Ok(()),
    }
}

fn ask(protocol: isize, message: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(message, 0)?;
    Ok(socket.recv_from_full()?.0)
}

/// Whether the node passes packets on.
fn forwarding(mode: NetworkMode) -> Finding {
    let on = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")
        .unwrap_or_default()
        .trim()
        == "1";
    let writable = nix::unistd::access("/proc/sys/net/ipv4/ip_forward", nix::unistd::AccessFlags::W_OK).is_ok();
    match (on, mode, writable) {
        (true, ..) => ok("ip_forward", "on"),
        (false, NetworkMode::Builtin, true) => ok("ip_forward", "off; the built-in network turns it on"),
        _ => warning(
            "ip_forward",
            "off: pods reach nothing beyond this node",
            "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d for the next boot.",
        ),
    }
}

/// A network configuration, and the plugins for it.
fn cni(config: &Cni) -> Vec<Finding> {
    const CHECK: &str = "CNI";
    let mut names = configurations(&config.conf_dir);
    names.sort();
    let place = config.conf_dir.display();
    let configuration = match names.first() {
        Some(name) => ok(CHECK, format!("{place}/{name}")),
        None => failure(
            CHECK,
            format!("no configuration in {place}"),
            "Install a network (its installer writes one), or set network = \"builtin\".",
        ),
    };
    let dirs: Vec<String> = config.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let count: usize = config
        .bin_dirs
        .iter()
        .filter_map(|dir| dir.read_dir().ok())
        .map(Iterator::count)
        .sum();
    let plugins = if count > 0 {
        ok("CNI plugins", format!("{count} in {}", dirs.join(", ")))
    } else {
        let advice = "Install them (Debian: containernetworking-plugins), or correct cni.bin_dirs.";
        failure("CNI plugins", format!("none in {}", dirs.join(", ")), advice)
    };
    vec![configuration, plugins]
}

fn configurations(dir: &Path) -> Vec<String> {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_proto::api::Severity;

    #[test]
    fn a_node_without_cni_is_told_what_to_install() {
        let config = Cni {
            conf_dir: "/nowhere/net.d".into(),
            bin_dirs: vec!["/nowhere/bin".into()],
            ..Cni::default()
        };
        let findings = cni(&config);
        assert!(
            findings.iter().all(|finding| finding.severity() == Severity::Failure),
            "{findings:?}"
        );
        assert!(findings[0].found.contains("/nowhere/net.d"));
    }
}
