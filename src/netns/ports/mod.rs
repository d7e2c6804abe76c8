//! Host ports: ports of this machine that lead to pods, whatever network the pods are on, by nftables.
//!
//! [`book`] says who holds what, on disk and in memory. The rules are made of it, and made anew when somebody takes them
//! away. Pods without host ports have nothing to do with any of this.

mod book;
mod wanted;

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wharf_proto::cri;

use super::link::Links;
use super::nft::{HostPort, PortTable};
use super::subnet::Subnet;
use super::{Result, knob, thread};
use book::{Book, Page, Target};

/// The directory beside those of the networks' addresses.
pub(super) const HOST_PORTS: &str = "ports";

/// All host ports of this daemon; a clone is another handle to them.
#[derive(Debug, Clone)]
pub(super) struct HostPorts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: PortTable,
    /// Held while files and rules change; by threads only.
    state: Mutex<State>,
    /// Pods that have ports: held for moments only.
    pods: Mutex<HashSet<String>>,
}

#[derive(Debug)]
struct State {
    book: Book,
    /// What the table in the kernel was made for; none if there is no table.
    installed: Option<Installed>,
}

/// What is not an element of a map but part of the rules.
#[derive(Debug, Default)]
struct Installed {
    /// Where callers must not see a pod's own address.
    near: BTreeSet<Subnet>,
    devices: BTreeSet<String>,
}

impl HostPorts {
    /// Reads who holds what; changes nothing on the machine. `bridge` tells daemons on one machine apart.
    ///
    /// # Errors
    /// When the state directory can't be read.
    pub(super) async fn open(bridge: &str, state_dir: &Path) -> Result<Self> {
        let (table, dir) = (PortTable::new(bridge), state_dir.join("ipam").join(HOST_PORTS));
        thread::run("wharf-ports", move || {
            let state = State {
                book: Book::open(dir)?,
                installed: None,
            };
            Ok(Self(Arc::new(Inner {
                table,
                pods: Mutex::new(state.book.pods().into_iter().collect()),
                state: Mutex::new(state),
            })))
        })
        .await
    }

    /// Takes the ports that the mappings ask for, all or none. They lead nowhere yet.
    ///
    /// # Errors
    /// When a mapping can't be served or a port is another pod's.
    pub(super) async fn take(&self, pod: &str, mappings: &[cri::PortMapping]) -> Result<()> {
        let ports = wanted::wanted(mappings)?;
        if ports.is_empty() {
            return Ok(());
        }
        let pod = pod.to_owned();
        self.work(move |inner| {
            inner.state().book.take(&pod, &ports)?;
            inner.pods().insert(pod);
            Ok(())
        })
        .await
    }

    /// Lets the pod's ports lead to its addresses, which have prefixes.
    ///
    /// # Errors
    /// When the pod lacks an address of a port's family, or the kernel refuses.
    pub(super) async fn lead(&self, pod: &str, addresses: &[(IpAddr, u8)]) -> Result<()> {
        let (pod, addresses) = (pod.to_owned(), addresses.to_vec());
        if !self.has(&pod) {
            return Ok(());
        }
        self.work(move |inner| inner.lead(&pod, &addresses)).await
    }

    /// Gives the pod's ports back: any number of times.
    ///
    /// # Errors
    /// When the kernel refuses or the file can't be removed.
    pub(super) async fn give_back(&self, pod: &str) -> Result<()> {
        if !self.has(pod) {
            return Ok(());
        }
        let pod = pod.to_owned();
        self.work(move |inner| inner.give_back(&pod)).await
    }

    /// Whether the pod has ports.
    fn has(&self, pod: &str) -> bool {
        self.0.pods().contains(pod)
    }

    /// Gives back what none of the `live` pods holds, and makes the rules for the others.
    ///
    /// # Errors
    /// When the kernel refuses or a file can't be removed.
    pub(super) async fn recover(&self, live: HashSet<String>) -> Result<()> {
        self.work(move |inner| {
            let mut state = inner.state();
            for pod in state.book.pods().iter().filter(|pod| !live.contains(*pod)) {
                state.book.remove(pod)?;
            }
            *inner.pods() = state.book.pods().into_iter().collect();
            inner.install(&mut state)
        })
        .await
    }

