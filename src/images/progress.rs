//! Tells those who want to know how far a pull is.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc::UnboundedSender;
use wharf_proto::api::{
    IncompleteImage, LayerProgress, LayerState, PullDone, PullProgress, PullResolved, pull_progress::Event,
};

use super::Layer;

/// Bytes of a layer between two messages.
const STEP: u64 = 512 << 10;

/// One pull's listeners. Who joins late first gets the state so far.
#[derive(Default)]
pub(super) struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    listeners: Vec<UnboundedSender<PullProgress>>,
    resolved: Option<PullResolved>,
}

impl Progress {
    pub fn listen(&self, listener: UnboundedSender<PullProgress>) {
        let mut state = self.lock();
        if let Some(resolved) = &state.resolved {
            let _ = listener.send(message(Event::Resolved(resolved.clone())));
        }
        state.listeners.push(listener);
    }

    /// The manifest with `digest` is known.
    pub fn resolved(&self, reference: String, digest: String, layers: &[Layer]) {
        let layers = layers.iter().map(|layer| LayerProgress {
            digest: layer.digest.clone(),
            state: LayerState::LayerWaiting.into(),
            current: 0,
            total: layer.size,
        });
        let resolved = PullResolved {
            reference,
            digest,
            layers: layers.collect(),
        };
        let mut state = self.lock();
        state.resolved = Some(resolved.clone());
        state.send(Event::Resolved(resolved));
    }

    /// Of one layer that comes by itself.
    pub fn of(layer: &Layer) -> Arc<Self> {
        let progress = Self::default();
        progress.resolved(String::new(), String::new(), std::slice::from_ref(layer));
        Arc::new(progress)
    }

    /// Bytes of the blob `digest` that have come.
    pub fn come(&self, digest: &str) -> u64 {
        let state = self.lock();
        let layers = state.resolved.iter().flat_map(|resolved| &resolved.layers);
        let mut own = layers.filter(|layer| layer.digest == digest);
        own.next().map_or(0, |layer| layer.current)
    }

    pub fn layer(&self, digest: &str, layer_state: LayerState, current: u64, total: u64) {
        let event = LayerProgress {
            digest: digest.to_owned(),
            state: layer_state.into(),
            current,
            total,
        };
        let mut state = self.lock();
        if let Some(resolved) = &mut state.resolved {
            for layer in resolved.layers.iter_mut().filter(|layer| layer.digest == digest) {
                layer.clone_from(&event);
            }
        }
        state.send(Event::Layer(event));
    }

    /// The end; listeners are let go. `come` is said of an image that is not all here.
    pub fn done(&self, image_id: &str, up_to_date: bool, come: Option<(u64, u64)>) {
        let mut state = self.lock();
        state.send(Event::Done(PullDone {
            image_id: image_id.to_owned(),
            up_to_date,
            incomplete: come.map(|(current, total)| IncompleteImage {
                id: image_id.to_owned(),
                current,
                total,
            }),
        }));
        state.listeners.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&mut self, event: Event) {
        let message = message(event);
        self.listeners.retain(|listener| listener.send(message.clone()).is_ok());
    }
}

fn message(event: Event) -> PullProgress {
    PullProgress { event: Some(event) }
}

/// One layer's transfer, for all pulls that wait for it.
pub(super) struct Meter {
    digest: String,
    total: u64,
    current: AtomicU64,
    listeners: Mutex<Vec<Weak<Progress>>>,
}

impl Meter {
    pub fn new(layer: &Layer) -> Self {
        Self {
            digest: layer.digest.clone(),
            total: layer.size,
            current: AtomicU64::new(0),
            listeners: Mutex::default(),
        }
    }

    pub fn listen(&self, progress: &Arc<Progress>) {
        self.lock().push(Arc::downgrade(progress));
    }

    /// `bytes` more have come.
    pub fn add(&self, bytes: u64) {
        let before = self.current.fetch_add(bytes, Ordering::Relaxed);
        if before == 0 || before / STEP != (before + bytes) / STEP {
            self.state(LayerState::LayerDownloading);
        }
    }

    pub fn state(&self, state: LayerState) {
        let current = self.current.load(Ordering::Relaxed);
        for progress in self.lock().iter().filter_map(Weak::upgrade) {
            progress.layer(&self.digest, state, current, self.total);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Progress>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
