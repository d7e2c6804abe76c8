//! Who holds which host ports: a file for each pod, and an index in memory by which a second holder is found.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

use super::wanted::Wanted;
use crate::netns::{Error, Result};

/// An address of a pod: with its prefix, and with the device that leads to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
    /// Empty if nothing leads there.
    pub(super) device: String,
}

/// A pod's host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) ports: Vec<Wanted>,
    /// Empty until the pod has addresses.
    pub(super) targets: Vec<Target>,
}

/// All of them, by pod.
#[derive(Debug)]
pub(super) struct Book {
    dir: PathBuf,
    pages: HashMap<String, Page>,
    /// Pods by protocol and port.
    holders: HashMap<(u8, u16), Vec<String>>,
}

impl Book {
    /// Reads what is on disk.
    ///
    /// # Errors
    /// When the directory can't be made or read.
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).map_err(|source| Error::io("create directory", &dir, source))?;
        let mut book = Self {
            dir,
            pages: HashMap::new(),
            holders: HashMap::new(),
        };
        let wrong = |source| Error::io("list host ports in", &book.dir, source);
        let entries: Vec<_> = fs::read_dir(&book.dir).map_err(wrong)?.flatten().collect();
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with('.') {
                let _ = fs::remove_file(entry.path());
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            book.insert(&name, read(&text));
        }
        Ok(book)
    }

    /// The pods that have host ports.
    pub(super) fn pods(&self) -> Vec<String> {
        self.pages.keys().cloned().collect()
    }

    /// All pages.
    pub(super) fn pages(&self) -> impl Iterator<Item = &Page> {
        self.pages.values()
    }

    /// The pod's page.
    pub(super) fn page(&self, pod: &str) -> Option<&Page> {
        self.pages.get(pod)
    }

    /// Takes the ports for a pod, all or none.
    ///
    /// # Errors
    /// [`Error::PortTaken`] with the pod that has one; when the file can't be written.
    pub(super) fn take(&mut self, pod: &str, ports: &[Wanted]) -> Result<()> {
        for port in ports {
            let rivals = self.holders.get(&(port.protocol, port.host_port));
            for rival in rivals.into_iter().flatten().filter(|rival| *rival != pod) {
                let held = self
                    .pages
                    .get(rival)
                    .is_some_and(|page| page.ports.iter().any(|held| held.clashes(port)));
                if held {
                    return Err(Error::PortTaken {
                        port: port.to_string(),
                        holder: rival.clone(),
                    });
                }
            }
        }
        self.put(
            pod,
            Page {
                ports: ports.to_vec(),
                targets: Vec::new(),
            },
        )
    }

    /// Writes a pod's page; whoever reads after a crash finds the one before or this one.
    ///
    /// # Errors
    /// When the file can't be written.
    pub(super) fn put(&mut self, pod: &str, page: Page) -> Result<()> {
        let (path, new) = (self.dir.join(pod), self.dir.join(format!(".{pod}")));
        fs::write(&new, write(&page))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| {
                let _ = fs::remove_file(&new);
                Error::io("write host ports", &path, source)
            })?;
        self.drop_index(pod);
        self.insert(pod, page);
        Ok(())
    }

    /// Forgets a pod; one that is not known is no error.
    ///
    /// # Errors
    /// When the file can't be removed.
    pub(super) fn remove(&mut self, pod: &str) -> Result<()> {
        let path = self.dir.join(pod);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove host ports", &path, source));
            }
            _ => {}
        }
        self.drop_index(pod);
        self.pages.remove(pod);
        Ok(())
    }

    fn insert(&mut self, pod: &str, page: Page) {
        for port in &page.ports {
            let holders = self.holders.entry((port.protocol, port.host_port)).or_default();
            if !holders.iter().any(|holder| holder == pod) {
                holders.push(pod.to_owned());
            }
        }
        self.pages.insert(pod.to_owned(), page);
    }

    fn drop_index(&mut self, pod: &str) {
        for port in self
            .pages
            .get(pod)
            .map(|page| page.ports.as_slice())
            .unwrap_or_default()
        {
            let key = (port.protocol, port.host_port);
            if let Some(holders) = self.holders.get_mut(&key) {
                holders.retain(|holder| holder != pod);
                if holders.is_empty() {
                    self.holders.remove(&key);
                }
            }
        }
    }
}

/// A line for each port (protocol, port, host address or `*`, the pod's port) and each target.
fn write(page: &Page) -> String {
    let ports = page.ports.iter().map(|port| {
        let host = port.host_ip.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
        format!("port {} {} {host} {}\n", port.protocol, port.host_port, port.pod_port)
    });
    let targets = page
        .targets
        .iter()
        .map(|target| format!("target {} {} {}\n", target.address, target.prefix, target.device));
    ports.chain(targets).collect()
}

/// Lines that are not understood are left out.
fn read(text: &str) -> Page {
    let mut page = Page::default();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(5, ' ').collect();
        match words.as_slice() {
            ["port", protocol, port, host, pod_port] => page.ports.extend((|| {
                Some(Wanted {
                    protocol: protocol.parse().ok()?,
                    host_ip: if *host == "*" { None } else { Some(host.parse().ok()?) },
                    host_port: port.parse().ok()?,
                    pod_port: pod_port.parse().ok()?,
                })
            })()),
            ["target", address, prefix, device] => page.targets.extend((|| {
                Some(Target {
                    address: address.parse().ok()?,
                    prefix: prefix.parse().ok()?,
                    device: (*device).to_owned(),
                })
            })()),
            _ => {}
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, host: Option<&str>) -> Wanted {
        Wanted {
            protocol: 6,
            host_ip: host.map(|text| text.parse().unwrap()),
            host_port: number,
            pod_port: 80,
        }
    }

    #[test]
    fn a_second_holder_is_refused_with_the_first_ones_name_also_after_a_restart() {
        let dir = std::env::temp_dir().join(format!("wharf-ports-{}", std::process::id()));
        let mut book = Book::open(dir.clone()).unwrap();
        book.take("a", &[port(80, None), port(81, Some("127.0.0.1"))]).unwrap();
        let mut page = book.page("a").unwrap().clone();
        page.targets = vec![Target {
            address: "10.0.0.2".parse().unwrap(),
            prefix: 24,
            device: "wharf0".into(),
        }];
        book.put("a", page.clone()).unwrap();
        std::fs::write(dir.join(".b"), "half").unwrap();
        let mut book = Book::open(dir.clone()).unwrap();
        assert_eq!(book.page("a"), Some(&page));
        let error = book
            .take("b", &[port(90, None), port(80, Some("192.0.2.1"))])
            .unwrap_err();
        assert_eq!(error.to_string(), "host port tcp/80 on 192.0.2.1 is held by pod a");
        assert!(book.page("b").is_none());
        book.take("b", &[port(81, Some("192.0.2.1"))]).unwrap();
        book.remove("a").unwrap();
        book.take("b", &[port(80, None)]).unwrap();
        assert_eq!(Book::open(dir.clone()).unwrap().pods(), ["b"]);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
