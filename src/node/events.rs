//! What happens to pods and containers, told to whoever listens (feature rows B18 and B19).
//!
//! Nobody reports an event: whoever changed an object calls [`Node::tell_pod`] or [`Node::tell_container`], which look at
//! where the object stands, remember what was told of it, and tell what is missing, each step once and in order, however
//! the calls race. An object that nobody listened to is remembered too, so that a later listener hears no old news.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use wharf_proto::{
    api::{self, EventKind},
    record::{self, ContainerState, Owner, PodState},
};

use super::{Error, Node, Result, containers::is_visible, history::History};
use crate::{containers::Container, sandbox::Sandbox, store};

/// Events that a listener may be behind before its stream is ended.
const BACKLOG: usize = 1024;

/// A step in the life of a pod or container, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Made, and not running yet.
    Created,
    /// Running.
    Started,
    /// Ended.
    Stopped,
    /// Removed: lists do not show it any more.
    Deleted,
}

/// A pod and its containers at one moment.
#[derive(Debug, Clone)]
pub struct Moment {
    /// Unix time, nanoseconds.
    pub at: i64,
    /// The pod.
    pub pod: Arc<record::Pod>,
    /// Its containers, the newest first.
    pub containers: Vec<Arc<record::Container>>,
}

/// One event.
#[derive(Debug)]
pub struct Event {
    /// Of a container, or of a pod.
    pub id: String,
    /// What happened to it.
    pub step: Step,
    /// The whole pod when it happened, or a little later. Never older than that of the event before.
    pub moment: Moment,
}

/// Where events go.
#[derive(Debug)]
pub(super) struct Bus {
    sender: broadcast::Sender<Arc<Event>>,
    /// The last step that was told, by id. Locked while an event is made, so that events are sent in the order of their
    /// moments.
    told: Mutex<HashMap<String, Step>>,
    closing: CancellationToken,
    history: History,
}

impl Bus {
    pub fn new(history: History) -> Self {
        Self {
            sender: broadcast::Sender::new(BACKLOG),
            told: Mutex::default(),
            closing: CancellationToken::new(),
            history,
        }
    }

    /// What is kept of all events.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.sender.receiver_count()
    }

    /// Cancelled when the streams of listeners must end.
    pub fn closing(&self) -> CancellationToken {
        self.closing.clone()
    }

    /// Sends those of `reached` that were not told yet. `moment` is asked for only when somebody listens, `event`, which
    /// describes the object for the history, when something is new.
    /// Returns the first of what was new.
    fn tell(
        &self,
        id: &str,
        reached: &[Step],
        moment: impl FnOnce() -> Moment,
        event: impl FnOnce() -> api::Event,
    ) -> Option<Step> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let last = told.get(id).copied();
        let mut new = reached.iter().filter(|step| last.is_none_or(|last| **step > last));
        let first = new.next()?;
        if reached.ends_with(&[Step::Deleted]) {
            told.remove(id);
        } else if let Some(last) = reached.last() {
            told.insert(id.to_owned(), *last);
        }
        self.history.object(reached, event());
        if self.sender.receiver_count() == 0 {
            return Some(*first);
        }
        let moment = moment();
        for step in std::iter::once(first).chain(new) {
            // Fails only if the last listener has gone in between.
            let _ = self.sender.send(Arc::new(Event {
                id: id.to_owned(),
                step: *step,
                moment: moment.clone(),
            }));
        }
        Some(*first)
    }
}

/// Somebody who listens. What happens from its making on is kept for it, up to a bound.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    owners: &'static [Owner],
    closing: CancellationToken,
}

impl Subscription {
    /// The next event of a pod of the wanted owners. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::EventsLost`] for a listener that reads too slowly: it must ask for what there is, and may listen anew.
    /// [`Error::Ending`] when the daemon ends. Nothing comes after either.
    pub async fn next(&mut self) -> Result<Arc<Event>> {
        loop {
            let event = tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(Error::Ending),
                event = self.receiver.recv() => event,
            };
            match event {
                Ok(event) if self.owners.contains(&event.moment.pod.owner()) => return Ok(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(count)) => return Err(Error::EventsLost(count)),
                Err(broadcast::error::RecvError::Closed) => return Err(Error::Ending),
            }
        }
    }
}

