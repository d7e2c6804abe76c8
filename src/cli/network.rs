//! `wharf network`: networks for containers, and who is on them.

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::output::{self, Format, Table};
use super::resolve::{self, Object};
use super::run::label;
use super::units;

/// Arguments of `wharf network`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    act: Act,
}

/// What can be done with networks.
#[derive(clap::Subcommand)]
enum Act {
    /// Make a network
    Create(Box<Create>),
    /// List networks
    #[command(alias = "list")]
    Ls(List),
    /// Show all about networks
    Inspect(Inspect),
    /// Remove networks that nothing is on
    #[command(alias = "remove")]
    Rm(Remove),
    /// Put a running container on one more network
    Connect(Connect),
    /// Take a running container off a network
    Disconnect(Disconnect),
    /// Remove all networks that nothing is on
    Prune,
}

#[derive(clap::Args)]
struct Create {
    /// Its addresses in CIDR notation, once for each family [default: a free IPv4 one]
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// This node's address on it, once for each family [default: the subnet's first]
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<std::net::IpAddr>,
    /// The part of the subnet of which containers get addresses, once for each family
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<String>,
    /// Give it an IPv6 subnet as well
    #[arg(long)]
    ipv6: bool,
    /// Nothing outside can be reached, and reaches it
    #[arg(long)]
    internal: bool,
    /// Largest packet in bytes [default: that of the default route]
    #[arg(long, value_name = "BYTES", default_value_t)]
    mtu: u32,
    /// Label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Its name
    name: String,
}

#[derive(clap::Args)]
struct List {
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(clap::Args)]
struct Inspect {
    /// Names of networks
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
}

#[derive(clap::Args)]
struct Remove {
    /// Names of networks
    #[arg(required = true, value_name = "NETWORK")]
    names: Vec<String>,
}

#[derive(clap::Args)]
struct Connect {
    /// Another name of the container there; may be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// IPv4 address there
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address there
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<std::net::Ipv6Addr>,
    /// Name of the network
    network: String,
    /// Name, id, or beginning of an id of a container or pod
    container: String,
}

#[derive(clap::Args)]
struct Disconnect {
    /// Name of the network
    network: String,
    /// Name, id, or beginning of an id of a container or pod
    container: String,
}

/// Does what the subcommand says.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    match &arguments.act {
        Act::Create(create) => make(client, create).await?,
        Act::Ls(list) => show(client, list).await?,
        Act::Inspect(inspect) => tell(client, inspect).await?,
        Act::Rm(remove) => return rm(client, &remove.names).await,
        Act::Connect(connect) => join(client, connect).await?,
        Act::Disconnect(disconnect) => leave(client, disconnect).await?,
        Act::Prune => {
            let request = client.patient(api::PruneNetworksRequest {}, Owner::All);
            let answer = client.wharf().prune_networks(request).await;
            let pruned = answer.map_err(|status| client.error("prune networks", &status))?;
            pruned
                .into_inner()
                .names
                .iter()
                .try_for_each(|name| output::line(name))?;
        }
    }
    Ok(0)
}

/// One range for each family that anything is said about.
fn ranges(create: &Create) -> Result<Vec<api::NetworkRange>> {
    let mut ranges: Vec<api::NetworkRange> = Vec::new();
    for subnet in &create.subnet {
        ranges.push(api::NetworkRange {
            subnet: subnet.clone(),
            v6: subnet.contains(':'),
            ..Default::default()
        });
    }
    if create.ipv6 && !ranges.iter().any(|range| range.v6) {
        if ranges.is_empty() {
            ranges.push(api::NetworkRange::default());
        }
        ranges.push(api::NetworkRange {
            v6: true,
            ..Default::default()
        });
    }
    let alone = |what: &str, text: &str| Error::new(format!("--{what} {text} needs a --subnet of its family"));
    let of = |what: &str, text: &str| -> Result<usize> {
        let found = ranges
            .iter()
            .position(|range| range.v6 == text.contains(':') && !range.subnet.is_empty());
        found.ok_or_else(|| alone(what, text))
    };
    let gateways: Vec<(usize, String)> = create
        .gateway
        .iter()
        .map(|ip| Ok((of("gateway", &ip.to_string())?, ip.to_string())))
        .collect::<Result<_>>()?;
    let parts: Vec<(usize, String)> = create
        .ip_range
        .iter()
        .map(|part| Ok((of("ip-range", part)?, part.clone())))
        .collect::<Result<_>>()?;
    for (place, gateway) in gateways {
        ranges[place].gateway = gateway;
    }
    for (place, part) in parts {
        ranges[place].ip_range = part;
    }
    Ok(ranges)
}

async fn make(client: &Client, create: &Create) -> Result<()> {
    let network = api::NamedNetwork {
        name: create.name.clone(),
        ranges: ranges(create)?,
        internal: create.internal,
        mtu: create.mtu,
        labels: create.label.iter().cloned().collect(),
        ..Default::default()
    };
    let message = api::CreateNetworkRequest { network: Some(network) };
    let answer = client.wharf().create_network(client.patient(message, Owner::All)).await;
    answer.map_err(|status| client.error(&format!("create network {}", create.name), &status))?;
    output::line(&create.name)
}

