//! A record that many read and one changes at a time.

use std::{path::PathBuf, sync::Arc};

use prost::Message;
use tokio::sync::{Mutex, watch};

use super::{Bell, Error, Result, write_record};

/// A durable record together with its newest published state.
///
/// Readers get the newest state without waiting for a change in progress and without touching the disk (design
/// decision 5). A change is on disk before anyone sees it.
#[derive(Debug)]
pub struct Published<M> {
    path: PathBuf,
    current: watch::Sender<Arc<M>>,
    changing: Mutex<()>,
    /// Rung with each new state.
    bell: Bell,
}

impl<M: Message + Default + Clone + PartialEq + 'static> Published<M> {
    /// Publishes `message` as what the file at `path` holds; the file is not touched before the first change.
    pub fn new(path: PathBuf, message: M) -> Self {
        Self::ringing(path, message, Bell::default())
    }

    /// As [`Published::new`]; `bell` is rung after each change.
    pub fn ringing(path: PathBuf, message: M, bell: Bell) -> Self {
        Self {
            path,
            current: watch::Sender::new(Arc::new(message)),
            changing: Mutex::new(()),
            bell,
        }
    }

    /// The newest state.
    pub fn get(&self) -> Arc<M> {
        self.current.borrow().clone()
    }

    /// The state and its later changes.
    pub fn subscribe(&self) -> watch::Receiver<Arc<M>> {
        self.current.subscribe()
    }

    /// Applies `edit` to the newest state, writes the result and then publishes it. An edit that changes nothing
    /// writes nothing.
    ///
    /// # Errors
    /// When the record can't be written; then nothing is published.
    pub async fn change(&self, edit: impl FnOnce(&mut M)) -> Result<Arc<M>> {
        let _one_at_a_time = self.changing.lock().await;
        let before = self.get();
        let mut message = (*before).clone();
        edit(&mut message);
        if message == *before {
            return Ok(before);
        }
        let message = Arc::new(message);
        let (path, to_write) = (self.path.clone(), Arc::clone(&message));
        tokio::task::spawn_blocking(move || write_record(&path, &*to_write))
            .await
            .map_err(|error| Error::Io {
                attempt: "write record",
                path: self.path.clone(),
                source: std::io::Error::other(error),
            })??;
        self.current.send_replace(Arc::clone(&message));
        self.bell.ring();
        Ok(message)
    }

    /// As [`Published::change`] for a step on the way down, which must not depend on room on the disk: where the record
    /// can't be written, the state is published all the same and the failure logged. A later start does the step again.
    pub async fn change_regardless(&self, edit: impl Fn(&mut M)) -> Arc<M> {
        match self.change(&edit).await {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "a record could not be written; the work goes on");
                self.publish_unwritten(edit)
            }
        }
    }

    /// Publishes without writing: for a state that the disk refused to take but that is true nevertheless.
    pub fn publish_unwritten(&self, edit: impl FnOnce(&mut M)) -> Arc<M> {
        self.current.send_modify(|current| {
            let mut message = (**current).clone();
            edit(&mut message);
            *current = Arc::new(message);
        });
        self.bell.ring();
        self.get()
    }
}
