//! The Container Network Interface: plugins that are programs, configured by files, run in a chain.
//!
//! [`dir`] knows which configurations count and whether they are ready, [`plugin`] runs one program, [`cache`] keeps
//! results where other tools look for them, [`upkeep`] collects what nobody needs and checks what should be there.

mod args;
mod cache;
mod config;
mod dir;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod health;
mod plugin;
mod result;
mod template;
mod upkeep;
mod watch;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statfs::{FsType, statfs};
use serde_json::{Map, Value};
use wharf_proto::record;

use super::task::Task;
use super::{Error, NetworkStatus, PodNetwork, Result, thread};
use crate::config::Config;
use cache::{Cache, Entry};
use config::NetworkList;
use dir::{Directory, Habits};
use plugin::{Call, Runner};
pub(super) use result::Address;
pub(super) use template::ranges;

/// How this kind of network is called in records.
pub(super) const KIND: &str = "cni";
/// Names of the pod's devices begin so; the first is `eth0`, as kubelet and every test expect.
const DEVICE: &str = "eth";
/// `NSFS_MAGIC`: what a pinned namespace's file system says.
const NAMESPACE: FsType = FsType(0x6e73_6673);
/// Plugins of this version and later are told on DEL what ADD had answered.
const TOLD_SINCE: &str = "0.4.0";

/// The networks that a pod will be attached to; see [`super::Networks::ready`].
pub(super) type Lists = Arc<Vec<NetworkList>>;

/// The network; see the module.
#[derive(Debug)]
pub(super) struct Cni {
    inner: Arc<Inner>,
    /// By path and by how many networks of it a pod gets.
    directories: Arc<HashMap<(PathBuf, usize), Directory>>,
    /// Which directory the pods of a runtime handler use, if not the first.
    handlers: HashMap<String, (PathBuf, usize)>,
    first: (PathBuf, usize),
    template: Option<PathBuf>,
    watched: bool,
    upkeep: Duration,
    upkeeper: Mutex<Option<Task>>,
}

/// What operations need and what they share.
#[derive(Debug)]
struct Inner {
    runner: Runner,
    cache: Cache,
    /// Pods that are attached, or may be in part.
    attached: Mutex<HashMap<String, Arc<Attached>>>,
    /// Held by every ADD and DEL, and alone by GC, as the specification wants it (section 4, GC).
    turns: tokio::sync::RwLock<()>,
}

/// A pod and the networks that it is on.
#[derive(Debug, Clone)]
struct Attached {
    pod: PodNetwork,
    network: record::Network,
}

/// One network of a pod.
struct Part<'a> {
    device: String,
    config: &'a [u8],
    result: &'a [u8],
}

