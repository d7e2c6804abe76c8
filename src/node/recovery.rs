//! What the daemon finds at its start: pods that run on under their monitors, pods of an earlier boot, and work that
//! was cut off. One broken pod delays and spoils nothing but itself.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, future::join_all, stream};
use wharf_proto::{
    monitor::HelloReply,
    record::{self, ContainerState, PodState},
};

use super::{Node, Result};
use crate::{
    containers::{self, Container},
    monitor::{self, client::Client},
    sandbox::{Sandbox, container_record},
    store,
};

/// How long a monitor may take to answer before that is reported.
const MONITOR_LIMIT: Duration = Duration::from_secs(5);

/// How long the start waits for the slowest monitor. Three hundred that are well need a third of it on two cores.
const PATIENCE: Duration = Duration::from_millis(900);

/// Pods of an earlier boot that are taken down at a time.
const CLEARED_AT_ONCE: usize = 4;

/// What is left of a pod on disk.
struct Found {
    pod: Arc<Sandbox>,
    containers: Vec<Arc<Container>>,
    /// Directories of images that are mounted as its volumes.
    image_volumes: Vec<PathBuf>,
}

impl Node {
    /// Takes over the pods on disk. Returns when lists are complete and true.
    pub(super) async fn recover(&self) -> Result<()> {
        let found = self.read_records().await?;
        for Found { pod, containers, .. } in &found {
            self.insert_pod(pod);
            for container in containers {
                self.insert_container(container);
            }
        }
        let directories: Vec<_> = found
            .iter()
            .flat_map(|found| {
                let containers = found.containers.iter().map(|one| one.dir.clone());
                containers.chain(found.image_volumes.iter().cloned())
            })
            .collect();
        self.inner.tools.images.adopt(&directories).await?;
        let live: Vec<_> = found
            .iter()
            .filter(|found| !found.pod.record.get().teardown_done)
            .filter_map(|found| {
                let network = found.pod.record.get().network.clone()?;
                Some((found.pod.pod_network(&self.config()), network))
            })
            .collect();
        self.mechanisms().networks.recover(&live).await?;
        let runs = |one: &&Arc<Container>| {
            matches!(
                one.state(),
                ContainerState::ContainerStarting | ContainerState::ContainerRunning
            )
        };
        let running = found.iter().flat_map(|found| &found.containers).filter(runs);
        containers::cpus::end_others(&self.inner.tools, running.map(|one| one.id.clone()).collect()).await?;
        if let Some(selinux) = &self.mechanisms().selinux {
            let records = found.iter().map(|found| found.pod.record.get());
            records
                .filter(|record| !record.teardown_done)
                .for_each(|record| selinux.reserve(&record.selinux_level));
        }
        // Whoever listens later hears what happens from here on.
        for Found { pod, containers, .. } in &found {
            self.tell_pod(pod);
            containers.iter().for_each(|container| self.tell_container(container));
        }
        let ids = found.iter().flat_map(|found| {
            let containers = found.containers.iter().map(|container| container.id.clone());
            containers.chain([found.pod.id.clone()])
        });
        let images = self.images().list();
        let images = images.iter().map(|image| (image.id.clone(), image.tags.clone()));
        self.inner.events.history().settle(ids.collect(), images.collect());
        let count = found.len();
        let of_earlier_boots: Vec<_> = found
            .iter()
            .map(|found| &found.pod)
            .filter(|pod| self.is_of_an_earlier_boot(pod))
            .cloned()
            .collect();
        let taken = found.into_iter().map(|found| {
            let node = self.clone();
            self.inner.tasks.spawn(async move { node.take_over(&found).await })
        });
        // A monitor that does not answer holds up nothing but its own pod.
        match tokio::time::timeout(PATIENCE, join_all(taken)).await {
            Ok(_) => tracing::info!(pods = count, "recovered"),
            Err(_) => tracing::warn!(pods = count, "recovered; some monitors do not answer yet"),
        }
        if !of_earlier_boots.is_empty() {
            let node = self.clone();
            self.inner
                .tasks
                .spawn(async move { node.clear_after_reboot(of_earlier_boots).await });
        }
        Ok(())
    }

