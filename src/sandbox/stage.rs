//! What a creation is at.

use std::sync::{Arc, Mutex, PoisonError};

/// The step that the creation of a pod or container has reached, for people who wonder what it waits for. Clones share it.
#[derive(Debug, Clone)]
pub struct Stage(Arc<Mutex<&'static str>>);

impl Default for Stage {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("begin")))
    }
}

impl Stage {
    /// Says which step begins.
    pub fn enter(&self, step: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    /// The step that was entered last.
    #[must_use]
    pub fn now(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