impl Cni {
    /// Looks for configurations and, if `watched`, goes on looking.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub(super) async fn open(config: &Config, watched: bool) -> Result<Self> {
        let cni = &config.cni;
        let runner = Runner {
            bin_dirs: cni.bin_dirs.clone(),
            limit: Duration::from_secs(cni.timeout_secs),
        };
        let first = (cni.conf_dir.clone(), cni.max_networks);
        let handlers: HashMap<_, _> = config
            .runtimes
            .iter()
            .filter(|(_, handler)| handler.cni_conf_dir.is_some() || handler.cni_max_networks.is_some())
            .map(|(name, handler)| {
                let dir = handler.cni_conf_dir.clone().unwrap_or_else(|| first.0.clone());
                (name.clone(), (dir, handler.cni_max_networks.unwrap_or(first.1)))
            })
            .collect();
        let keys: HashSet<_> = handlers.values().chain([&first]).cloned().collect();
        let mut directories = HashMap::new();
        for (path, most) in keys {
            let habits = Habits {
                most,
                interval: Duration::from_secs(cni.status_interval_secs),
                grace: Duration::from_secs(cni.status_grace_secs),
            };
            let directory = Directory::open(&path, habits, runner.clone(), watched).await?;
            directories.insert((path, most), directory);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                cache: Cache::new(&cni.cache_dir),
                runner,
                attached: Mutex::default(),
                turns: tokio::sync::RwLock::default(),
            }),
            directories: Arc::new(directories),
            handlers,
            first,
            template: cni.conf_template.clone(),
            watched,
            upkeep: Duration::from_secs(cni.upkeep_interval_secs),
            upkeeper: Mutex::default(),
        })
    }

    fn directory(&self, handler: &str) -> Result<&Directory> {
        let key = self.handlers.get(handler).unwrap_or(&self.first);
        let known = self.directories.get(key);
        known.ok_or_else(|| Error::NotReady(format!("{} is not watched", key.0.display())))
    }

    /// See [`super::Networks::status`].
    pub(super) fn status(&self, handler: &str) -> NetworkStatus {
        let fault = match self.directory(handler).map(Directory::view) {
            Ok(view) if view.ready && self.watched => return NetworkStatus::ready(),
            Ok(view) => view.fault,
            Err(error) => error.to_string(),
        };
        NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message: fault,
        }
    }

    /// Whether pods of the handler can be attached without waiting.
    pub(super) fn is_usable(&self, handler: &str) -> bool {
        self.directory(handler).is_ok_and(Directory::is_usable)
    }

    /// See [`super::Networks::ready`].
    pub(super) async fn ready(&self, handler: &str, deadline: Instant) -> Result<Lists> {
        self.directory(handler)?.networks(deadline).await
    }

    /// See [`super::Networks::recover`]. The first round of upkeep begins.
    pub(super) fn recover(&self, live: &[(PodNetwork, record::Network)]) {
        let attached = live
            .iter()
            .filter(|(_, network)| network.kind == KIND)
            .map(|(pod, network)| {
                let (pod, network) = (pod.clone(), network.clone());
                (pod.pod_id.clone(), Arc::new(Attached { pod, network }))
            });
        let attached = attached.collect();
        *self.inner.attached.lock().unwrap_or_else(PoisonError::into_inner) = attached;
        if self.watched && !self.upkeep.is_zero() {
            let rounds = upkeep::rounds(Arc::clone(&self.inner), Arc::clone(&self.directories), self.upkeep);
            *self.upkeeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(Task::spawn(rounds));
        }
    }

    /// Attaches a pod to `lists`. `answered` gets its addresses on the first network before the attach counts as done; if it
    /// fails, so does the attach. What was done before an error is for [`Cni::detach`]. See [`super::Networks::attach`].
    pub(super) async fn attach<N: Future<Output = ()> + Send, A: Future<Output = Result<()>> + Send>(
        &self,
        pod: &PodNetwork,
        lists: &[NetworkList],
        note: impl FnOnce(record::Network) -> N + Send,
        answered: impl FnOnce(Vec<Address>) -> A + Send,
    ) -> Result<record::Network> {
        let (first, more) = lists
            .split_first()
            .ok_or_else(|| Error::NotReady("there is none".to_owned()))?;
        let mut network = record::Network {
            kind: KIND.to_owned(),
            netns: pod.netns.to_string_lossy().into_owned(),
            cni_config: first.text.clone().into_bytes(),
            attempted: true,
            more: more
                .iter()
                .zip(1..)
                .map(|(list, number)| record::CniNetwork {
                    device: format!("{DEVICE}{number}"),
                    config: list.text.clone().into_bytes(),
                    result: Vec::new(),
                })
                .collect(),
            ..Default::default()
        };
        // Before anything is done: GC must spare it from now on.
        self.inner.remember(pod, &network);
        note(network.clone()).await;
        {
            let _turn = self.inner.turns.read().await;
            let (answer, addresses) = self.inner.add(pod, first, &format!("{DEVICE}0")).await?;
            network.cni_result = answer.to_string().into_bytes();
            network.ips = addresses.iter().map(|(ip, _)| ip.to_string()).collect();
            for (list, part) in more.iter().zip(&mut network.more) {
                let (answer, _) = self.inner.add(pod, list, &part.device).await?;
                part.result = answer.to_string().into_bytes();
            }
            answered(addresses).await?;
        }
        self.inner.remember(pod, &network);
        Ok(network)
    }

    /// See [`super::Networks::detach`]. Every plugin gets its turn; the first error is returned.
    pub(super) async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        let _turn = self.inner.turns.read().await;
        let mut outcome = Ok(());
        for part in parts(network).iter().rev() {
            let deleted = self.inner.delete(pod, &network.netns, part).await;
            outcome = outcome.and(deleted);
        }
        if outcome.is_ok() {
            let mut attached = self.inner.attached.lock().unwrap_or_else(PoisonError::into_inner);
            attached.remove(&pod.pod_id);
        }
        outcome
    }

    /// Makes a configuration from the template if there is one and no configuration. Tells whether it did.
    ///
    /// # Errors
    /// When the template can't be used or the configuration can't be written.
    pub(super) async fn render(&self, ranges: &[String]) -> Result<bool> {
        let Some(template) = self.template.clone().filter(|_| self.watched) else {
            return Ok(false);
        };
        let directory = self.directory("")?;
        directory.look().await;
        if !directory.view().lists.is_empty() {
            return Ok(false);
        }
        let (dir, ranges) = (self.first.0.clone(), ranges.to_vec());
        thread::run("wharf-cni", move || {
            let text = std::fs::read_to_string(&template)
                .map_err(|source| Error::io("read CNI template", &template, source))?;
            let wrong = |reason| Error::CniConfig {
                origin: format!("made from template {}", template.display()),
                reason,
            };
            let text = template::render(&text, &ranges).map_err(wrong)?;
            NetworkList::parse(&format!("made from template {}", template.display()), &text)?;
            let path = dir.join("10-wharf.conflist");
            // By rename, so that nobody reads half of it.
            let new = dir.join(".10-wharf.conflist.new");
            std::fs::create_dir_all(&dir)
                .and_then(|()| std::fs::write(&new, text))
                .and_then(|()| std::fs::rename(&new, &path))
                .map_err(|source| Error::io("write CNI configuration", &path, source))
        })
        .await?;
        directory.look().await;
        Ok(true)
    }

    /// True if no plugin of `lists` makes host ports.
    pub(super) fn lacks_host_ports(lists: &[NetworkList]) -> bool {
        lists.iter().all(NetworkList::lacks_host_ports)
    }
}

