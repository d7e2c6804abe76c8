//! Whether a monitor lives: one that is stopped keeps its connection and says nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

#[derive(Debug, Clone, Copy)]
struct State {
    heard: Instant,
    silent_since: Option<Instant>,
}

/// When the monitor was heard last, and since when it has failed to answer.
#[derive(Debug)]
pub(super) struct Pulse(Mutex<State>);

impl Pulse {
    pub fn new() -> Self {
        Self(Mutex::new(State {
            heard: Instant::now(),
            silent_since: None,
        }))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a sign of life; true if it is the first after a silence.
    pub fn beat(&self) -> bool {
        self.with(|state| {
            state.heard = Instant::now();
            state.silent_since.take().is_some()
        })
    }

    /// Notes that a question of `asked` was not answered; true if that is news. Whatever came since then counts as an
    /// answer.
    pub fn miss(&self, asked: Instant) -> bool {
        self.with(|state| {
            let news = state.heard < asked && state.silent_since.is_none();
            if news {
                state.silent_since = Some(asked);
            }
            news
        })
    }

    /// Whether something was heard since then.
    pub fn heard_since(&self, then: Instant) -> bool {
        self.with(|state| state.heard >= then)
    }

    /// How long it has not answered; `None` if it does.
    pub fn silent_for(&self) -> Option<Duration> {
        self.with(|state| state.silent_since).map(|since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_begins_with_a_question_and_ends_with_any_word() {
        let pulse = Pulse::new();
        let early = Instant::now();
        assert!(!pulse.beat());
        assert!(!pulse.miss(early), "something came after the question");
        let asked = Instant::now();
        assert!(pulse.miss(asked) && !pulse.miss(asked), "told once");
        assert!(pulse.silent_for().is_some() && !pulse.heard_since(asked));
        assert!(pulse.beat());
        assert!(pulse.silent_for().is_none());
    }
}
