//! What a pull that was given up had done by then, kept for a while: the next try goes on where it stood (feature row I5).
//!
//! A blob is never stored, so what is kept of one is its unpacker, which waits for the next bytes, and how many it has had. It
//! holds no connection and no part of the memory that transfers share, and costs what its decompressor costs. Layers that were
//! complete are held like those of an image. All of it goes after [`Paused`]'s time, and with the daemon.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    task::{JoinHandle, spawn_blocking},
};

use super::{
    Error, Layer, Result,
    extract::{self, Channel, Feed, Input, Source},
    layers::{Layers, Pin},
};

/// Blobs that are kept half unpacked. Each has two threads that wait.
const MOST: usize = 16;
/// Network reads (up to some 400 KB each) that wait for the decompressor.
const READS: usize = 8;

/// Blob and layer: two blobs with one diff ID are one layer, but a transfer is of a blob.
type Key = (String, String);

/// What is kept. Cheap to clone.
#[derive(Clone)]
pub(super) struct Paused(Arc<Shared>);

struct Shared {
    /// How long something is kept; zero: not at all.
    time: Duration,
    kept: Mutex<Kept>,
    /// Something was kept.
    wake: Notify,
}

#[derive(Default)]
struct Kept {
    blobs: HashMap<Key, (Unpacking, Instant)>,
    layers: HashMap<String, (Pin, Instant)>,
}

/// A blob that is being unpacked by threads that wait for its bytes.
struct Unpacking {
    sender: mpsc::Sender<Input>,
    work: JoinHandle<Result<Pin>>,
    /// Bytes that were sent.
    fed: u64,
    /// It has nothing to do.
    waits: Arc<AtomicBool>,
}

/// What a task sends, and whether it is waited for.
struct Awaited {
    channel: Channel,
    waits: Arc<AtomicBool>,
}

impl Feed for Awaited {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        self.waits.store(true, Ordering::Relaxed);
        let pulled = self.channel.pull();
        self.waits.store(false, Ordering::Relaxed);
        pulled
    }
}

