//! How plugins come in: they register, are configured, told of all that there is, and join the others.

use std::sync::Arc;

use futures_util::future::join_all;
use prost::Message as _;
use tokio::{net::UnixStream, process::Child, sync::mpsc};
use wharf_proto::nri::{
    Container, ContainerUpdate, PodSandbox, SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};

use super::{
    Inner, State,
    connection::{Incoming, code},
    frame::LARGEST,
    launch::{self, Installed},
    merge::Wishes,
    plugin::{Identity, Plugin},
};

/// What pods and containers of one message may take, bytes; the rest is for what is around them.
const ROOM: usize = LARGEST - (4 << 10);

impl Inner {
    /// Starts the plugins that are installed, all at once, and lets them join in their order.
    pub(super) async fn launch(self: &Arc<Self>) {
        let (plugins, configs) = (
            self.settings.plugin_path.clone(),
            self.settings.plugin_config_path.clone(),
        );
        let found = tokio::task::spawn_blocking(move || launch::installed(&plugins, &configs)).await;
        let starts = found
            .unwrap_or_default()
            .into_iter()
            .map(|plugin| self.start_one(plugin));
        for (plugin, incoming) in join_all(starts).await.into_iter().flatten() {
            self.join(plugin, incoming).await;
        }
    }

    async fn start_one(self: &Arc<Self>, installed: Installed) -> Option<(Arc<Plugin>, mpsc::Receiver<Incoming>)> {
        let name = installed.identity.name();
        let (child, socket) = match launch::start(&installed) {
            Ok(started) => started,
            Err(error) => {
                tracing::error!(plugin = name, %error, "an NRI plugin can't be run");
                return None;
            }
        };
        let identity = (installed.identity, installed.config);
        match Plugin::admit(socket, Some(identity), &self.limits, &self.tasks).await {
            Ok((plugin, incoming)) => {
                let (owner, mut child) = (Arc::clone(&plugin), child);
                self.tasks.spawn(async move {
                    tokio::select! {
                        status = child.wait() => match status {
                            Ok(status) => tracing::warn!(plugin = owner.name(), %status, "an NRI plugin has ended"),
                            Err(error) => tracing::warn!(plugin = owner.name(), %error, "an NRI plugin can't be waited for"),
                        },
                        () = owner.closed() => end(&owner.identity, &mut child).await,
                    }
                    owner.close();
                });
                Some((plugin, incoming))
            }
            Err(error) => {
                tracing::error!(plugin = name, error, "an NRI plugin is not used");
                let mut child = child;
                if let Err(error) = child.kill().await {
                    tracing::warn!(plugin = name, %error, "an NRI plugin can't be ended");
                }
                None
            }
        }
    }

    /// Lets a plugin that has connected come in.
    pub(super) async fn admit(self: Arc<Self>, socket: UnixStream) {
        let admitted = tokio::select! {
            admitted = Plugin::admit(socket, None, &self.limits, &self.tasks) => admitted,
            () = self.ending.cancelled() => return,
        };
        match admitted {
            Ok((plugin, incoming)) => self.join(plugin, incoming).await,
            Err(error) => tracing::error!(error, "an NRI plugin that has connected is not used"),
        }
    }