    /// Makes the rules anew, for somebody has taken them away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn rebuild(&self) -> Result<()> {
        self.work(|inner| inner.install(&mut inner.state())).await
    }

    /// Removes the rules if no pod has ports.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) async fn release_unused(&self) -> Result<()> {
        self.work(|inner| {
            let mut state = inner.state();
            if state.book.pages().next().is_none() && state.installed.take().is_some() {
                inner.table.remove()?;
            }
            Ok(())
        })
        .await
    }

    /// The name of the table.
    pub(super) fn table(&self) -> &str {
        self.0.table.name()
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        let inner = Arc::clone(&self.0);
        thread::run("wharf-ports", move || work(&inner)).await
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pods(&self) -> MutexGuard<'_, HashSet<String>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lead(&self, pod: &str, addresses: &[(IpAddr, u8)]) -> Result<()> {
        let mut links = Links::open()?;
        let mut targets = Vec::new();
        for (address, prefix) in addresses {
            let device = links
                .device_towards(*address)?
                .map(|link| link.name)
                .unwrap_or_default();
            if address.is_ipv4() && !device.is_empty() {
                // So that localhost's packets may leave by it; the table keeps others' away from localhost.
                knob::set(&format!("ipv4/conf/{device}/route_localnet"), "1")?;
            }
            targets.push(Target {
                address: *address,
                prefix: *prefix,
                device,
            });
        }
        let mut state = self.state();
        let Some(page) = state.book.page(pod).cloned() else {
            return Ok(());
        };
        let before = ways(&page).unwrap_or_default();
        let page = Page { targets, ..page };
        let addresses: Vec<IpAddr> = addresses.iter().map(|(ip, _)| *ip).collect();
        let ways = wanted::ways(&page.ports, &addresses)?;
        if !before.is_empty() {
            self.table.take_away(&before)?;
        }
        state.book.put(pod, page.clone())?;
        let known = state.installed.as_ref().is_some_and(|installed| {
            let near = page
                .targets
                .iter()
                .all(|target| installed.near.contains(&target.subnet()));
            near && page
                .targets
                .iter()
                .all(|target| installed.devices.contains(&target.device))
        });
        // A table that has gone is made anew with all that should be in it.
        if known && self.table.add(&ways)? {
            return Ok(());
        }
        self.install(&mut state)
    }

    fn give_back(&self, pod: &str) -> Result<()> {
        let mut state = self.state();
        let Some(page) = state.book.page(pod) else {
            return Ok(());
        };
        if let Ok(ways) = ways(page) {
            self.table.take_away(&ways)?;
        }
        // Nothing is free before it is unused.
        state.book.remove(pod)?;
        self.pods().remove(pod);
        Ok(())
    }

    /// Makes the table, or makes it anew; there is no moment without it.
    fn install(&self, state: &mut State) -> Result<()> {
        let mut all: Vec<HostPort> = Vec::new();
        let mut installed = Installed::default();
        for page in state.book.pages() {
            all.extend(ways(page).unwrap_or_default());
            for target in &page.targets {
                installed.near.insert(target.subnet());
                installed.devices.insert(target.device.clone());
            }
        }
        if all.is_empty() && state.installed.is_none() {
            return Ok(());
        }
        self.table.install(&all, &installed.near, &installed.devices)?;
        state.installed = Some(installed);
        Ok(())
    }
}

impl Target {
    fn subnet(&self) -> Subnet {
        Subnet::holding(self.address, self.prefix)
    }
}

/// The ways that a page stands for; none before it has targets.
fn ways(page: &Page) -> Result<Vec<HostPort>> {
    if page.targets.is_empty() {
        return Ok(Vec::new());
    }
    let addresses: Vec<IpAddr> = page.targets.iter().map(|target| target.address).collect();
    wanted::ways(&page.ports, &addresses)
}