impl Node {
    /// Listens to what happens to pods of these owners from now on.
    #[must_use]
    pub fn events(&self, owners: &'static [Owner]) -> Subscription {
        Subscription {
            receiver: self.inner.events.sender.subscribe(),
            owners,
            closing: self.inner.events.closing.clone(),
        }
    }

    /// Ends the streams of all listeners, so that the server can end in order.
    pub fn end_events(&self) {
        self.inner.events.closing.cancel();
    }

    /// The pod and its complete containers now. Waits for nothing.
    #[must_use]
    pub fn moment(&self, pod: &Sandbox) -> Moment {
        let mut containers: Vec<_> = self
            .containers_of(&pod.id)
            .iter()
            .filter(|container| !container.claim.is_hidden())
            .map(|container| container.record.get())
            .filter(|record| is_visible(record))
            .collect();
        containers.sort_unstable_by_key(|record| std::cmp::Reverse(record.created_at));
        Moment {
            at: store::now(),
            pod: pod.record.get(),
            containers,
        }
    }

    /// Tells what has happened to `container` since the last call.
    pub(super) fn tell_container(&self, container: &Container) {
        if container.claim.is_hidden() {
            return;
        }
        let record = container.record.get();
        let gone = {
            let known = self.inner.containers.read().unwrap_or_else(PoisonError::into_inner);
            !known.contains_key(&container.id)
        };
        let reached = container_steps(&record, gone);
        let new = self.inner.events.tell(
            &container.id,
            &reached,
            || self.moment(&container.sandbox),
            || container_event(&record, &container.sandbox.record.get()),
        );
        if let (Some(first), Some(exit)) = (new, &record.exit)
            && first <= Step::Stopped
        {
            self.mechanisms().telemetry.container_exit(&exit.reason);
        }
    }

    /// Tells what has happened to the pod itself since the last call.
    pub(super) fn tell_pod(&self, pod: &Sandbox) {
        if pod.claim.is_hidden() {
            return;
        }
        let record = pod.record.get();
        let gone = {
            let known = self.inner.pods.read().unwrap_or_else(PoisonError::into_inner);
            !known.contains_key(&pod.id)
        };
        let reached = pod_steps(&record, gone);
        self.inner
            .events
            .tell(&pod.id, &reached, || self.moment(pod), || pod_event(&record));
    }
}

/// The steps that a container has behind it. One that never became whole has none.
fn container_steps(record: &record::Container, gone: bool) -> Vec<Step> {
    if record.state() == ContainerState::ContainerCreating {
        return Vec::new();
    }
    let mut steps = vec![Step::Created];
    // A process that could not be started never was: its container goes from created to stopped.
    if record.started_at > 0 {
        steps.push(Step::Started);
    }
    if record.exit.is_some() {
        steps.push(Step::Stopped);
    }
    if gone {
        steps.push(Step::Deleted);
    }
    steps
}

fn pod_steps(record: &record::Pod, gone: bool) -> Vec<Step> {
    match record.state() {
        PodState::PodCreating => Vec::new(),
        PodState::PodReady => vec![Step::Created, Step::Started],
        PodState::PodNotReady | PodState::PodRemoving if gone => vec![Step::Created, Step::Stopped, Step::Deleted],
        PodState::PodNotReady | PodState::PodRemoving => vec![Step::Created, Step::Stopped],
    }
}

/// A pod as the history tells of it.
fn pod_event(record: &record::Pod) -> api::Event {
    let config = record.config.clone().unwrap_or_default();
    let metadata = config.metadata.unwrap_or_default();
    api::Event {
        kind: EventKind::Pod.into(),
        id: record.id.clone(),
        name: metadata.name,
        namespace: metadata.namespace,
        labels: config.labels,
        owner: record.owner,
        ..Default::default()
    }
}

