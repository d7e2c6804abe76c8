//! Which networks a pod shall be on, from the flags to what CRI takes and the annotations that it does not know.

use std::collections::HashMap;

use serde_json::json;
use wharf_proto::cri;

use super::flags::Arguments;
use crate::cli::error::{Error, Result};
use crate::node::{HOSTS, NETWORKS};

/// Where a pod is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// On the network that the daemon's configuration describes.
    Default,
    /// On the node's.
    Host,
    /// On none.
    None,
    /// On these, in this order.
    Named(Vec<String>),
}

impl Network {
    /// What `--network` says.
    ///
    /// # Errors
    /// When networks don't go together, or flags have no meaning on them.
    pub fn of(arguments: &Arguments) -> Result<Self> {
        let network = match arguments
            .network
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] | ["default" | "bridge"] => Self::Default,
            ["host"] => Self::Host,
            ["none"] => Self::None,
            names => match names
                .iter()
                .find(|name| ["default", "bridge", "host", "none"].contains(name))
            {
                Some(name) => return Err(Error::new(format!("--network {name} does not go with other networks"))),
                None => Self::Named(names.iter().map(|name| (*name).to_owned()).collect()),
            },
        };
        let named = matches!(network, Self::Named(_));
        for (flag, given) in [
            ("--network-alias", !arguments.network_alias.is_empty()),
            ("--ip", arguments.ip.is_some()),
            ("--ip6", arguments.ip6.is_some()),
        ] {
            if given && !named {
                return Err(Error::new(format!("{flag} needs a network of its own"))
                    .hint("Make one with `wharf network create NAME`, and give --network NAME."));
            }
        }
        if !arguments.publish.is_empty() && matches!(network, Self::Host | Self::None) {
            return Err(Error::new(
                "--publish has no meaning without a network of the pod's own",
            ));
        }
        Ok(network)
    }

    /// The annotations by which the daemon knows.
    pub fn annotations(&self, arguments: &Arguments) -> HashMap<String, String> {
        let mut all = HashMap::new();
        let networks: Option<Vec<_>> = match self {
            Self::Default | Self::Host => None,
            Self::None => Some(Vec::new()),
            Self::Named(names) => Some(
                names
                    .iter()
                    .enumerate()
                    .map(|(number, name)| {
                        let mut ips: Vec<String> = Vec::new();
                        if number == 0 {
                            ips.extend(arguments.ip.map(|ip| ip.to_string()));
                            ips.extend(arguments.ip6.map(|ip| ip.to_string()));
                        }
                        json!({"network": name, "aliases": arguments.network_alias, "ips": ips})
                    })
                    .collect(),
            ),
        };
        if let Some(networks) = networks {
            all.insert(NETWORKS.to_owned(), json!(networks).to_string());
        }
        if !arguments.add_host.is_empty() {
            let hosts = arguments
                .add_host
                .iter()
                .map(|(name, ip)| json!({"name": name, "ip": ip}));
            all.insert(HOSTS.to_owned(), json!(hosts.collect::<Vec<_>>()).to_string());
        }
        all
    }
}

/// Name servers, where they are not to be the node's.
pub fn dns(arguments: &Arguments) -> Option<cri::DnsConfig> {
    (!arguments.dns.is_empty()).then(|| cri::DnsConfig {
        servers: arguments.dns.iter().map(ToString::to_string).collect(),
        searches: arguments.dns_search.clone(),
        options: arguments.dns_option.clone(),
    })
}
