//! The events on disk: a head with all that was told last, then events, each with its length in front.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use prost::Message;
use wharf_proto::{api::Event, record};

use super::{KEPT, Past, decoded};
use crate::store;

/// The file that the thread writes.
pub(super) struct File {
    path: PathBuf,
    boot_id: String,
    open: Option<fs::File>,
    /// Events behind those of the last rewriting.
    appended: usize,
}

impl File {
    pub fn new(path: PathBuf, boot_id: String) -> Self {
        Self {
            path,
            boot_id,
            open: None,
            appended: 0,
        }
    }

    /// Writes the file anew, in one step.
    pub fn rewrite(&mut self, past: &Past) {
        let head = record::EventsHead {
            schema: store::schema(),
            boot_id: self.boot_id.clone(),
            epoch: past.epoch.clone(),
            next: past.next,
            last: past.last.values().map(|event| decoded(event)).collect(),
            images: past
                .images
                .iter()
                .map(|(id, names)| record::ImageNames {
                    id: id.clone(),
                    names: names.iter().cloned().collect(),
                })
                .collect(),
        };
        let mut bytes = head.encode_length_delimited_to_vec();
        for event in &past.events {
            // A vector grows: there is always room.
            let _ = prost::encode_length_delimiter(event.len(), &mut bytes);
            bytes.extend_from_slice(event);
        }
        let written = store::write_file(&self.path, &bytes, 0o600).map_err(|error| error.to_string());
        let opened = written.and_then(|()| {
            let open = fs::File::options().append(true).open(&self.path);
            open.map_err(|error| error.to_string())
        });
        match opened {
            Ok(open) => {
                self.open = Some(open);
                self.appended = 0;
            }
            Err(error) => self.give_up(&error),
        }
    }

    /// Adds events. The kernel has them when this returns, whatever becomes of the daemon.
    pub fn append(&mut self, events: &[Event]) {
        let Some(open) = &mut self.open else { return };
        let bytes: Vec<u8> = events
            .iter()
            .flat_map(Message::encode_length_delimited_to_vec)
            .collect();
        match open.write_all(&bytes) {
            Ok(()) => self.appended += events.len(),
            Err(error) => self.give_up(&error.to_string()),
        }
    }

    /// Whether most of it is not kept any more.
    pub fn is_long(&self) -> bool {
        self.appended > 2 * KEPT
    }

    /// Goes on without a file. The next daemon must not take what it says for all: it goes.
    fn give_up(&mut self, error: &str) {
        self.open = None;
        let removed = fs::remove_file(&self.path);
        tracing::warn!(path = %self.path.display(), error, ?removed, "events are not kept over a restart of the daemon");
    }
}

/// What an earlier daemon of this boot has written; none if there is none, or it is not whole to its head.
pub(super) fn load(path: &Path, boot_id: &str) -> Option<Past> {
    let bytes = fs::read(path).ok()?;
    let mut rest = bytes.as_slice();
    let head = record::EventsHead::decode_length_delimited(&mut rest).ok()?;
    if head.boot_id != boot_id || head.schema == 0 || head.schema > store::schema() || head.epoch.is_empty() {
        return None;
    }
    let mut past = Past::begin(head.epoch);
    past.last = head
        .last
        .into_iter()
        .map(|event| (event.id.clone(), event.encode_to_vec().into()))
        .collect();
    past.images = head
        .images
        .into_iter()
        .map(|image| (image.id, image.names.into_iter().collect()))
        .collect();
    // A daemon that was killed while it wrote leaves half an event, which nobody has seen.
    while !rest.is_empty()
        && let Ok(event) = Event::decode_length_delimited(&mut rest)
    {
        past.add(&event);
    }
    past.next = past.next.max(head.next);
    Some(past)
}
