//! Host ports as they are asked for, as leases and as elements of the nftables maps.

use std::net::IpAddr;

use wharf_proto::cri;

use super::leases::Lease;
use crate::netns::nft::HostPort;
use crate::netns::{Error, Result};

/// What every port lease's name begins with; no address does.
pub(super) const PREFIX: &str = "port-";

/// The host ports that `mappings` ask for, leading to a pod with `addresses`, of which there is at most one per family.
///
/// # Errors
/// Names the mapping with a port out of range, or with a host address that is none or of a family that the pod lacks.
pub(super) fn wanted(mappings: &[cri::PortMapping], addresses: &[IpAddr]) -> Result<Vec<HostPort>> {
    let mut ports = Vec::new();
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
        let host_port = port(mapping.host_port).ok_or_else(|| wrong("host port out of range"))?;
        let pod_port = port(mapping.container_port).ok_or_else(|| wrong("container port out of range"))?;
        let host_ip: Option<IpAddr> = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong("host address is not an IP address"))?),
        };
        let before = ports.len();
        ports.extend(
            addresses
                .iter()
                .filter(|ip| host_ip.is_none_or(|host| host.is_ipv6() == ip.is_ipv6()))
                .map(|pod_ip| HostPort {
                    protocol: number(protocol),
                    host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                    host_port,
                    pod_ip: *pod_ip,
                    pod_port,
                }),
        );
        if ports.len() == before {
            return Err(wrong("the pod has no address of that family"));
        }
    }
    // The same port asked for twice by one pod is asked for once.
    let mut seen = std::collections::HashSet::new();
    ports.retain(|port| seen.insert(lease_name(port)));
    Ok(ports)
}

/// Name of the port's lease.
pub(super) fn lease_name(port: &HostPort) -> String {
    let any = if port.pod_ip.is_ipv6() { "::" } else { "0.0.0.0" };
    let host = port.host_ip.map_or_else(|| any.to_owned(), |ip| ip.to_string());
    format!("{PREFIX}{}-{}-{host}", port.protocol, port.host_port)
}

/// What the port's lease says beside its holder.
pub(super) fn lease_note(port: &HostPort) -> String {
    format!("{} {}", port.pod_ip, port.pod_port)
}

/// The port as a person knows it.
pub(super) fn display(port: &HostPort) -> String {
    let protocol = match port.protocol {
        6 => "tcp",
        17 => "udp",
        _ => "sctp",
    };
    let host = port.host_ip.map(|ip| format!(" on {ip}")).unwrap_or_default();
    format!("{protocol}/{}{host}", port.host_port)
}

/// The port that a lease is for; none if it is for an address or was not written completely.
pub(super) fn from_lease(lease: &Lease) -> Option<HostPort> {
    let mut name = lease.name.strip_prefix(PREFIX)?.splitn(3, '-');
    let (protocol, host_port, host) = (name.next()?, name.next()?, name.next()?);
    let (pod_ip, pod_port) = lease.note.split_once(' ')?;
    let host: IpAddr = host.parse().ok()?;
    Some(HostPort {
        protocol: protocol.parse().ok()?,
        host_ip: (!host.is_unspecified()).then_some(host),
        host_port: host_port.parse().ok()?,
        pod_ip: pod_ip.parse().ok()?,
        pod_port: pod_port.parse().ok()?,
    })
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
        let ports = wanted(
            &[mapping(80, 8080, ""), mapping(0, 1, ""), mapping(80, 8080, "")],
            &both(),
        )
        .unwrap();
        let names: Vec<_> = ports.iter().map(lease_name).collect();
        assert_eq!(names, ["port-6-80-0.0.0.0", "port-6-80-::"]);
        let one = wanted(&[mapping(80, 8080, "0.0.0.0")], &both()).unwrap();
        assert_eq!(one.iter().map(lease_name).collect::<Vec<_>>(), names[..1]);
    }

    #[test]
    fn a_lease_leads_back_to_its_port() {
        for port in wanted(
            &[mapping(80, 81, ""), mapping(82, 83, "::1"), mapping(84, 85, "1.2.3.4")],
            &both(),
        )
        .unwrap()
        {
            let lease = Lease {
                name: lease_name(&port),
                holder: "p".into(),
                note: lease_note(&port),
            };
            assert_eq!(from_lease(&lease), Some(port));
        }
        let address = Lease {
            name: "10.9.0.2".into(),
            holder: "p".into(),
            note: String::new(),
        };
        assert_eq!(from_lease(&address), None);
    }

    #[test]
    fn ports_that_can_not_be_are_named() {
        for (bad, word) in [
            (mapping(70000, 1, ""), "host port"),
            (mapping(-1, 1, ""), "host port"),
            (mapping(1, 0, ""), "container port"),
            (mapping(1, 1, "localhost"), "IP address"),
        ] {
            let text = wanted(&[bad], &both()).unwrap_err().to_string();
            assert!(text.contains(word), "{text}");
        }
        assert!(
            wanted(&[mapping(1, 1, "::1")], &both()[..1])
                .unwrap_err()
                .to_string()
                .contains("family")
        );
    }
}
