//! A figure that costs something to get, and may not come at all: a disk that hangs, a kernel lock.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::store;

/// A cheap figure may be measured again after this many times of what it cost, so that no more than five percent of one
/// core go into it however often it is asked for.
const REST: u32 = 20;
/// A figure is never taken for fresh longer than this.
const LONGEST_REST: Duration = Duration::from_secs(300);
/// A measurement that runs for this long is not waited for any more: it has held up one caller, which is enough.
const HUNG: Duration = Duration::from_secs(2);

/// A value and when it was taken.
#[derive(Debug)]
pub struct Taken<T> {
    /// What was found.
    pub value: T,
    /// Unix time, nanoseconds.
    pub at: i64,
    ended: Instant,
    cost: Duration,
}

impl<T> Taken<T> {
    fn is_fresh(&self) -> bool {
        self.ended.elapsed() < (self.cost * REST).min(LONGEST_REST)
    }
}

/// The newest measurement, and the one in progress. There is never more than one: while it does not end, everybody gets
/// the value before it, and nothing piles up behind. A clone is the same one.
#[derive(Debug)]
pub struct Measured<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    newest: Mutex<Option<Arc<Taken<T>>>>,
    /// Since when a measurement runs; what it holds the other end of is gone when it has ended. A channel for each object all the
    /// time would be most of what a container takes of memory.
    running: Mutex<Option<(Instant, watch::Receiver<()>)>>,
}

impl<T> Clone for Measured<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Measured<T> {
    fn default() -> Self {
        Self(Arc::new(Inner {
            newest: Mutex::new(None),
            running: Mutex::new(None),
        }))
    }
}

impl<T: Send + Sync + 'static> Measured<T> {
    /// Measures now, or joins the measurement in progress, and waits for it until `until`; then the value before it is
    /// the answer. `measure` runs as a task of `tasks` and ends by itself; None from it means that there is nothing to
    /// measure any more.
    pub async fn now<F>(
        &self,
        tasks: &TaskTracker,
        until: Instant,
        measure: impl FnOnce() -> F,
    ) -> Option<Arc<Taken<T>>>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let (mut ended, running_since, begun) = {
            let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
            match &*running {
                Some((since, ended)) => (ended.clone(), Some(*since), None),
                None => {
                    let (running_on, ended) = watch::channel(());
                    *running = Some((Instant::now(), ended.clone()));
                    (ended, None, Some(running_on))
                }
            }
        };
        if running_since.is_some_and(|since| since.elapsed() > HUNG) {
            return self.newest();
        }
        if let Some(running_on) = begun {
            let running = Running {
                inner: Arc::clone(&self.0),
                outcome: None,
                _running_on: running_on,
            };
            let work = measure();
            tasks.spawn(async move {
                let (at, begun) = (store::now(), Instant::now());
                let value = work.await;
                let taken = |value| {
                    Arc::new(Taken {
                        value,
                        at,
                        ended: Instant::now(),
                        cost: begun.elapsed(),
                    })
                };
                running.end(value.map(taken));
            });
        }
        // A measurement that failed to end in time, or died, leaves what was there before.
        let _ = tokio::time::timeout_at(until.into(), ended.changed()).await;
        self.newest()
    }

    /// As [`Measured::now`], but spares the work while the value is fresh: the dearer it was, the longer it counts so.
    pub async fn thriftily<F>(
        &self,
        tasks: &TaskTracker,
        until: Instant,
        measure: impl FnOnce() -> F,
    ) -> Option<Arc<Taken<T>>>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let newest = self.newest();
        if newest.as_ref().is_some_and(|taken| taken.is_fresh()) {
            return newest;
        }
        self.now(tasks, until, measure).await
    }

    /// As [`Measured::now`], if what was measured last is older than `age`.
    pub async fn within<F>(
        &self,
        age: Duration,
        tasks: &TaskTracker,
        until: Instant,
        measure: impl FnOnce() -> F,
    ) -> Option<Arc<Taken<T>>>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        match self.recent(age) {
            Some(taken) => Some(taken),
            None => self.now(tasks, until, measure).await,
        }
    }

    /// What was measured last, if that was not longer than `age` ago.
    #[must_use]
    pub fn recent(&self, age: Duration) -> Option<Arc<Taken<T>>> {
        self.newest().filter(|taken| taken.ended.elapsed() < age)
    }

    /// What was measured last.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Taken<T>>> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A measurement in progress, and its outcome: the next may begin when it is dropped, even by a panic.