impl Inner {
    fn remember(&self, pod: &PodNetwork, network: &record::Network) {
        let attached = Arc::new(Attached {
            pod: pod.clone(),
            network: network.clone(),
        });
        let mut all = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(pod.pod_id.clone(), attached);
    }

    /// ADD by every plugin of a list. Gives the last result and the pod's addresses in it.
    async fn add(&self, pod: &PodNetwork, list: &NetworkList, device: &str) -> Result<(Value, Vec<Address>)> {
        let (netns, arguments) = (pod.netns.to_string_lossy(), args::environment(pod));
        let text = args::join(&arguments);
        let call = Call {
            command: "ADD",
            container_id: &pod.pod_id,
            netns: &netns,
            device,
            args: &text,
        };
        let capabilities = args::capabilities(pod)?;
        let (mut previous, mut last) = (Value::Null, "");
        for plugin in &list.plugins {
            let config = configure(plugin, &capabilities, &previous);
            let answer = self.runner.run(call, &plugin.kind, &config).await?;
            // A plugin that changes nothing hands on what it got; one that says nothing is taken to do so.
            if !answer.is_null() {
                previous =
                    result::in_version(answer, &list.version).map_err(|reason| call.failed(&plugin.kind, reason))?;
            }
            last = &plugin.kind;
        }
        let addresses = result::addresses(&previous).map_err(|reason| call.failed(last, reason))?;
        let mut entry = Entry::new(&list.name, list.text.as_bytes(), &pod.pod_id, device);
        entry.netns = netns.into_owned();
        entry.cni_args = arguments;
        entry.capabilities = capabilities;
        entry.result = previous.clone();
        // It is for others; the pod's own record has all that matters here.
        if let Err(error) = self.cache.put(&entry).await {
            tracing::warn!(pod = pod.pod_id, %error, "other tools will not find the pod's network");
        }
        Ok((previous, addresses))
    }

    /// DEL by every plugin of a part's list, the last first.
    async fn delete(&self, pod: &PodNetwork, netns: &str, part: &Part<'_>) -> Result<()> {
        let text = String::from_utf8_lossy(part.config);
        let list = NetworkList::parse(&format!("recorded for pod {}", pod.pod_id), &text)?;
        let mut previous = Value::Null;
        if list.speaks(TOLD_SINCE) {
            previous = match serde_json::from_slice(part.result) {
                Ok(result) => result,
                // The daemon was killed between the last plugin and the record.
                Err(_) => match self.cache.get(&list.name, &pod.pod_id, &part.device).await {
                    Some(entry) => entry.result,
                    None => Value::Null,
                },
            };
        }
        let netns = namespace(netns).await?;
        let arguments = args::join(&args::environment(pod));
        let call = Call {
            command: "DEL",
            container_id: &pod.pod_id,
            netns: &netns,
            device: &part.device,
            args: &arguments,
        };
        self.delete_by(call, &list, &args::capabilities(pod)?, &previous)
            .await?;
        self.cache.remove(&list.name, &pod.pod_id, &part.device).await
    }

    async fn delete_by(
        &self,
        call: Call<'_>,
        list: &NetworkList,
        capabilities: &Map<String, Value>,
        previous: &Value,
    ) -> Result<()> {
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let config = configure(plugin, capabilities, previous);
            let deleted = self.runner.run(call, &plugin.kind, &config).await.map(drop);
            outcome = outcome.and(deleted);
        }
        outcome
    }
}

/// The networks of a pod, in the order in which it was attached to them.
fn parts(network: &record::Network) -> Vec<Part<'_>> {
    let first = Part {
        device: format!("{DEVICE}0"),
        config: &network.cni_config,
        result: &network.cni_result,
    };
    let more = network.more.iter().map(|part| Part {
        device: part.device.clone(),
        config: &part.config,
        result: &part.result,
    });
    std::iter::once(first).chain(more).collect()
}

/// The plugin's configuration as it goes to its standard input.
fn configure(plugin: &config::Plugin, capabilities: &Map<String, Value>, previous: &Value) -> Value {
    let mut config = plugin.config.clone();
    config.remove("capabilities");
    let runtime = args::runtime_config(plugin, capabilities);
    if !runtime.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    if !previous.is_null() {
        config.insert("prevResult".into(), previous.clone());
    }
    Value::Object(config)
}

/// The path for DEL: empty if no namespace is pinned there any more, which plugins must take.
async fn namespace(path: &str) -> Result<String> {
    let path = path.to_owned();
    thread::run("wharf-cni", move || {
        let there = statfs(Path::new(&path)).is_ok_and(|found| found.filesystem_type() == NAMESPACE);
        Ok(if there { path } else { String::new() })
    })
    .await
}
