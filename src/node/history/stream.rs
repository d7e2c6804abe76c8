//! Reading the history: from a cursor, a time, or now on, as fast or slow as the reader is.

use std::collections::HashMap;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wharf_proto::{
    api::{Event, EventFilter, EventKind},
    record::Owner,
};

use super::{History, Past, cursor, decoded, number_of};
use crate::{
    node::{Error, Node, Result},
    store,
};

/// What somebody wants to hear.
#[derive(Debug, Default)]
pub struct Ask {
    /// Behind this event; empty: see `since`.
    pub cursor: String,
    /// From this time on (Unix, nanoseconds); 0: from now on.
    pub since: i64,
    /// Up to this time; 0: without end.
    pub until: i64,
    /// What must hold: one of the values for each key.
    pub filters: Vec<EventFilter>,
}

/// Somebody who reads.
#[derive(Debug)]
pub struct Listener {
    history: History,
    newest: watch::Receiver<u64>,
    /// Number of the next event to look at.
    at: u64,
    since: i64,
    until: i64,
    filters: HashMap<String, Vec<String>>,
    owners: &'static [Owner],
    closing: CancellationToken,
    /// Where the reading began.
    pub cursor: String,
    /// Time of the oldest event that is kept, if there were older ones; 0 if the history is whole.
    pub kept_since: i64,
}

impl Node {
    /// Listens to pods of these owners and to images.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cursor or filter that is none, [`Error::Gone`] when events behind the cursor are not kept.
    pub fn listen(&self, ask: Ask, owners: &'static [Owner]) -> Result<Listener> {
        let closing = self.inner.events.closing();
        Listener::new(self.inner.events.history(), ask, owners, closing)
    }
}

impl Listener {
    pub(super) fn new(
        history: &History,
        ask: Ask,
        owners: &'static [Owner],
        closing: CancellationToken,
    ) -> Result<Self> {
        let filters = filters(ask.filters)?;
        let (at, begin, kept_since) = {
            let past = history.0.past();
            let at = match (ask.cursor.as_str(), ask.since) {
                ("", 0) => past.next,
                ("", _) => past.oldest(),
                (cursor, _) => resume(&past, cursor)?,
            };
            let oldest = past.events.front().map_or(0, |event| decoded(event).time);
            (
                at,
                cursor(&past.epoch, at - 1),
                if past.oldest() > 1 { oldest } else { 0 },
            )
        };
        Ok(Self {
            newest: history.0.newest.subscribe(),
            history: history.clone(),
            at,
            since: ask.since,
            until: ask.until,
            filters,
            owners,
            closing,
            cursor: begin,
            kept_since,
        })
    }

    /// The next event that is wanted; none when the time is over. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::HistoryLost`] for a reader that is so slow that events went before it read them; [`Error::Ending`] when the
    /// daemon ends. Nothing comes after either.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            // Marked as seen before it is looked at: what comes in between wakes.
            let newest = *self.newest.borrow_and_update();
            while self.at <= newest {
                let event = self.take()?;
                if self.until > 0 && event.time > self.until {
                    return Ok(None);
                }
                if event.time >= self.since && self.wants(&event) {
                    return Ok(Some(event));
                }
            }
            let left = match self.until {
                0 => None,
                until => Some(
                    u64::try_from(until - store::now())
                        .map_or(std::time::Duration::ZERO, std::time::Duration::from_nanos),
                ),
            };
            let over = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Err(Error::Ending),
                changed = self.newest.changed() => if changed.is_err() {
                    return Err(Error::Ending);
                },
                () = over => return Ok(None),
            }
        }
    }

    fn take(&mut self) -> Result<Event> {
        let past = self.history.0.past();
        let Some(event) = past.get(self.at) else {
            return Err(Error::HistoryLost(format!(
                "{} events were not read before they were dropped; list what there is and listen from now on",
                past.oldest().saturating_sub(self.at)
            )));
        };
        self.at += 1;
        Ok(event)
    }

    fn wants(&self, event: &Event) -> bool {
        let of_owner =
            event.kind() == EventKind::Image || self.owners.iter().any(|owner| i32::from(*owner) == event.owner);
        of_owner
            && self
                .filters
                .iter()
                .all(|(key, values)| values.iter().any(|value| holds(event, key, value)))
    }
}

/// Number of the event behind the one that `cursor` stands for.
fn resume(past: &Past, cursor: &str) -> Result<u64> {
    let number = number_of(cursor);
    let Some((epoch, _)) = cursor
        .rsplit_once('.')
        .filter(|(epoch, text)| !epoch.is_empty() && text.parse::<u64>().is_ok())
    else {
        return Err(Error::Invalid(format!("{cursor:?} is no cursor of an event")));
    };
    let advice = "list what there is, and listen without a cursor";
    if epoch != past.epoch {
        return Err(Error::Gone(format!(
            "cursor {cursor} is of another boot, or its events were lost: {advice}"
        )));
    }
    if number >= past.next {
        return Err(Error::Invalid(format!(
            "{cursor:?} is the cursor of an event that has not happened"
        )));
    }
    if number + 1 < past.oldest() {
        return Err(Error::Gone(format!(
            "{} events behind cursor {cursor} are not kept any more: {advice}",
            past.oldest() - number - 1
        )));
    }
    Ok(number + 1)
}

/// Values by key; all keys are known.
fn filters(asked: Vec<EventFilter>) -> Result<HashMap<String, Vec<String>>> {
    let mut filters: HashMap<String, Vec<String>> = HashMap::new();
    for EventFilter { key, value } in asked {
        let key = match key.as_str() {
            "event" => "action".to_owned(),
            "kind" => "type".to_owned(),
            "type" | "action" | "id" | "name" | "pod" | "container" | "image" | "namespace" | "label" => key,
            _ => {
                return Err(Error::Invalid(format!(
                    "events have no filter {key:?}; there are type, action, id, name, pod, container, image, namespace and label"
                )));
            }
        };
        filters.entry(key).or_default().push(value);
    }
    Ok(filters)
}

fn holds(event: &Event, key: &str, value: &str) -> bool {
    let is = |kind: EventKind| event.kind() == kind;
    let named = |id: &str, name: &str| {
        name == value
            || (!value.is_empty()
                && id
                    .trim_start_matches("sha256:")
                    .starts_with(value.trim_start_matches("sha256:")))
    };
    match key {
        "type" => kind(event) == value,
        "action" => event.action == value,
        "id" => named(&event.id, ""),
        "name" => event.name == value,
        "namespace" => event.namespace == value,
        "pod" => (is(EventKind::Pod) && named(&event.id, &event.name)) || named(&event.pod_id, &event.pod),
        "container" => is(EventKind::Container) && named(&event.id, &event.name),
        "image" => (is(EventKind::Image) && named(&event.id, &event.name)) || event.image == value,
        "label" => match value.split_once('=') {
            Some((name, value)) => event.labels.get(name).is_some_and(|have| have == value),
            None => event.labels.contains_key(value),
        },
        _ => false,
    }
}

/// The kind in one word.
fn kind(event: &Event) -> &'static str {
    match event.kind() {
        EventKind::Pod => "pod",
        EventKind::Container => "container",
        EventKind::Image => "image",
    }
}