    /// Tells a plugin of all that there is and has it hear what happens from then on.
    async fn join(self: &Arc<Self>, plugin: Arc<Plugin>, incoming: mpsc::Receiver<Incoming>) {
        let name = plugin.name();
        {
            let mut turn = self.turn.lock().await;
            if self.ending.is_cancelled() {
                return plugin.close();
            }
            let all = turn.told.all(self.state().await);
            let counts = (all.pods.len(), all.containers.len());
            let updates = match synchronize(&plugin, all).await {
                Ok(updates) => updates,
                Err(error) => {
                    tracing::error!(
                        plugin = name,
                        error,
                        "an NRI plugin that could not be told of all there is is cut off"
                    );
                    return plugin.close();
                }
            };
            turn.plugins.push(Arc::clone(&plugin));
            // Among equals who came first.
            turn.plugins
                .sort_by(|one, other| one.identity.index.cmp(&other.identity.index));
            turn.tidy(self);
            tracing::info!(
                plugin = name,
                pid = plugin.pid(),
                pods = counts.0,
                containers = counts.1,
                "NRI plugin is there"
            );
            let wishes = Wishes {
                updates,
                evictions: Vec::new(),
            };
            self.grant(wishes).await;
        }
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            inner.serve(&plugin, incoming).await;
            tracing::info!(plugin = plugin.name(), "NRI plugin has gone");
            inner.turn.lock().await.tidy(&inner);
        });
    }

    /// Answers what a plugin asks for, until it goes.
    async fn serve(&self, plugin: &Plugin, mut incoming: mpsc::Receiver<Incoming>) {
        while let Some(request) = incoming.recv().await {
            if request.method != "UpdateContainers" {
                let refusal = (code::UNIMPLEMENTED, format!("method {}", request.method));
                plugin.answer::<UpdateContainersResponse>(&request, Err(refusal)).await;
                continue;
            }
            let answer = match UpdateContainersRequest::decode(request.content.as_slice()) {
                Ok(asked) => {
                    let failed = self.change(&plugin.name(), asked.update, asked.evict).await;
                    Ok(UpdateContainersResponse { failed })
                }
                Err(error) => Err((code::INVALID_ARGUMENT, error.to_string())),
            };
            plugin.answer(&request, answer).await;
        }
    }
}

/// Ends a plugin's process, which has had its socket closed.
async fn end(identity: &Identity, child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::warn!(plugin = identity.name(), %error, "an NRI plugin can't be ended");
    }
}

/// Tells a plugin of all that there is, in as many messages as it takes; what it wants changed.
async fn synchronize(plugin: &Plugin, all: State) -> Result<Vec<ContainerUpdate>, String> {
    let mut messages = split(all).into_iter().peekable();
    loop {
        let Some((pods, containers)) = messages.next() else {
            return Ok(Vec::new());
        };
        let more = messages.peek().is_some();
        let request = SynchronizeRequest { pods, containers, more };
        let answer: SynchronizeResponse = plugin
            .ask("Synchronize", &request)
            .await
            .map_err(|fault| fault.to_string())?;
        if !more {
            return Ok(answer.update);
        }
        if !answer.more || !answer.update.is_empty() {
            return Err("it does not understand that more is to come".to_owned());
        }
    }
}

/// Everything in pieces that fit into messages; one at least.
fn split(all: State) -> Vec<(Vec<PodSandbox>, Vec<Container>)> {
    let mut left = ROOM;
    // A tag and a length are at most 6 bytes.
    let mut is_full = |length: usize| {
        let full = length + 6 > left;
        left = if full { ROOM } else { left }.saturating_sub(length + 6);
        full
    };
    let (mut pieces, mut piece) = (Vec::new(), (Vec::new(), Vec::new()));
    for pod in all.pods {
        if is_full(pod.encoded_len()) {
            pieces.push(std::mem::take(&mut piece));
        }
        piece.0.push(pod);
    }
    for container in all.containers {
        if is_full(container.encoded_len()) {
            pieces.push(std::mem::take(&mut piece));
        }
        piece.1.push(container);
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_told_in_pieces_that_fit_and_nothing_is_left_out() {
        let fat = |id: usize| Container {
            id: id.to_string(),
            args: vec!["x".repeat(1 << 20)],
            ..Default::default()
        };
        let all = State {
            pods: (0..3)
                .map(|id| PodSandbox {
                    id: format!("p{id}"),
                    ..Default::default()
                })
                .collect(),
            containers: (0..10).map(fat).collect(),
        };
        let pieces = split(all);
        assert_eq!(pieces.len(), 4);
        for (pods, containers) in &pieces {
            let request = SynchronizeRequest {
                pods: pods.clone(),
                containers: containers.clone(),
                more: true,
            };
            assert!(request.encoded_len() <= LARGEST - 200);
        }
        let ids: Vec<_> = pieces
            .iter()
            .flat_map(|piece| &piece.1)
            .map(|one| one.id.as_str())
            .collect();
        assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]);
        assert_eq!(pieces[0].0.len(), 3);
        assert_eq!(split(State::default()).len(), 1);
    }
}