impl Paused {
    pub fn new(time: Duration) -> Self {
        Self(Arc::new(Shared {
            time,
            kept: Mutex::default(),
            wake: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unpacking of `layer`: one that was given up, or a new one.
    pub fn unpacking(&self, layer: &Layer, layers: &Layers) -> Held {
        let key = (layer.digest.clone(), layer.diff_id.clone());
        let kept = self.lock().blobs.remove(&key);
        let unpacking = kept
            .map(|(unpacking, _)| unpacking)
            .filter(|kept| !kept.sender.is_closed());
        let unpacking = unpacking.unwrap_or_else(|| Unpacking::begin(layer, layers));
        Held {
            paused: self.clone(),
            key,
            unpacking: Some(unpacking),
        }
    }

    /// Keeps layers of a pull that did not come to its end.
    fn keep_layers(&self, pins: Vec<Pin>) {
        if self.0.time.is_zero() {
            return;
        }
        let until = Instant::now() + self.0.time;
        let mut kept = self.lock();
        for pin in pins {
            kept.layers.insert(pin.name().to_owned(), (pin, until));
        }
        drop(kept);
        self.0.wake.notify_one();
    }

    /// Lets go of layers that an image holds from now on.
    fn release_layers(&self, pins: &[Pin]) {
        let mut kept = self.lock();
        let gone: Vec<_> = pins.iter().filter_map(|pin| kept.layers.remove(pin.name())).collect();
        drop(kept);
        // Outside of the lock: this may be what frees layers.
        drop(gone);
    }

    /// Lets go of what is kept of these blobs.
    fn release_blobs(&self, layers: &[Layer]) {
        let mut kept = self.lock();
        for layer in layers {
            kept.blobs.remove(&(layer.digest.clone(), layer.diff_id.clone()));
        }
    }

    /// Lets go of what was kept for its time; never ends.
    pub async fn expire(self) {
        loop {
            let next = {
                let now = Instant::now();
                let mut kept = self.lock();
                kept.blobs.retain(|_, (_, until)| *until > now);
                let over: Vec<_> = kept.layers.extract_if(|_, (_, until)| *until <= now).collect();
                let ends = kept.blobs.values().map(|(_, until)| *until);
                let next = ends.chain(kept.layers.values().map(|(_, until)| *until)).min();
                drop(kept);
                drop(over);
                next
            };
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => self.0.wake.notified().await,
            }
        }
    }
}

impl Unpacking {
    fn begin(layer: &Layer, layers: &Layers) -> Self {
        let (sender, receiver) = mpsc::channel(READS);
        let (layer, layers, waits) = (layer.clone(), layers.clone(), Arc::new(AtomicBool::new(false)));
        let feed = Awaited {
            channel: Channel(receiver),
            waits: Arc::clone(&waits),
        };
        let work = spawn_blocking(move || extract::unpack_layer(Source::new(feed), &layer, &layers));
        Self {
            sender,
            work,
            fed: 0,
            waits,
        }
    }
}

/// An unpacking in use. Dropped before its end it is kept, if anything was unpacked.
pub(super) struct Held {
    paused: Paused,
    key: Key,
    unpacking: Option<Unpacking>,
}

impl Held {
    /// Bytes of the blob that were sent.
    pub fn fed(&self) -> u64 {
        self.unpacking.as_ref().map_or(0, |unpacking| unpacking.fed)
    }

    /// Whether the unpacker has nothing to do until more bytes come.
    pub fn is_waiting(&self) -> bool {
        let waits = |unpacking: &Unpacking| unpacking.waits.load(Ordering::Relaxed);
        self.unpacking.as_ref().is_some_and(waits)
    }

    /// Sends bytes on; false when the unpacker has given up, and [`Held::finish`] says why. Cancel-safe: what was not sent does
    /// not count.
    pub async fn feed(&mut self, data: Bytes) -> bool {
        let Some(unpacking) = &mut self.unpacking else {
            return false;
        };
        let length = data.len() as u64;
        let sent = unpacking.sender.send(Input::Data(data)).await.is_ok();
        if sent {
            unpacking.fed += length;
        }
        sent
    }

    /// Says that all bytes were sent, and waits for the layer.
    ///
    /// # Errors
    /// When the content is not what its digests promise or can't be unpacked.
    pub async fn finish(mut self) -> Result<Pin> {
        let aborted = |reason: String| Error::BadContent {
            what: format!("layer {}", self.key.0),
            reason: format!("unpacking was aborted: {reason}"),
        };
        let Some(Unpacking { sender, work, .. }) = self.unpacking.take() else {
            return Err(aborted("it was finished before".into()));
        };
        // Fails when the unpacker has given up, which says why.
        let _ = sender.send(Input::End).await;
        drop(sender);
        work.await.map_err(|error| aborted(error.to_string()))?
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(unpacking) = self.unpacking.take() else { return };
        let time = self.paused.0.time;
        // Without the sender the unpacker ends, and removes what it has made.
        if time.is_zero() || unpacking.fed == 0 || unpacking.sender.is_closed() {
            return;
        }
        let mut kept = self.paused.lock();
        if kept.blobs.len() < MOST {
            tracing::debug!(
                blob = self.key.0,
                bytes = unpacking.fed,
                "a transfer was given up; it is kept for the next try"
            );
            kept.blobs.insert(self.key.clone(), (unpacking, Instant::now() + time));
            drop(kept);
            self.paused.0.wake.notify_one();
        }
    }
}

/// The layers that one pull has. Dropped before the image is there, and not given up, they are kept.
pub(super) struct Progressing {
    paused: Paused,
    pins: Mutex<Vec<Pin>>,
}

impl Progressing {
    pub fn new(paused: &Paused) -> Self {
        Self {
            paused: paused.clone(),
            pins: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pin>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A layer is here.
    pub fn has(&self, pin: &Pin) {
        self.lock().push(pin.clone());
    }

    /// The image holds them.
    pub fn done(&self) {
        let pins = std::mem::take(&mut *self.lock());
        self.paused.release_layers(&pins);
    }

    /// Another try would come no further: nothing of `layers` is kept. A full disk gets its room back.
    pub fn give_up(&self, layers: &[Layer]) {
        self.done();
        self.paused.release_blobs(layers);
    }
}

impl Drop for Progressing {
    fn drop(&mut self) {
        let pins = std::mem::take(&mut *self.lock());
        if !pins.is_empty() {
            self.paused.keep_layers(pins);
        }
    }
}
