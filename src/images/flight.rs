//! Work that is under way, so that a second caller who wants the same joins it.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};

/// A future that several callers await. It runs while one of them polls it and is dropped with the last.
pub(super) type Joint<T> = Shared<BoxFuture<'static, T>>;

/// Futures under way, by what they do, each with a companion that its callers share.
pub(super) struct Flights<K, T: Clone, C>(Mutex<HashMap<K, Flight<T, C>>>);

struct Flight<T: Clone, C> {
    future: WeakShared<BoxFuture<'static, T>>,
    companion: C,
}

impl<K: Hash + Eq, T: Clone, C: Clone> Flights<K, T, C> {
    pub fn new() -> Self {
        Self(Mutex::default())
    }

    /// The future for `key`: the one under way, or what `start` makes. The flag says that it was made now.
    pub fn join(&self, key: K, start: impl FnOnce() -> (BoxFuture<'static, T>, C)) -> (Joint<T>, C, bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, flight| running(flight).is_some());
        if let Some(flight) = all.get(&key)
            && let Some(future) = running(flight)
        {
            return (future, flight.companion.clone(), false);
        }
        let (future, companion) = start();
        let future = future.shared();
        if let Some(weak) = future.downgrade() {
            let flight = Flight {
                future: weak,
                companion: companion.clone(),
            };
            all.insert(key, flight);
        }
        (future, companion, true)
    }
}

fn running<T: Clone, C>(flight: &Flight<T, C>) -> Option<Joint<T>> {
    flight.future.upgrade().filter(|future| future.peek().is_none())
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn equal_work_is_done_once_and_later_work_anew() {
        let flights = Flights::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(Notify::new());
        let start = || {
            let (runs, gate) = (runs.clone(), gate.clone());
            let work = async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst)
            };
            (work.boxed(), ())
        };
        let (one, (), first) = flights.join("a", start);
        let (two, (), second) = flights.join("a", start);
        assert!(first && !second);
        gate.notify_one();
        assert_eq!(tokio::join!(one, two), (0, 0));
        gate.notify_one();
        let (three, (), third) = flights.join("a", start);
        assert!(third);
        assert_eq!(three.await, 1);
    }

    #[tokio::test]
    async fn work_that_nobody_awaits_is_dropped() {
        let flights = Flights::new();
        let held = Arc::new(());
        let start = |held: Arc<()>| {
            let work = async move {
                std::future::pending::<()>().await;
                drop(held);
            };
            (work.boxed(), ())
        };
        let (one, ..) = flights.join("a", || start(held.clone()));
        let (two, ..) = flights.join("a", || start(held.clone()));
        drop(one);
        assert_eq!(Arc::strong_count(&held), 2);
        drop(two);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
