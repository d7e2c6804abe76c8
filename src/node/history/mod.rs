//! What has happened on this node, kept for those who come back and ask what they have missed (feature row B18).
//!
//! Pods and containers are told by [`super::events`], images by their room. One thread gives each event its place and
//! writes it to `run_dir/events`; only then it can be read. A file in the run directory outlives the daemon and not the
//! boot, as pods do. What the daemon was killed before it could tell is told at its next start, from what has changed since:
//! so a cursor stays good over restarts, and what it leaves out did not happen. After a reboot, or if the file is
//! lost, cursors from before are refused.

mod file;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    path::PathBuf,
    sync::{
        Arc, RwLock, RwLockReadGuard,
        mpsc::{Receiver, Sender, channel},
    },
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
pub use stream::{Ask, Listener};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use wharf_proto::api::{Event, EventKind};

use super::events::Step;
use crate::{images::Change, store};

/// Events that are kept.
const KEPT: usize = 2048;
/// Bytes that they may have together, encoded.
const BYTES: usize = 1 << 20;
/// Memory is taken for so many bytes of events at once. They outlive what they tell of: each in pieces of its own would hold the
/// pages between which pods that are gone had theirs.
const BLOCK: usize = 16 << 10;

/// The events that are kept, and what was told last of all that is there.
#[derive(Debug)]
struct Past {
    /// Tells this row of events from others: another boot's, or one that was lost.
    epoch: String,
    /// Number of the next event; they count from 1.
    next: u64,
    /// Encoded, the oldest first.
    events: VecDeque<Bytes>,
    /// Number of the oldest.
    first: u64,
    bytes: usize,
    /// Room for the next ones.
    block: BytesMut,
    /// The newest event of each pod and container that is there, encoded.
    last: HashMap<String, Box<[u8]>>,
    /// Names of each image that is here, as told.
    images: BTreeMap<String, BTreeSet<String>>,
}

/// The history. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct History(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    past: RwLock<Past>,
    /// Number of the newest event.
    newest: watch::Sender<u64>,
    orders: Sender<Order>,
}

/// What the thread is told.
enum Order {
    /// A pod or container has these steps behind it; the event says all but which.
    Object(Vec<Step>, Box<Event>),
    /// Something has happened to an image.
    Image(Change),
    /// All that is there: ids of pods and containers, and images with their names.
    Settle(HashSet<String>, Vec<(String, Vec<String>)>),
    End,
}

impl History {
    /// Reads what an earlier daemon of this boot has told, and starts the thread in `tasks`. Blocking.
    pub fn open(run_dir: PathBuf, boot_id: &str, tasks: &TaskTracker) -> Self {
        let path = run_dir.join("events");
        let past = file::load(&path, boot_id).unwrap_or_else(|| Past::begin(new_epoch()));
        let (orders, incoming) = channel();
        let newest = watch::Sender::new(past.next - 1);
        let history = Self(Arc::new(Shared {
            past: RwLock::new(past),
            newest,
            orders,
        }));
        // Weak: the thread ends with the last handle, or when it is told to.
        let (shared, boot_id) = (Arc::downgrade(&history.0), boot_id.to_owned());
        tasks.spawn_blocking(move || {
            let mut file = file::File::new(path, boot_id);
            if let Some(shared) = shared.upgrade() {
                file.rewrite(&shared.past());
            }
            while let Some(order) = next(&incoming) {
                let Some(shared) = shared.upgrade() else { return };
                shared.take(order, &mut file);
            }
        });
        history
    }

    /// Notes that a pod or container has `reached` these steps; `event` describes it, without a step.
    pub fn object(&self, reached: &[Step], event: Event) {
        self.send(Order::Object(reached.to_vec(), Box::new(event)));
    }

    /// Notes what has happened to an image.
    pub fn image(&self, change: Change) {
        self.send(Order::Image(change));
    }

    /// Says what is there: what was told of, and is not, went while nobody could tell; images may have come as well.
    pub fn settle(&self, ids: HashSet<String>, images: Vec<(String, Vec<String>)>) {
        self.send(Order::Settle(ids, images));
    }

    /// Ends the thread. What happens later is told by the next daemon.
    pub fn end(&self) {
        self.send(Order::End);
    }

    fn send(&self, order: Order) {
        // Fails when the thread has ended: see above.
        let _ = self.0.orders.send(order);
    }
}

/// The next order; none when the history ends.
fn next(incoming: &Receiver<Order>) -> Option<Order> {
    match incoming.recv() {
        Ok(Order::End) | Err(_) => None,
        Ok(order) => Some(order),
    }
}

impl Shared {
    fn past(&self) -> RwLockReadGuard<'_, Past> {
        self.past.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Makes events of an order, writes them, and shows them. Only the thread calls this, so that nothing comes between.
    fn take(&self, order: Order, file: &mut file::File) {
        let new = self.past().events_of(order);
        if new.is_empty() {
            return;
        }
        file.append(&new);
        let newest = {
            let mut past = self.past.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            new.iter().for_each(|event| past.add(event));
            past.next - 1
        };
        if file.is_long() {
            file.rewrite(&self.past());
        }
        self.newest.send_replace(newest);
    }
}