    /// Seen by somebody, not taken down yet, and gone with an earlier boot of the kernel.
    fn is_of_an_earlier_boot(&self, pod: &Sandbox) -> bool {
        let record = pod.record.get();
        let unfinished = matches!(record.state(), PodState::PodCreating | PodState::PodRemoving);
        record.boot_id != self.mechanisms().boot_id && !record.teardown_done && !unfinished
    }

    /// Takes down what a reboot has left of pods: their addresses are free, and their plugins told, before anybody asks.
    /// They stay listed as not ready until kubelet removes them, and what fails here its StopPodSandbox does again.
    async fn clear_after_reboot(&self, pods: Vec<Arc<Sandbox>>) {
        tracing::info!(pods = pods.len(), "takes down pods of an earlier boot");
        let clear = |pod: Arc<Sandbox>| async move {
            if self.inner.ending.is_cancelled() {
                return;
            }
            if let Err(error) = self.stop_pod(&pod).await {
                tracing::warn!(pod = pod.id, %error, "could not take down a pod of an earlier boot; its stop tries again");
            }
        };
        // Each may run a chain of plugins, on a machine that is busy with its start.
        stream::iter(pods).for_each_concurrent(CLEARED_AT_ONCE, clear).await;
    }

    /// Reads every record. A directory without a readable one belongs to a pod that was never acknowledged: it gets a
    /// record that says so, and is taken down like the others.
    async fn read_records(&self) -> Result<Vec<Found>> {
        let roots = self.mechanisms().roots.clone();
        let read = move || -> store::Result<Vec<Found>> {
            let mut ids = store::list_dirs(&roots.pods())?;
            ids.extend(store::list_dirs(&roots.pods_run())?);
            ids.sort();
            ids.dedup();
            let mut found = Vec::new();
            for id in ids {
                let paths = roots.pod(&id);
                let record = read_or_note::<record::Pod>(&paths.record())?.unwrap_or_else(|| record::Pod {
                    schema: store::schema(),
                    id: id.clone(),
                    // Seen by nobody, unless it can't be taken down.
                    state: PodState::PodCreating.into(),
                    ..Default::default()
                });
                store::create_dir(&paths.containers())?;
                let pod = Arc::new(Sandbox::new(&roots, record));
                let mut containers = Vec::new();
                for id in store::list_dirs(&paths.containers())? {
                    let file = container_record(&paths.container(&id));
                    let record = read_or_note::<record::Container>(&file)?.unwrap_or_else(|| record::Container {
                        schema: store::schema(),
                        id: id.clone(),
                        pod_id: pod.id.clone(),
                        state: ContainerState::ContainerCreating.into(),
                        ..Default::default()
                    });
                    containers.push(Arc::new(Container::new(Arc::clone(&pod), record)));
                }
                let directory = paths.image_volumes();
                let image_volumes = store::list_dirs(&directory)?;
                found.push(Found {
                    pod,
                    containers,
                    image_volumes: image_volumes.iter().map(|name| directory.join(name)).collect(),
                });
            }
            Ok(found)
        };
        self.own(async move {
            match tokio::task::spawn_blocking(read).await {
                Ok(found) => Ok(found?),
                Err(error) => Err(super::Error::Internal(format!("read records: {error}"))),
            }
        })
        .await
    }

