//! Who is called what on which network. Changes are seen by the next question; no question waits for a change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

/// A pod on a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::netns) struct Member {
    pub(in crate::netns) pod: String,
    /// The first is the one that a reverse question is answered with. In small letters.
    pub(in crate::netns) names: Vec<String>,
    pub(in crate::netns) ips: Vec<IpAddr>,
    /// Who is asked for the pod what is not known here; the node's own name servers if there are none.
    pub(in crate::netns) servers: Vec<IpAddr>,
}

#[derive(Debug, Default)]
struct Zone {
    /// Nothing is asked outside.
    internal: bool,
    members: Vec<Arc<Member>>,
}

/// All names of this node's networks.
#[derive(Debug, Default)]
pub(in crate::netns) struct Names(RwLock<HashMap<String, Zone>>);

/// What a pod may know.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// The name's addresses, of both families.
    Addresses(Vec<IpAddr>),
    /// The address's name.
    Name(String),
    /// Nothing; these servers may know, none are the node's.
    Elsewhere(Vec<IpAddr>),
    /// Nothing, and nobody else may be asked.
    Nothing,
}

/// What a pod asks.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked<'a> {
    Name(&'a str),
    Address(IpAddr),
}

impl Names {
    /// Enters a pod on a network, instead of what it was there before.
    pub(in crate::netns) fn enter(&self, network: &str, internal: bool, member: Member) {
        let mut zones = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let zone = zones.entry(network.to_owned()).or_default();
        zone.internal = internal;
        zone.members.retain(|other| other.pod != member.pod);
        zone.members.push(Arc::new(member));
    }

    /// Takes a pod off a network.
    pub(in crate::netns) fn leave(&self, network: &str, pod: &str) {
        let mut zones = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(zone) = zones.get_mut(network) {
            zone.members.retain(|other| other.pod != pod);
            if zone.members.is_empty() {
                zones.remove(network);
            }
        }
    }

    /// What the pod at `from` on `network` gets to know; none if there is no such pod.
    pub(super) fn ask(&self, network: &str, from: IpAddr, asked: Asked<'_>) -> Option<Known> {
        let zones = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let asker = zones
            .get(network)?
            .members
            .iter()
            .find(|member| member.ips.contains(&from))?;
        // A pod knows the names of all the networks that it is on.
        let own: Vec<&Zone> = zones
            .values()
            .filter(|zone| zone.members.iter().any(|member| member.pod == asker.pod))
            .collect();
        let members = own.iter().flat_map(|zone| &zone.members);
        let known = match asked {
            Asked::Name(name) => {
                let named: Vec<_> = members
                    .filter(|member| member.names.iter().any(|own| own == name))
                    .collect();
                let ips = named.iter().flat_map(|member| member.ips.iter().copied()).collect();
                (!named.is_empty()).then_some(Known::Addresses(ips))
            }
            Asked::Address(ip) => {
                let mut of = members.filter(|member| member.ips.contains(&ip));
                of.find_map(|member| member.names.first()).cloned().map(Known::Name)
            }
        };
        Some(known.unwrap_or_else(|| match own.iter().all(|zone| zone.internal) {
            true => Known::Nothing,
            false => Known::Elsewhere(asker.servers.clone()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(pod: &str, names: &[&str], ip: &str) -> Member {
        Member {
            pod: pod.into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ips: vec![ip.parse().unwrap()],
            servers: Vec::new(),
        }
    }

    #[test]
    fn a_pod_knows_the_names_of_its_networks_and_no_others() {
        let names = Names::default();
        names.enter("front", false, member("a", &["a"], "10.1.0.2"));
        names.enter("front", false, member("b", &["b", "web"], "10.1.0.3"));
        names.enter("back", true, member("b", &["b"], "10.2.0.3"));
        names.enter("back", true, member("c", &["c", "web"], "10.2.0.4"));
        let ask = |network: &str, from: &str, asked| names.ask(network, from.parse().unwrap(), asked);
        let ips = |all: &[&str]| Some(Known::Addresses(all.iter().map(|ip| ip.parse().unwrap()).collect()));
        assert_eq!(ask("front", "10.1.0.2", Asked::Name("web")), ips(&["10.1.0.3"]));
        assert_eq!(
            ask("front", "10.1.0.2", Asked::Name("c")),
            Some(Known::Elsewhere(vec![]))
        );
        assert_eq!(ask("front", "10.1.0.3", Asked::Name("c")), ips(&["10.2.0.4"]));
        assert_eq!(ask("back", "10.2.0.4", Asked::Name("a")), Some(Known::Nothing));
        assert_eq!(ask("front", "10.9.9.9", Asked::Name("a")), None);
        let reverse = Asked::Address("10.1.0.3".parse().unwrap());
        assert_eq!(ask("front", "10.1.0.2", reverse), Some(Known::Name("b".into())));
        names.leave("front", "b");
        assert_eq!(
            ask("front", "10.1.0.2", Asked::Name("web")),
            Some(Known::Elsewhere(vec![]))
        );
        names.enter("front", false, member("a", &["other"], "10.1.0.9"));
        assert_eq!(
            ask("front", "10.1.0.2", Asked::Name("a")),
            None,
            "it has another address now"
        );
    }
}