impl Past {
    fn begin(epoch: String) -> Self {
        Self {
            epoch,
            next: 1,
            events: VecDeque::new(),
            first: 1,
            bytes: 0,
            block: BytesMut::new(),
            last: HashMap::new(),
            images: BTreeMap::new(),
        }
    }

    /// The events that an order stands for, numbered.
    fn events_of(&self, order: Order) -> Vec<Event> {
        let mut new = match order {
            Order::Object(reached, event) => self.steps(&reached, &event),
            Order::Image(change) => vec![image_event(&change.id, &change.name, change.action)],
            Order::Settle(ids, images) => self.settled(&ids, images),
            Order::End => Vec::new(),
        };
        for (event, number) in new.iter_mut().zip(self.next..) {
            event.time = store::now();
            event.cursor = cursor(&self.epoch, number);
        }
        new
    }

    fn steps(&self, reached: &[Step], event: &Event) -> Vec<Event> {
        let last = self.last.get(&event.id).and_then(|event| step(&decoded(event).action));
        let new = reached.iter().filter(|step| last.is_none_or(|last| **step > last));
        new.map(|step| Event {
            action: action(*step).to_owned(),
            ..event.clone()
        })
        .collect()
    }

    fn settled(&self, ids: &HashSet<String>, images: Vec<(String, Vec<String>)>) -> Vec<Event> {
        let gone = self.last.iter().filter(|(id, _)| !ids.contains(*id));
        let mut new: Vec<Event> = gone.map(|(_, event)| decoded(event)).collect();
        // Containers before their pods, in the order of their coming.
        new.sort_by_key(|event| (event.kind() == EventKind::Pod, number_of(&event.cursor)));
        for event in &mut new {
            action(Step::Deleted).clone_into(&mut event.action);
        }
        let here: BTreeMap<String, BTreeSet<String>> = images
            .into_iter()
            .map(|(id, names)| (id, names.into_iter().collect()))
            .collect();
        for (id, names) in &self.images {
            match here.get(id) {
                None => new.push(image_event(id, names.first().map_or("", String::as_str), "remove")),
                Some(now) => new.extend(names.difference(now).map(|name| image_event(id, name, "untag"))),
            }
        }
        for (id, names) in &here {
            let told = self.images.get(id);
            if told.is_none() && names.is_empty() {
                new.push(image_event(id, "", "pull"));
            }
            for (at, name) in names
                .iter()
                .filter(|name| told.is_none_or(|told| !told.contains(*name)))
                .enumerate()
            {
                let action = if told.is_none() && at == 0 { "pull" } else { "tag" };
                new.push(image_event(id, name, action));
            }
        }
        new
    }

    fn add(&mut self, event: &Event) {
        self.note(event);
        let number = number_of(&event.cursor);
        self.next = number + 1;
        let length = event.encoded_len();
        if self.block.capacity() < length {
            self.block = BytesMut::with_capacity(BLOCK.max(length));
        }
        // There is room.
        let _ = event.encode(&mut self.block);
        if self.events.is_empty() {
            self.first = number;
        }
        self.bytes += length;
        self.events.push_back(self.block.split().freeze());
        while self.events.len() > KEPT || self.bytes > BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.first += 1;
            self.bytes -= oldest.len();
        }
    }

    /// The event with this number, if it is kept.
    fn get(&self, number: u64) -> Option<Event> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.events.get(index).map(|event| decoded(event))
    }

    /// Remembers what was told last.
    fn note(&mut self, event: &Event) {
        if event.kind() != EventKind::Image {
            if step(&event.action) == Some(Step::Deleted) {
                self.last.remove(&event.id);
            } else {
                self.last.insert(event.id.clone(), event.encode_to_vec().into());
            }
            return;
        }
        match event.action.as_str() {
            "remove" => drop(self.images.remove(&event.id)),
            "untag" => {
                if let Some(names) = self.images.get_mut(&event.id) {
                    names.remove(&event.name);
                }
            }
            _ => {
                let names = self.images.entry(event.id.clone()).or_default();
                if !event.name.is_empty() {
                    names.insert(event.name.clone());
                }
            }
        }
    }

    /// Number of the oldest event that is kept, or of the next if none is.
    fn oldest(&self) -> u64 {
        if self.events.is_empty() { self.next } else { self.first }
    }
}

/// What was encoded here.
fn decoded(event: &[u8]) -> Event {
    Event::decode(event).unwrap_or_default()
}

fn image_event(id: &str, name: &str, action: &str) -> Event {
    Event {
        kind: EventKind::Image.into(),
        action: action.to_owned(),
        id: id.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    }
}

fn action(step: Step) -> &'static str {
    match step {
        Step::Created => "create",
        Step::Started => "start",
        Step::Stopped => "stop",
        Step::Deleted => "remove",
    }
}

fn step(action: &str) -> Option<Step> {
    let all = [Step::Created, Step::Started, Step::Stopped, Step::Deleted];
    all.into_iter().find(|step| self::action(*step) == action)
}

/// The place of an event, for people and programs to keep.
fn cursor(epoch: &str, number: u64) -> String {
    format!("{epoch}.{number}")
}

fn number_of(cursor: &str) -> u64 {
    cursor
        .rsplit('.')
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

fn new_epoch() -> String {
    // Sixteen digits do: it must differ from those that somebody still has a cursor of.
    store::new_id().map_or_else(|_| store::now().to_string(), |id| id[..16].to_owned())
}