    async fn take_over(&self, found: &Found) {
        let Found { pod, containers, .. } = found;
        let record = pod.record.get();
        let same_boot = record.boot_id == self.mechanisms().boot_id;
        if same_boot && !record.teardown_done {
            if !self.reach_monitor(pod, containers).await {
                return;
            }
        } else {
            self.monitor_ended(pod).await;
        }
        for container in containers {
            if matches!(
                container.state(),
                ContainerState::ContainerCreating | ContainerState::ContainerRemoving
            ) {
                self.finish_container(container).await;
            }
        }
        // What ended while nobody was here has been settled above; it may have been noted and not finished, too.
        self.remove_if_over(pod);
        if matches!(pod.record.get().state(), PodState::PodCreating | PodState::PodRemoving) {
            let (node, pod) = (self.clone(), Arc::clone(pod));
            self.inner.tasks.spawn(async move {
                if let Err(error) = node.remove_pod(&pod).await {
                    tracing::error!(pod = pod.id, %error, "could not take down an unfinished pod");
                    node.show_broken(&pod).await;
                }
            });
        }
    }

    /// Connects to the pod's monitor, however long that takes: while it does not answer, its containers run on. False
    /// when the daemon ends first.
    async fn reach_monitor(&self, pod: &Arc<Sandbox>, containers: &[Arc<Container>]) -> bool {
        let begun = Instant::now();
        loop {
            let socket = pod.paths.monitor();
            let answer = tokio::select! {
                answer = Client::connect(&socket, MONITOR_LIMIT) => answer,
                () = self.inner.ending.cancelled() => return false,
            };
            match answer {
                Ok((client, hello, events)) => {
                    match monitor::client::serves(&hello, &socket) {
                        Ok(()) => {
                            containers::take_back(&self.inner.tools, &client, containers).await;
                            pod.set_monitor(Arc::new(client), &hello);
                            self.reconcile(containers, &hello).await;
                        }
                        Err(error) => {
                            tracing::error!(pod = pod.id, %error, "the pod runs on, but can only be stopped and removed");
                            pod.refuse_monitor(Arc::new(client), error.to_string());
                        }
                    }
                    self.watch(pod, events);
                    return true;
                }
                Err(error @ monitor::Error::Timeout { .. }) => {
                    tracing::error!(pod = pod.id, %error, "the pod's monitor does not answer; waiting for it");
                    pod.note_unreached(begun);
                }
                Err(error) => {
                    if pod.is_ready() {
                        tracing::error!(pod = pod.id, %error, "the pod's monitor is gone");
                    }
                    self.monitor_ended(pod).await;
                    return true;
                }
            }
        }
    }

    /// Brings the records in line with what the monitor says.
    async fn reconcile(&self, containers: &[Arc<Container>], hello: &HelloReply) {
        for container in containers {
            let known = hello.containers.iter().find(|known| known.id == container.id);
            match known {
                Some(known) if known.running => {
                    container.set_pid(known.pid);
                    container.set_blocked(known.blocked.clone());
                    let edit = |record: &mut record::Container| {
                        if record.state() == ContainerState::ContainerStarting {
                            record.state = ContainerState::ContainerRunning.into();
                            record.started_at = known.started_at;
                        }
                    };
                    if let Err(error) = container.record.change(edit).await {
                        container.record.publish_unwritten(edit);
                        tracing::error!(container = container.id, %error, "could not record that the container runs");
                    }
                    self.tell_container(container);
                }
                Some(known) => {
                    let exit = known.exit.clone().unwrap_or_default();
                    self.container_ended(container, &exit).await;
                }
                None => self.container_lost(container).await,
            }
        }
    }

    async fn finish_container(&self, container: &Arc<Container>) {
        match containers::undo(&self.inner.tools, container).await {
            Ok(()) => self.forget_container(container),
            Err(error) => {
                tracing::error!(container = container.id, %error, "could not remove an unfinished container");
            }
        }
    }
}

/// The record at `path`; none when it is absent, or unreadable after a power loss, which is logged. That of a newer
/// version is an error: it is nothing to take down.
fn read_or_note<M: store::Versioned>(path: &std::path::Path) -> store::Result<Option<M>> {
    match store::read_versioned(path) {
        Err(error @ store::Error::Newer { .. }) => Err(error),
        Err(error) => {
            tracing::error!(%error, "unreadable record: what it stood for is taken down");
            Ok(None)
        }
        read => read,
    }
}
