//! What an operation is at.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The step that the work on a pod or container has reached, for people who wonder what it waits for. Clones share it.
#[derive(Debug, Clone)]
pub struct Stage(Arc<Mutex<Steps>>);

#[derive(Debug)]
struct Steps {
    now: &'static str,
    since: Instant,
    /// Steps that are over, and what they took.
    past: Vec<(&'static str, Duration)>,
}

impl Steps {
    fn begin() -> Self {
        Self {
            now: "begin",
            since: Instant::now(),
            past: Vec::new(),
        }
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Steps::begin())))
    }
}

impl Stage {
    /// Forgets an earlier operation's steps.
    pub fn begin(&self) {
        *self.lock() = Steps::begin();
    }

    /// Says which step begins.
    pub fn enter(&self, step: &'static str) {
        let mut steps = self.lock();
        let before = (steps.now, steps.since.elapsed());
        steps.past.push(before);
        steps.now = step;
        steps.since = Instant::now();
    }

    /// The step that was entered last.
    #[must_use]
    pub fn now(&self) -> &'static str {
        self.lock().now
    }

    /// The step that was entered last, and how long ago.
    #[must_use]
    pub fn since(&self) -> (&'static str, Duration) {
        let steps = self.lock();
        (steps.now, steps.since.elapsed())
    }

    /// All steps and what they took.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Duration)> {
        let steps = self.lock();
        let last = (steps.now, steps.since.elapsed());
        steps.past.iter().copied().chain([last]).collect()
    }

    /// All steps and what they took, as text.
    #[must_use]
    pub fn told(&self) -> String {
        let all = self.all();
        let told: Vec<_> = all
            .iter()
            .map(|(step, taken)| format!("{step} {} ms", taken.as_millis()))
            .collect();
        told.join(", ")
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
