//! One pod on named networks: what its record says, and what is done inside of its namespace.

use std::net::IpAddr;
use std::path::PathBuf;

use wharf_proto::record;

use crate::netns::link::Links;
use crate::netns::{Error, Result, thread};

/// Most devices of a pod.
const MOST_DEVICES: u32 = 64;

/// What the pod has there.
pub(super) fn addresses(attachment: &record::Attachment) -> Vec<IpAddr> {
    attachment.ips.iter().filter_map(|ip| ip.parse().ok()).collect()
}

/// A pod on named networks alone has the addresses of the first.
pub(super) fn first_ips(network: &mut record::Network) {
    if network.kind == super::KIND {
        network.ips = network
            .attachments
            .first()
            .map(|one| one.ips.clone())
            .unwrap_or_default();
    }
}

/// The first name that no device in the namespace has.
pub(super) async fn free_device(netns: PathBuf) -> Result<String> {
    thread::run("wharf-net", move || {
        crate::netns::enter(&netns)?;
        let mut links = Links::open()?;
        for number in 0..MOST_DEVICES {
            let name = format!("eth{number}");
            if links.find(&name)?.is_none() {
                return Ok(name);
            }
        }
        Err(Error::Thread(format!(
            "{} has {MOST_DEVICES} devices already",
            netns.display()
        )))
    })
    .await
}

/// Gives the namespace a default route for each family that has none, by one of the gateways.
pub(super) async fn add_routes(netns: PathBuf, gateways: Vec<IpAddr>) -> Result<()> {
    thread::run("wharf-net", move || {
        crate::netns::enter(&netns)?;
        let mut links = Links::open()?;
        for gateway in gateways {
            if let Some(device) = links.device_towards(gateway)? {
                links.add_default_route(device.index, gateway)?;
            }
        }
        Ok(())
    })
    .await
}