struct Running<T> {
    inner: Arc<Inner<T>>,
    outcome: Option<Option<Arc<Taken<T>>>>,
    /// Whoever waits is told by its end, which comes after all else.
    _running_on: watch::Sender<()>,
}

impl<T> Running<T> {
    fn end(mut self, outcome: Option<Arc<Taken<T>>>) {
        self.outcome = Some(outcome);
    }
}

impl<T> Drop for Running<T> {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            *self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
        }
        *self.inner.running.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn one_that_hangs_holds_up_nobody_and_is_not_started_twice() {
        let (tasks, gate, runs) = (
            TaskTracker::new(),
            Arc::new(Notify::new()),
            Arc::new(AtomicUsize::new(0)),
        );
        let measured = Measured::default();
        assert_eq!(
            measured.now(&tasks, soon(), || async { Some(1) }).await.unwrap().value,
            1
        );
        let hang = || {
            let (gate, runs) = (Arc::clone(&gate), Arc::clone(&runs));
            async move {
                runs.fetch_add(1, Ordering::SeqCst);
                gate.notified().await;
                Some(2)
            }
        };
        for _ in 0..3 {
            let until = Instant::now() + Duration::from_millis(20);
            assert_eq!(
                measured.now(&tasks, until, hang).await.unwrap().value,
                1,
                "the value before"
            );
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        tokio::time::sleep(HUNG).await;
        let begun = Instant::now();
        assert_eq!(measured.now(&tasks, soon(), hang).await.unwrap().value, 1);
        assert!(begun.elapsed() < Duration::from_secs(10), "it was waited for again");
        gate.notify_one();
        tasks.close();
        tasks.wait().await;
        gate.notify_one();
        assert_eq!(measured.now(&tasks, soon(), hang).await.unwrap().value, 2);
    }

    #[tokio::test]
    async fn what_was_dear_is_kept_and_what_was_cheap_is_read_again() {
        let (tasks, measured, runs) = (TaskTracker::new(), Measured::default(), Arc::new(AtomicUsize::new(0)));
        let count = |cost: u64| {
            let runs = Arc::clone(&runs);
            move || async move {
                tokio::time::sleep(Duration::from_millis(cost)).await;
                Some(runs.fetch_add(1, Ordering::SeqCst) + 1)
            }
        };
        measured.thriftily(&tasks, soon(), count(1000)).await;
        assert_eq!(measured.thriftily(&tasks, soon(), count(0)).await.unwrap().value, 1);
        // `now` does not care.
        assert_eq!(measured.now(&tasks, soon(), count(0)).await.unwrap().value, 2);
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(measured.thriftily(&tasks, soon(), count(0)).await.unwrap().value, 3);
    }

    #[tokio::test]
    async fn one_that_panics_is_not_the_last() {
        let (tasks, measured) = (TaskTracker::new(), Measured::<u8>::default());
        let begun = Instant::now();
        assert!(
            measured
                .now(&tasks, soon(), || async { panic!("boom") })
                .await
                .is_none()
        );
        assert!(begun.elapsed() < Duration::from_secs(10), "it waited for nothing");
        assert_eq!(
            measured.now(&tasks, soon(), || async { Some(3) }).await.unwrap().value,
            3
        );
        assert!(measured.now(&tasks, soon(), || async { None }).await.is_none(), "gone");
    }
}