async fn all(client: &Client) -> Result<Vec<api::NamedNetwork>> {
    let answer = client
        .wharf()
        .list_networks(client.quick(api::ListNetworksRequest {}))
        .await;
    let networks = answer.map_err(|status| client.error("list networks", &status))?;
    Ok(networks.into_inner().networks)
}

async fn show(client: &Client, list: &List) -> Result<()> {
    let networks = all(client).await?;
    if list.quiet {
        return networks.iter().try_for_each(|network| output::line(&network.name));
    }
    if list.output != Format::Table {
        return output::message(
            list.output,
            "wharf.v1.ListNetworksResponse",
            &api::ListNetworksResponse { networks },
        );
    }
    let mut table = Table::new(&["NAME", "SUBNETS", "CREATED", "INTERNAL", "CONTAINERS", "BRIDGE"]);
    for network in networks {
        let subnets: Vec<_> = network.ranges.iter().map(|range| range.subnet.clone()).collect();
        table.row([
            network.name,
            subnets.join(", "),
            units::age(network.created_at),
            if network.internal { "yes" } else { "no" }.to_owned(),
            network.members.len().to_string(),
            network.bridge,
        ]);
    }
    table.print()
}

async fn tell(client: &Client, inspect: &Inspect) -> Result<()> {
    let networks = all(client).await?;
    let mut values = Vec::new();
    for name in &inspect.names {
        let network = networks.iter().find(|network| network.name == *name);
        let network = network.ok_or_else(|| resolve::absent("network", name, "wharf network ls"))?;
        values.push(output::to_json("wharf.v1.NamedNetwork", network)?);
    }
    let value = match values.len() {
        1 => values.remove(0),
        _ => values.into(),
    };
    output::value(inspect.output, &value)
}

async fn rm(client: &Client, names: &[String]) -> Outcome {
    let mut code = 0;
    for name in names {
        let message = api::RemoveNetworkRequest { name: name.clone() };
        match client.wharf().remove_network(client.patient(message, Owner::All)).await {
            Ok(_) => output::line(name)?,
            Err(status) => {
                client.error(&format!("remove network {name}"), &status).report();
                code = 1;
            }
        }
    }
    Ok(code)
}

/// The pod that is meant, or in which the container is.
async fn pod(client: &Client, text: &str) -> Result<String> {
    match resolve::object(client, text).await? {
        Some(Object::Container(container)) => Ok(container.pod_sandbox_id),
        Some(Object::Pod(pod)) => Ok(pod.id),
        None => Err(resolve::absent("container", text, "wharf ps")),
    }
}

async fn join(client: &Client, connect: &Connect) -> Result<()> {
    let ips = connect
        .ip
        .map(|ip| ip.to_string())
        .into_iter()
        .chain(connect.ip6.map(|ip| ip.to_string()));
    let message = api::ConnectNetworkRequest {
        name: connect.network.clone(),
        pod_sandbox_id: pod(client, &connect.container).await?,
        aliases: connect.alias.clone(),
        ips: ips.collect(),
    };
    let answer = client
        .wharf()
        .connect_network(client.patient(message, Owner::All))
        .await;
    let attempt = format!("connect {} to network {}", connect.container, connect.network);
    answer.map(drop).map_err(|status| client.error(&attempt, &status))
}

async fn leave(client: &Client, disconnect: &Disconnect) -> Result<()> {
    let message = api::DisconnectNetworkRequest {
        name: disconnect.network.clone(),
        pod_sandbox_id: pod(client, &disconnect.container).await?,
    };
    let answer = client
        .wharf()
        .disconnect_network(client.patient(message, Owner::All))
        .await;
    let attempt = format!(
        "disconnect {} from network {}",
        disconnect.container, disconnect.network
    );
    answer.map(drop).map_err(|status| client.error(&attempt, &status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn asked(line: &str) -> Result<Vec<api::NetworkRange>> {
        let words = std::iter::once("create").chain(line.split(' '));
        ranges(&Line::try_parse_from(words).unwrap().create)
    }

    #[test]
    fn subnets_have_their_families_gateways_and_ranges() {
        assert_eq!(asked("web").unwrap(), []);
        let both =
            asked("--subnet 10.1.0.0/24 --subnet fd00::/64 --gateway fd00::9 --ip-range 10.1.0.64/26 web").unwrap();
        assert_eq!(
            (both[0].ip_range.as_str(), both[0].gateway.as_str()),
            ("10.1.0.64/26", "")
        );
        assert_eq!((both[1].gateway.as_str(), both[1].v6), ("fd00::9", true));
        let chosen = asked("--ipv6 web").unwrap();
        assert_eq!((chosen.len(), chosen[1].v6), (2, true));
        assert_eq!(asked("--ipv6 --subnet 10.1.0.0/24 web").unwrap().len(), 2);
        assert!(asked("--gateway 10.1.0.1 web").is_err());
    }
}
