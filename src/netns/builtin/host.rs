//! The machine's side of the built-in network: the bridge, the table, forwarding. Blocking.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use super::Settings;
use crate::netns::knob::{get, set};
use crate::netns::link::{Link, Links};
use crate::netns::{Error, Result};

/// Where the default route leads is asked for these; nothing is sent there.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111)),
];
const ETHERNET_MTU: u32 = 1500;

/// Makes or completes the bridge and makes the table anew. Any number of times.
///
/// # Errors
/// When the kernel refuses a step, or a device of the bridge's name is somebody else's.
pub(super) fn build(settings: &Settings, links: &mut Links) -> Result<Link> {
    let name = &settings.bridge;
    let bridge = match links.find(name)? {
        Some(bridge) => {
            check_owner(settings, &bridge)?;
            bridge
        }
        None => {
            let mtu = mtu(settings, links)?;
            links.add_bridge(name, own_mac(settings), mtu)?;
            let made = links.find(name)?;
            made.ok_or_else(|| Error::Thread(format!("bridge {name} vanished as soon as it was made")))?
        }
    };
    if bridge.alias != settings.owner {
        links.set_alias(name, &settings.owner)?;
    }
    links.set_up(name)?;
    for pool in &settings.pools {
        if pool.subnet.is_v6() {
            set(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
            forward_v6()?;
        } else {
            set("ipv4/ip_forward", "1")?;
        }
        links.add_address(bridge.index, pool.gateway, pool.subnet.prefix())?;
    }
    settings.table().install()?;
    Ok(bridge)
}

/// Refuses a device of the bridge's name that this daemon has not made. One without a mark was made by it if it has the
/// hardware address that it gives: the daemon may have been killed before it left its mark.
///
/// # Errors
/// Says whose it is, as far as that is known.
pub(super) fn check_owner(settings: &Settings, link: &Link) -> Result<()> {
    let ours =
        link.is_bridge && (link.alias == settings.owner || link.alias.is_empty() && link.mac == own_mac(settings));
    if ours {
        return Ok(());
    }
    Err(Error::ForeignBridge {
        bridge: settings.bridge.clone(),
        owner: match link.alias.as_str() {
            "" => "somebody else".to_owned(),
            alias => alias.to_owned(),
        },
    })
}

/// Takes down what [`build`] made. A device that is somebody else's stays. Forwarding stays on: others may rely on it by
/// now.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn tear_down(settings: &Settings) -> Result<()> {
    let mut links = Links::open()?;
    if let Some(link) = links.find(&settings.bridge)?
        && check_owner(settings, &link).is_ok()
    {
        links.delete(&settings.bridge)?;
    }
    settings.table().remove()
}

fn own_mac(settings: &Settings) -> [u8; 6] {
    settings
        .pools
        .first()
        .map_or([0x0a, 0x58, 0, 0, 0, 0], |pool| mac(pool.gateway))
}

/// The hardware address that goes with an address: whoever gets the address next has the same, so no neighbour's cache
/// is wrong.
pub(super) fn mac(address: IpAddr) -> [u8; 6] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [0x0a, 0x58, a, b, c, d]
        }
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            [0x0a, 0x58, a, b, c, d]
        }
    }
}

fn mtu(settings: &Settings, links: &mut Links) -> Result<u32> {
    if let Some(mtu) = settings.mtu {
        return Ok(mtu);
    }
    for destination in OUTSIDE {
        if let Some(device) = links.device_towards(destination)? {
            return Ok(device.mtu);
        }
    }
    Ok(ETHERNET_MTU)
}

/// A machine that forwards IPv6 no longer listens to routers unless told to: without this, the node could lose its own
/// default route to its first pod.
fn forward_v6() -> Result<()> {
    if get("ipv6/conf/all/forwarding")?.trim() == "1" {
        return Ok(());
    }
    let conf = Path::new("/proc/sys/net/ipv6/conf");
    for entry in std::fs::read_dir(conf)
        .map_err(|source| Error::io("list", conf, source))?
        .flatten()
    {
        if let Ok(device) = entry.file_name().into_string() {
            let name = format!("ipv6/conf/{device}/accept_ra");
            // A device that disappears meanwhile needs nothing.
            if device != "all" && get(&name).is_ok_and(|value| value.trim() == "1") {
                match set(&name, "2") {
                    Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
    }
    set("ipv6/conf/all/forwarding", "1")
}
