//! From what a person asks for to a definition: names, subnets that overlap nothing, gateways.

use std::net::IpAddr;

use sha2::{Digest, Sha256};
use wharf_proto::record::{NamedNetwork, NetworkRange};

use crate::netns::pool::Pool;
use crate::netns::subnet::Subnet;
use crate::netns::{Error, Result};

/// Names of bridges begin so, by which the rules know them.
pub(in crate::netns) const BRIDGE_PREFIX: &str = "wb-";
/// Names with a meaning of their own on the command line.
const RESERVED: [&str; 4] = ["default", "bridge", "host", "none"];
/// Subnets that are chosen from when none is asked for: 10.122.0.0/24 to 10.122.255.0/24, and fd00:122:0::/64 and on.
const CHOICES: u16 = 256;
const LONGEST_NAME: usize = 63;

/// A subnet that is in use, and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Used {
    pub(super) subnet: Subnet,
    pub(super) by: String,
}

/// Completes a definition whose subnets were asked for or left open. An empty subnet of a family is chosen.
///
/// # Errors
/// [`Error::BadNetwork`] with what is wrong.
pub(super) fn complete(mut wanted: NamedNetwork, used: &[Used]) -> Result<NamedNetwork> {
    let wrong = |reason: String| Error::BadNetwork {
        name: wanted.name.clone(),
        reason,
    };
    check_name(&wanted.name).map_err(wrong)?;
    if wanted.mtu != 0 && !(1280..=65535).contains(&wanted.mtu) {
        return Err(wrong(format!("MTU {} is not between 1280 and 65535", wanted.mtu)));
    }
    if wanted.ranges.is_empty() {
        wanted.ranges.push(NetworkRange::default());
    }
    let wrong = |reason: String| Error::BadNetwork {
        name: wanted.name.clone(),
        reason,
    };
    let mut used = used.to_vec();
    let mut families = [false, false];
    for range in &mut wanted.ranges {
        let v6 = range.subnet.contains(':') || range.subnet.is_empty() && range.v6;
        if std::mem::replace(&mut families[usize::from(v6)], true) {
            return Err(wrong("has more than one subnet of a family".to_owned()));
        }
        if range.subnet.is_empty() {
            range.subnet = choose(v6, &used)
                .ok_or_else(|| wrong("no subnet is free; name one".to_owned()))?
                .to_string();
        } else {
            let subnet = parse(&range.subnet, v6).map_err(wrong)?;
            if let Some(other) = used.iter().find(|other| other.subnet.overlaps(&subnet)) {
                let (of, by) = (other.subnet, &other.by);
                return Err(wrong(format!("subnet {subnet} overlaps with {of} of {by}")));
            }
            range.subnet = subnet.to_string();
        }
        let pool = pool(range).map_err(wrong)?;
        range.gateway = pool.gateway.to_string();
        range.v6 = v6;
        used.push(Used {
            subnet: pool.subnet,
            by: "the same network".to_owned(),
        });
    }
    wanted.ranges.sort_by_key(|range| range.v6);
    wanted.bridge = bridge(&wanted.name);
    Ok(wanted)
}

/// The addresses that a range of a definition stands for.
///
/// # Errors
/// A sentence about what is wrong with it.
pub(super) fn pool(range: &NetworkRange) -> std::result::Result<Pool, String> {
    let v6 = range.subnet.contains(':');
    let subnet = parse(&range.subnet, v6)?;
    let gateway: Option<IpAddr> = match range.gateway.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|_| format!("gateway {text:?} is not an address"))?,
        ),
    };
    let part = match range.ip_range.as_str() {
        "" => None,
        text => Some(Subnet::part(text).ok_or_else(|| format!("ip-range {text:?} is not in CIDR notation"))?),
    };
    Pool::new(subnet, gateway, part)
}