/// A container as the history tells of it.
fn container_event(record: &record::Container, pod: &record::Pod) -> api::Event {
    let config = record.config.clone().unwrap_or_default();
    let pod = pod_event(pod);
    let image = config.image.unwrap_or_default();
    api::Event {
        kind: EventKind::Container.into(),
        id: record.id.clone(),
        name: config.metadata.unwrap_or_default().name,
        namespace: pod.namespace,
        pod_id: pod.id,
        pod: pod.name,
        image: if image.user_specified_image.is_empty() {
            image.image
        } else {
            image.user_specified_image
        },
        labels: config.labels,
        exit_code: record.exit.as_ref().map(|exit| exit.code),
        reason: record.exit.as_ref().map(|exit| exit.reason.clone()).unwrap_or_default(),
        owner: pod.owner,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(owner: Owner) -> Moment {
        Moment {
            at: 1,
            pod: Arc::new(record::Pod {
                owner: owner.into(),
                ..Default::default()
            }),
            containers: Vec::new(),
        }
    }

    /// One whose history lies where it can't be written.
    fn bus() -> Bus {
        let nowhere = std::path::PathBuf::from("/proc/wharf");
        Bus::new(History::open(nowhere, "boot", &tokio_util::task::TaskTracker::new()))
    }

    fn listen(bus: &Bus) -> Subscription {
        Subscription {
            receiver: bus.sender.subscribe(),
            owners: &[Owner::Cri],
            closing: bus.closing.clone(),
        }
    }

    #[tokio::test]
    async fn each_step_is_told_once_and_in_order_however_often_it_is_seen() {
        use Step::{Created, Deleted, Started, Stopped};
        let bus = bus();
        bus.tell("old", &[Created], || panic!("nobody listens"), api::Event::default);
        let mut listener = listen(&bus);
        let tell = |id: &str, reached: &[Step]| bus.tell(id, reached, || moment(Owner::Cri), api::Event::default);
        tell("old", &[Created]);
        tell("a", &[Created]);
        tell("a", &[Created]);
        // Its start and its end are seen together, and the start once more by whoever was slow.
        tell("a", &[Created, Started, Stopped]);
        tell("a", &[Created, Started]);
        tell("a", &[Created, Started, Stopped, Deleted]);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let event = listener.next().await.unwrap();
            seen.push((event.id.clone(), event.step));
        }
        assert_eq!(seen, [Created, Started, Stopped, Deleted].map(|s| ("a".to_owned(), s)));
        assert!(!bus.told.lock().unwrap().contains_key("a"));
        bus.closing.cancel();
        assert!(matches!(listener.next().await, Err(Error::Ending)));
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_of_its_loss_and_holds_up_nobody() {
        let bus = bus();
        let (mut slow, mut quick) = (listen(&bus), listen(&bus));
        for number in 0..=BACKLOG {
            bus.tell(
                &number.to_string(),
                &[Step::Created],
                || moment(Owner::Cri),
                api::Event::default,
            );
            assert_eq!(quick.next().await.unwrap().id, number.to_string());
        }
        assert!(matches!(slow.next().await, Err(Error::EventsLost(1))));
    }

    #[tokio::test]
    async fn nobody_hears_of_pods_of_others() {
        let bus = bus();
        let mut listener = listen(&bus);
        bus.tell("theirs", &[Step::Created], || moment(Owner::User), api::Event::default);
        bus.tell("ours", &[Step::Created], || moment(Owner::Cri), api::Event::default);
        assert_eq!(listener.next().await.unwrap().id, "ours");
    }

    #[test]
    fn a_start_that_failed_was_no_start() {
        let record = record::Container {
            state: ContainerState::ContainerExited.into(),
            exit: Some(record::Exit::default()),
            ..Default::default()
        };
        assert_eq!(container_steps(&record, false), [Step::Created, Step::Stopped]);
    }
}
