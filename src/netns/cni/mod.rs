//! The Container Network Interface: plugins that are programs, configured by files, run in a chain.

mod args;
mod config;
#[cfg(fuzzing)]
pub mod fuzzing;
mod plugin;
mod result;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::statfs::{FsType, statfs};
use serde_json::Value;
use tokio::task::AbortHandle;
use wharf_proto::record;

use super::{Error, NetworkStatus, PodNetwork, Result, thread};
use config::NetworkList;
use plugin::Call;
use watch::Watch;

/// How this kind of network is called in records.
pub(super) const KIND: &str = "cni";
/// Name of the pod's device.
const DEVICE: &str = "eth0";
/// `NSFS_MAGIC`: what a pinned namespace's file system says.
const NAMESPACE: FsType = FsType(0x6e73_6673);

/// What the last look at the directory found: a configuration, or why there is none.
type Found = std::result::Result<Arc<NetworkList>, String>;

/// The network; see the module.
#[derive(Debug)]
pub(super) struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    limit: Duration,
    found: Arc<RwLock<Found>>,
    watcher: Option<Task>,
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Cni {
    /// Looks for a configuration and, if `watched`, goes on looking.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub(super) async fn open(config: &crate::config::Cni, watched: bool) -> Result<Self> {
        let dir = config.conf_dir.clone();
        let found = Arc::new(RwLock::new(Err(absent(&dir))));
        let watcher = if watched {
            // Watching begins before looking, so that no change falls in between.
            let first = Watch::new(&dir)?;
            look(&dir, &found).await;
            let shared = found.clone();
            Some(Task(tokio::spawn(keep_looking(dir, first, shared)).abort_handle()))
        } else {
            None
        };
        Ok(Self {
            conf_dir: config.conf_dir.clone(),
            bin_dirs: config.bin_dirs.clone(),
            limit: Duration::from_secs(config.timeout_secs),
            found,
            watcher,
        })
    }

    /// See [`super::Networks::status`].
    pub(super) fn status(&self) -> NetworkStatus {
        let message = match &*self.found.read().unwrap_or_else(PoisonError::into_inner) {
            Ok(_) if self.watcher.is_some() => {
                return NetworkStatus {
                    ready: true,
                    reason: String::new(),
                    message: String::new(),
                };
            }
            Ok(_) => "CNI is not configured".to_owned(),
            Err(message) => message.clone(),
        };
        NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".to_owned(),
            message,
        }
    }

    /// See [`super::Networks::attach`].
    pub(super) async fn attach<N: Future<Output = ()> + Send>(
        &self,
        pod: &PodNetwork,
        note: impl FnOnce(record::Network) -> N + Send,
    ) -> Result<record::Network> {
        // A configuration that was written a moment ago counts, whether or not the watcher was there yet.
        look(&self.conf_dir, &self.found).await;
        let found = self.found.read().unwrap_or_else(PoisonError::into_inner).clone();
        let list = found.map_err(Error::NotReady)?;
        let mut network = record::Network {
            kind: KIND.to_owned(),
            netns: pod.netns.to_string_lossy().into_owned(),
            cni_config: list.text.clone().into_bytes(),
            attempted: true,
            ..Default::default()
        };
        note(network.clone()).await;
        let added = self.add(pod, &list).await.and_then(|answer| {
            let ips = result::addresses(&answer).map_err(|reason| Error::CniPlugin {
                command: "ADD",
                plugin: list
                    .plugins
                    .last()
                    .map(|plugin| plugin.kind.clone())
                    .unwrap_or_default(),
                netns: network.netns.clone(),
                reason,
            })?;
            Ok((answer, ips))
        });
        match added {
            Ok((answer, ips)) => {
                network.cni_result = answer.to_string().into_bytes();
                network.ips = ips;
                Ok(network)
            }
            Err(error) => {
                if let Err(second) = self.detach(pod, &network).await {
                    tracing::warn!(pod = pod.pod_id, error = %second, "CNI DEL after a failed ADD; a detach is due");
                }
                Err(error)
            }
        }
    }

    async fn add(&self, pod: &PodNetwork, list: &NetworkList) -> Result<Value> {
        let (netns, args) = (pod.netns.to_string_lossy(), args::environment(pod));
        let call = self.call("ADD", &pod.pod_id, &netns, &args);
        let mut previous = Value::Null;
        for plugin in &list.plugins {
            let config = configure(plugin, pod, &previous)?;
            let answer = call.run(&plugin.kind, &config).await?;
            // A plugin that changes nothing hands on what it got; one that says nothing is taken to do so.
            if !answer.is_null() {
                previous = answer;
            }
        }
        Ok(previous)
    }

    /// See [`super::Networks::detach`]. Every plugin gets its turn; the first error is returned.
    pub(super) async fn detach(&self, pod: &PodNetwork, network: &record::Network) -> Result<()> {
        let text = String::from_utf8_lossy(&network.cni_config);
        let list = NetworkList::parse(&format!("recorded for pod {}", pod.pod_id), &text)?;
        let previous = if list.tells_result_on_del() {
            serde_json::from_slice(&network.cni_result).unwrap_or(Value::Null)
        } else {
            Value::Null
        };
        let netns = namespace(&network.netns).await?;
        let args = args::environment(pod);
        let call = self.call("DEL", &pod.pod_id, &netns, &args);
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let deleted = match configure(plugin, pod, &previous) {
                Ok(config) => call.run(&plugin.kind, &config).await.map(drop),
                Err(error) => Err(error),
            };
            outcome = outcome.and(deleted);
        }
        outcome
    }

    fn call<'a>(&'a self, command: &'static str, container_id: &'a str, netns: &'a str, args: &'a str) -> Call<'a> {
        Call {
            command,
            container_id,
            netns,
            args,
            bin_dirs: &self.bin_dirs,
            limit: self.limit,
        }
    }
}

/// The plugin's configuration as it goes to its standard input.
fn configure(plugin: &config::Plugin, pod: &PodNetwork, previous: &Value) -> Result<Value> {
    let mut config = plugin.config.clone();
    config.remove("capabilities");
    let runtime = args::runtime_config(plugin, pod)?;
    if !runtime.is_empty() {
        config.insert("runtimeConfig".into(), Value::Object(runtime));
    }
    if !previous.is_null() {
        config.insert("prevResult".into(), previous.clone());
    }
    Ok(Value::Object(config))
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

fn absent(dir: &Path) -> String {
    format!("no CNI network configuration in {}", dir.display())
}

/// Looks at the directory and publishes what is there.
async fn look(dir: &Path, found: &RwLock<Found>) {
    let path = dir.to_owned();
    let seen = match thread::run("wharf-cni", move || NetworkList::first_in(&path)).await {
        Ok(Some(list)) => Ok(Arc::new(list)),
        Ok(None) => Err(absent(dir)),
        Err(error) => Err(error.to_string()),
    };
    *found.write().unwrap_or_else(PoisonError::into_inner) = seen;
}

async fn keep_looking(dir: PathBuf, mut watch: Watch, found: Arc<RwLock<Found>>) {
    loop {
        let next = match watch.changed().await {
            // A new watch each time: the directory may be another one, or have come into being.
            Ok(()) => Watch::new(&dir),
            Err(source) => Err(Error::io("watch", &dir, source)),
        };
        match next {
            Ok(next) => watch = next,
            Err(error) => {
                tracing::error!(%error, "CNI configurations are read again only when a pod is attached");
                return;
            }
        }
        look(&dir, &found).await;
    }
}