fn parse(text: &str, v6: bool) -> std::result::Result<Subnet, String> {
    Subnet::parse("subnet", text, v6).map_err(|error| error.to_string())
}

fn check_name(name: &str) -> std::result::Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let sane = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(fits);
    if !sane || name.len() > LONGEST_NAME {
        let reason = "a name has 1 to 63 letters, digits, \"_\", \".\" and \"-\", and begins with a letter or digit";
        return Err(reason.to_owned());
    }
    match RESERVED.contains(&name) {
        true => Err("this name has a meaning of its own".to_owned()),
        false => Ok(()),
    }
}

fn choose(v6: bool, used: &[Used]) -> Option<Subnet> {
    let candidate = |number: u16| {
        let text = match v6 {
            false => format!("10.122.{number}.0/24"),
            true => format!("fd00:122:{number:x}::/64"),
        };
        parse(&text, v6).ok()
    };
    (0..CHOICES)
        .filter_map(candidate)
        .find(|subnet| used.iter().all(|other| !other.subnet.overlaps(subnet)))
}

/// A device name that says whose it is, as far as device names are long enough.
fn bridge(name: &str) -> String {
    let room = libc::IFNAMSIZ - 1 - BRIDGE_PREFIX.len();
    match name.len() <= room {
        true => format!("{BRIDGE_PREFIX}{name}"),
        false => format!("{BRIDGE_PREFIX}{}", &hex::encode(Sha256::digest(name))[..room]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(name: &str, ranges: &[(&str, &str, &str)]) -> NamedNetwork {
        NamedNetwork {
            name: name.into(),
            ranges: ranges
                .iter()
                .map(|(subnet, gateway, ip_range)| NetworkRange {
                    subnet: (*subnet).into(),
                    gateway: (*gateway).into(),
                    ip_range: (*ip_range).into(),
                    v6: false,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn used() -> Vec<Used> {
        [("10.122.0.0/24", "network other"), ("192.0.2.0/24", "device eth0")]
            .map(|(subnet, by)| Used {
                subnet: parse(subnet, false).unwrap(),
                by: by.into(),
            })
            .to_vec()
    }

    #[test]
    fn what_is_left_open_is_chosen_beside_what_is_in_use() {
        let mut asked = wanted("web", &[("", "", "")]);
        asked.ranges.push(NetworkRange {
            v6: true,
            ..Default::default()
        });
        let made = complete(asked, &used()).unwrap();
        let texts: Vec<_> = made
            .ranges
            .iter()
            .map(|range| format!("{} {}", range.subnet, range.gateway))
            .collect();
        assert_eq!(texts, ["10.122.1.0/24 10.122.1.1", "fd00:122::/64 fd00:122::1"]);
        assert_eq!(made.bridge, "wb-web");
        let long = complete(wanted("a-name-that-is-long", &[]), &used()).unwrap();
        assert_eq!(long.bridge.len(), 15);
        assert!(long.bridge.starts_with("wb-"), "{}", long.bridge);
    }

    #[test]
    fn what_can_not_be_is_named() {
        for (asked, words) in [
            (
                wanted("web", &[("192.0.2.128/25", "", "")]),
                "192.0.2.0/24 of device eth0",
            ),
            (wanted("web", &[("10.0.0.0/8", "", "")]), "of network other"),
            (wanted("web", &[("10.1.0.0/24", "10.2.0.1", "")]), "gateway 10.2.0.1"),
            (
                wanted("web", &[("10.1.0.0/24", "", "10.2.0.0/28")]),
                "ip-range 10.2.0.0/28",
            ),
            (wanted("web", &[("10.1.0.0", "", "")]), "10.1.0.0"),
            (
                wanted("web", &[("10.1.0.0/24", "", ""), ("10.2.0.0/24", "", "")]),
                "more than one",
            ),
            (wanted("host", &[]), "meaning of its own"),
            (wanted("../x", &[]), "a name has"),
        ] {
            let error = complete(asked, &used()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
