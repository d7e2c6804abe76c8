//! Host ports as they are asked for, as they are written down, and as elements of the nftables maps.

use std::net::{IpAddr, Ipv6Addr};

use wharf_proto::cri;

use crate::netns::nft::HostPort;
use crate::netns::{Error, Result};

/// A host port that a pod asks for, whatever addresses it has or will have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The address of this machine that it is for; none is all, an unspecified one all of its family.
    pub(super) host_ip: Option<IpAddr>,
    pub(super) host_port: u16,
    pub(super) pod_port: u16,
}

impl Wanted {
    /// True if both can't be served: the same port on an address of both.
    pub(super) fn clashes(&self, other: &Self) -> bool {
        let alike = self.protocol == other.protocol && self.host_port == other.host_port;
        alike
            && match (self.host_ip, other.host_ip) {
                (Some(one), Some(two)) => {
                    let all = one.is_unspecified() || two.is_unspecified();
                    one.is_ipv6() == two.is_ipv6() && (all || one == two)
                }
                _ => true,
            }
    }

    /// The way to a pod at `address`, if the port is one of that family.
    pub(super) fn leading_to(&self, address: IpAddr) -> Option<HostPort> {
        self.host_ip
            .is_none_or(|host| host.is_ipv6() == address.is_ipv6())
            .then(|| HostPort {
                protocol: self.protocol,
                host_ip: self.host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: self.host_port,
                pod_ip: address,
                pod_port: self.pod_port,
            })
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "sctp",
        };
        write!(f, "{protocol}/{}", self.host_port)?;
        match self.host_ip.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => write!(f, " on {ip}"),
            None => Ok(()),
        }
    }
}

/// The host ports that `mappings` ask for, each once.
///
/// # Errors
/// Names the mapping with a port out of range or with a host address that is none.
pub(super) fn wanted(mappings: &[cri::PortMapping]) -> Result<Vec<Wanted>> {
    let mut all: Vec<Wanted> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let protocol = mapping.protocol();
        let wrong = |reason: &str| Error::PortMapping {
            mapping: format!(
                "{}:{} to {}/{}",
                mapping.host_ip,
                mapping.host_port,
                mapping.container_port,
                protocol.as_str_name()
            ),
            reason: reason.to_owned(),
        };
        let port = |number: i32| u16::try_from(number).ok().filter(|port| *port != 0);
        let host_ip = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong("host address is not an IP address"))?),
        };
        if host_ip == Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) {
            return Err(wrong(
                "the kernel lets nothing out of IPv6's localhost, so no port of it can lead to a pod; take 127.0.0.1",
            ));
        }
        let wanted = Wanted {
            protocol: number(protocol),
            host_ip,
            host_port: port(mapping.host_port).ok_or_else(|| wrong("host port out of range"))?,
            pod_port: port(mapping.container_port).ok_or_else(|| wrong("container port out of range"))?,
        };
        if !all.contains(&wanted) {
            if all.iter().any(|other| other.clashes(&wanted)) {
                return Err(wrong(
                    "the pod asks for this host port twice, for different ports of its own",
                ));
            }
            all.push(wanted);
        }
    }
    Ok(all)
}

/// The ways to a pod with `addresses`, of which the first of each family counts.
///
/// # Errors
/// Names a port of a family that the pod has no address of.
pub(super) fn ways(ports: &[Wanted], addresses: &[IpAddr]) -> Result<Vec<HostPort>> {
    let first = |v6: bool| addresses.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let mut ways = Vec::new();
    for port in ports {
        let before = ways.len();
        ways.extend(
            [first(false), first(true)]
                .into_iter()
                .flatten()
                .filter_map(|ip| port.leading_to(ip)),
        );
        if ways.len() == before {
            return Err(Error::PortMapping {
                mapping: port.to_string(),
                reason: "the pod has no address of that family".to_owned(),
            });
        }
    }
    Ok(ways)
}

fn number(protocol: cri::Protocol) -> u8 {
    match protocol {
        cri::Protocol::Tcp => 6,
        cri::Protocol::Udp => 17,
        cri::Protocol::Sctp => 132,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_port: i32, container_port: i32, host_ip: &str) -> cri::PortMapping {
        cri::PortMapping {
            host_port,
            container_port,
            host_ip: host_ip.into(),
            ..Default::default()
        }
    }

    fn both() -> Vec<IpAddr> {
        vec!["10.9.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]
    }

    #[test]
    fn a_port_without_host_address_serves_both_families() {
        let ports = wanted(&[mapping(80, 8080, ""), mapping(0, 1, ""), mapping(80, 8080, "")]).unwrap();
        assert_eq!(ports.len(), 1);
        let to: Vec<_> = ways(&ports, &both()).unwrap().iter().map(|way| way.pod_ip).collect();
        assert_eq!(to, both());
        let one = wanted(&[mapping(80, 8080, "0.0.0.0")]).unwrap();
        assert_eq!(ways(&one, &both()).unwrap().len(), 1);
    }

    #[test]
    fn ports_clash_where_one_address_would_have_both() {
        let port = |host_ip: &str| wanted(&[mapping(80, 1, host_ip)]).unwrap().remove(0);
        for (one, two, clash) in [
            ("", "", true),
            ("", "127.0.0.1", true),
            ("0.0.0.0", "127.0.0.1", true),
            ("0.0.0.0", "fd00::1", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "192.0.2.1", false),
            ("::", "", true),
        ] {
            assert_eq!(port(one).clashes(&port(two)), clash, "{one:?} {two:?}");
            assert_eq!(port(two).clashes(&port(one)), clash, "{two:?} {one:?}");
        }
        assert!(wanted(&[mapping(80, 1, ""), mapping(80, 2, "")]).is_err());
    }

    #[test]
    fn ports_that_can_not_be_are_named() {
        for (bad, word) in [
            (mapping(70000, 1, ""), "host port"),
            (mapping(-1, 1, ""), "host port"),
            (mapping(1, 0, ""), "container port"),
            (mapping(1, 1, "localhost"), "IP address"),
            (mapping(1, 1, "::1"), "take 127.0.0.1"),
        ] {
            let text = wanted(&[bad]).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        let v6 = wanted(&[mapping(1, 1, "fd00::1")]).unwrap();
        let text = ways(&v6, &both()[..1]).unwrap_err().to_string();
        assert!(text.contains("family"), "{text}");
    }
}
