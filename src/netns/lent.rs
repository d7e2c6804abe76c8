//! Network devices of the node's that a pod has for its time (OCI runtime specification 1.3, `linux.netDevices`; CDI 1.1; NRI).
//!
//! They come back under the name and with the addresses that they had on the node: the kernel by itself destroys
//! virtual devices with the pod's namespace, and gives others back without either.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use wharf_proto::record::{LentDevice, NetDevice};

use super::link::{Link, Links};
use super::{Error, Result, thread};

/// Where a device's name is, below a directory of pinned namespaces.
const PIN: &str = "net";

/// Whether the kernel takes it as a device's name (`dev_valid_name`): 1 to 15 bytes, no `/`, `:` or space.
#[must_use]
pub fn is_device_name(name: &str) -> bool {
    let taken = |byte: u8| byte == b'/' || byte == b':' || byte.is_ascii_whitespace() || byte == 0;
    (1..libc::IFNAMSIZ).contains(&name.len()) && name != "." && name != ".." && !name.bytes().any(taken)
}

/// See [`super::Networks::look_at`].
pub(super) async fn look_at(wanted: Vec<NetDevice>) -> Result<Vec<LentDevice>> {
    thread::run("wharf-lend", move || {
        let mut node = Links::open()?;
        wanted.into_iter().map(|device| as_it_is(&mut node, device)).collect()
    })
    .await
}

fn as_it_is(node: &mut Links, device: NetDevice) -> Result<LentDevice> {
    let Some(link) = node.find(&device.host_name)? else {
        return Err(refused(&device, "is not on the node"));
    };
    let addresses = node.addresses(link.index)?;
    Ok(LentDevice {
        device: Some(device),
        addresses: addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect(),
        up: link.up,
    })
}

fn refused(device: &NetDevice, reason: &str) -> Error {
    Error::Device {
        name: device.host_name.clone(),
        reason: reason.to_owned(),
    }
}

/// The two sides between which devices go, each seen from within.
struct Sides {
    node: (Links, File),
    pod: (Links, File),
}

impl Sides {
    /// Takes the calling thread to the pod's side. `None` when the pod's namespace is gone.
    fn open(namespaces: &Path) -> Result<Option<Self>> {
        let open = |path: &Path| File::open(path).map_err(|source| Error::io("open network namespace", path, source));
        let node = (Links::open()?, open(Path::new("/proc/thread-self/ns/net"))?);
        let pin = namespaces.join(PIN);
        let handle = match open(&pin) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            handle => handle?,
        };
        match setns(&handle, CloneFlags::CLONE_NEWNET) {
            // The file that the namespace was pinned at.
            Err(Errno::EINVAL) => return Ok(None),
            entered => entered.map_err(|errno| Error::io("enter network namespace", &pin, errno.into()))?,
        }
        let pod = (Links::open()?, handle);
        Ok(Some(Self { node, pod }))
    }

    fn give(&mut self, lent: &LentDevice) -> Result<()> {
        let device = lent.device.clone().unwrap_or_default();
        let there = self.pod.0.find(&device.name)?;
        match (self.node.0.find(&device.host_name)?, there) {
            // It was moved for an earlier container of the pod.
            (None, Some(_)) => Ok(()),
            (None, None) => Err(refused(&device, "is not on the node any more")),
            (Some(_), Some(_)) => Err(refused(
                &device,
                &format!("the pod has a device called {:?} already", device.name),
            )),
            (Some(link), None) => {
                self.node.0.hand_over(&link, &device.name, self.pod.1.as_fd())?;
                // The specification has it up whatever it was before.
                let ready = restore(&mut self.pod.0, &device.name, &lent.addresses, true);
                if ready.is_err() {
                    self.bring_back(lent)?;
                }
                ready
            }
        }
    }

    fn bring_back(&mut self, lent: &LentDevice) -> Result<()> {
        let device = lent.device.clone().unwrap_or_default();
        // Whoever runs in the pod with the right to may have given it another name: then it is the kernel's to give back.
        let Some(link) = self.pod.0.find(&device.name)? else {
            return Ok(());
        };
        match self.pod.0.hand_over(&link, &device.host_name, self.node.1.as_fd()) {
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                tracing::warn!(
                    device = device.host_name,
                    "a network device can't come back: there is another of its name; the kernel gives it one, or ends it"
                );
                Ok(())
            }
            moved => moved.and_then(|()| restore(&mut self.node.0, &device.host_name, &lent.addresses, lent.up)),
        }
    }
}

fn restore(links: &mut Links, name: &str, addresses: &[String], up: bool) -> Result<()> {
    let Some(Link { index, .. }) = links.find(name)? else {
        return Ok(());
    };
    for (ip, prefix) in addresses.iter().filter_map(|text| parse(text)) {
        links.add_address(index, ip, prefix)?;
    }
    if up { links.set_up(name) } else { Ok(()) }
}

/// As [`as_it_is`] wrote it.
fn parse(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    Some((ip.parse().ok()?, prefix.parse().ok()?))
}

/// See [`super::Networks::lend`].
pub(super) async fn lend(namespaces: &Path, devices: Vec<LentDevice>) -> Result<()> {
    let namespaces = namespaces.to_owned();
    thread::run("wharf-lend", move || {
        let Some(mut sides) = Sides::open(&namespaces)? else {
            let gone = std::io::ErrorKind::NotFound.into();
            return Err(Error::io("open network namespace", &namespaces.join(PIN), gone));
        };
        devices.iter().try_for_each(|device| sides.give(device))
    })
    .await
}

/// See [`super::Networks::take_back`].
pub(super) async fn take_back(namespaces: &Path, devices: Vec<LentDevice>) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let namespaces = namespaces.to_owned();
    thread::run("wharf-lend", move || {
        let Some(mut sides) = Sides::open(&namespaces)? else {
            return Ok(());
        };
        let back = devices.iter().map(|device| sides.bring_back(device));
        back.fold(Ok(()), Result::and)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        for name in ["eth0", "a", "veth.12-_x@y", "exactly15bytes_"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\0", "sixteen_bytes_lo"] {
            assert!(!is_device_name(name), "{name:?}");
        }
    }

    #[test]
    fn addresses_are_read_as_they_were_written() {
        for text in ["192.0.2.1/30", "fd12::1/64"] {
            let (ip, prefix) = parse(text).unwrap();
            assert_eq!(format!("{ip}/{prefix}"), text);
        }
        for text in ["", "192.0.2.1", "192.0.2.1/", "x/1", "192.0.2.1/300"] {
            assert_eq!(parse(text), None);
        }
    }
}
