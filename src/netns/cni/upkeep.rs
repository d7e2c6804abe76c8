//! What is done now and then: GC of what belongs to no living pod, CHECK of what the living ones have.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::config::NetworkList;
use super::dir::Directory;
use super::plugin::Call;
use super::{Attached, Inner, TOLD_SINCE, args, configure, parts};
use crate::netns::Result;

/// GC came with this version.
const GC_SINCE: &str = "1.1.0";
/// For so long GC waits for pods that come and go, and keeps others from coming.
const PATIENCE: Duration = Duration::from_secs(2);
/// When it had to give up, it is tried again after this.
const AGAIN: Duration = Duration::from_secs(60);

/// A round as soon as there is a network, and one each time `interval` has passed.
pub(super) async fn rounds(
    inner: Arc<Inner>,
    directories: Arc<HashMap<(PathBuf, usize), Directory>>,
    interval: Duration,
) {
    for directory in directories.values() {
        directory.found().await;
    }
    let mut collected = HashSet::new();
    loop {
        let mut next = interval;
        collected.clear();
        for directory in directories.values() {
            for list in directory.view().lists.iter() {
                // Two directories may have the same network.
                if collected.insert(list.name.clone()) && !inner.collect(list).await {
                    next = AGAIN.min(interval);
                }
            }
        }
        inner.check_all().await;
        tokio::time::sleep(next).await;
    }
}

impl Inner {
    /// GC on one network, as libcni does it: DEL for what is remembered and does not live, then GC by the plugins. Tells
    /// whether it had a turn.
    async fn collect(&self, list: &NetworkList) -> bool {
        if list.disable_gc {
            return true;
        }
        let Ok(_alone) = timeout(PATIENCE, self.turns.write()).await else {
            return false;
        };
        let valid = self.valid(&list.name);
        if let Err(error) = self.forget_dead(list, &valid).await {
            tracing::warn!(network = list.name, %error, "DEL of a pod that is not there any more");
        }
        if list.speaks(GC_SINCE) {
            let valid: Vec<Value> = valid
                .iter()
                .map(|(container, device)| json!({"containerID": container, "ifname": device}))
                .collect();
            for plugin in &list.plugins {
                let mut config = plugin.config.clone();
                // The first is the specification's name, the second one that plugins made for its first draft read.
                config.insert("cni.dev/valid-attachments".into(), valid.clone().into());
                config.insert("cni.dev/attachments".into(), valid.clone().into());
                let call = Call {
                    command: "GC",
                    ..Call::default()
                };
                if let Err(error) = self.runner.run(call, &plugin.kind, &Value::Object(config)).await {
                    tracing::warn!(network = list.name, %error, "a plugin could not collect what is not used");
                }
            }
        }
        true
    }

    /// Container and device of everything that lives on a network.
    fn valid(&self, network: &str) -> HashSet<(String, String)> {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        let mut valid = HashSet::new();
        for (id, pod) in attached.iter() {
            for part in parts(&pod.network) {
                let text = String::from_utf8_lossy(part.config);
                if NetworkList::parse("record", &text).is_ok_and(|list| list.name == network) {
                    valid.insert((id.clone(), part.device));
                }
            }
        }
        valid
    }

    async fn forget_dead(&self, list: &NetworkList, valid: &HashSet<(String, String)>) -> Result<()> {
        let mut outcome = Ok(());
        for entry in self.cache.of(&list.name).await? {
            if valid.contains(&(entry.container_id.clone(), entry.device.clone())) {
                continue;
            }
            let netns = super::namespace(&entry.netns).await?;
            let arguments = args::join(&entry.cni_args);
            let call = Call {
                command: "DEL",
                container_id: &entry.container_id,
                netns: &netns,
                device: &entry.device,
                args: &arguments,
            };
            let kept = entry.config().map(|text| String::from_utf8_lossy(&text).into_owned());
            let kept = kept.and_then(|text| NetworkList::parse("kept result", &text).ok());
            let list = kept.as_ref().unwrap_or(list);
            let previous = if list.speaks(TOLD_SINCE) {
                &entry.result
            } else {
                &Value::Null
            };
            let deleted = match self.delete_by(call, list, &entry.capabilities, previous).await {
                Ok(()) => {
                    self.cache
                        .remove(&entry.network, &entry.container_id, &entry.device)
                        .await
                }
                Err(error) => Err(error),
            };
            outcome = outcome.and(deleted);
        }
        outcome
    }

    /// CHECK of every pod. What is wrong is told in the log: the node can't repair what a plugin has made.
    async fn check_all(&self) {
        let attached: Vec<Arc<Attached>> = {
            let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
            attached.values().cloned().collect()
        };
        for pod in attached {
            if let Err(error) = self.check(&pod).await {
                tracing::warn!(pod = pod.pod.pod_id, %error, "the pod's network is not as it was made");
            }
        }
    }

    async fn check(&self, attached: &Attached) -> Result<()> {
        let pod = &attached.pod;
        // What is left of a pod of an earlier boot is for its DEL.
        if super::namespace(&attached.network.netns).await?.is_empty() {
            return Ok(());
        }
        let arguments = args::join(&args::environment(pod));
        for part in parts(&attached.network) {
            let text = String::from_utf8_lossy(part.config);
            let list = NetworkList::parse(&format!("recorded for pod {}", pod.pod_id), &text)?;
            // Without a result it is still being attached, or was before the daemon's last end.
            let Ok(previous) = serde_json::from_slice::<Value>(part.result) else {
                continue;
            };
            if list.disable_check || !list.speaks(TOLD_SINCE) {
                continue;
            }
            let call = Call {
                command: "CHECK",
                container_id: &pod.pod_id,
                netns: &attached.network.netns,
                device: &part.device,
                args: &arguments,
            };
            let capabilities = args::capabilities(pod)?;
            for plugin in &list.plugins {
                let config = configure(plugin, &capabilities, &previous);
                // One that went meanwhile is no fault.
                if !self.lives(&pod.pod_id) {
                    return Ok(());
                }
                let checked = self.runner.run(call, &plugin.kind, &config).await;
                if checked.is_err() && self.lives(&pod.pod_id) {
                    return checked.map(drop);
                }
            }
        }
        Ok(())
    }

    fn lives(&self, pod: &str) -> bool {
        let attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        attached.contains_key(pod)
    }
}
