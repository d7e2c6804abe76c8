//! Work that several callers may ask for at once and that is done once (design decision 6).
//!
//! The work is told whether anybody still waits for it.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio_util::task::TaskTracker;

use crate::telemetry::carried;

/// Running jobs by key. The work belongs to the node, not to the request: it goes on when every caller has gone.
pub struct Joined<K, V: Clone> {
    running: Mutex<HashMap<K, Job<V>>>,
    tasks: TaskTracker,
}

/// Work under way, and those who wait for it.
type Job<V> = (Shared<BoxFuture<'static, V>>, Callers);

/// Those who wait for one job.
#[derive(Clone, Default)]
pub struct Callers(Arc<AtomicUsize>);

impl Callers {
    /// Whether all have given up.
    pub fn are_gone(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    /// Of work whose result counts whoever waits for it.
    pub fn always() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }

    fn one_more(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::AcqRel);
        Waiting(self.clone())
    }
}

/// One caller, as long as it waits.
struct Waiting(Callers);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<K, V: Clone> std::fmt::Debug for Joined<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joined").finish_non_exhaustive()
    }
}

impl<K, V> Joined<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// No jobs; new ones become tasks of `tasks`.
    pub fn new(tasks: TaskTracker) -> Self {
        Self {
            running: Mutex::default(),
            tasks,
        }
    }

    /// Joins the job of `key`; starts one when none runs. `finished` is asked first, under the same lock, for what an
    /// earlier job made. `lost` is the answer when the job's task dies.
    pub async fn run<F>(
        self: &Arc<Self>,
        key: K,
        finished: impl FnOnce() -> Option<V>,
        work: impl FnOnce(Callers) -> F,
        lost: impl Fn(String) -> V + Send + Sync + 'static,
    ) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let (job, _waiting) = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((job, callers)) = running.get(&key) {
                (job.clone(), callers.one_more())
            } else if let Some(value) = finished() {
                return value;
            } else {
                let callers = Callers::default();
                let waiting = callers.one_more();
                let task = self.tasks.spawn(carried(work(callers.clone())));
                let (jobs, done) = (Arc::clone(self), key.clone());
                let job = async move {
                    let value = task.await.unwrap_or_else(|error| lost(error.to_string()));
                    jobs.running
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .remove(&done);
                    value
                }
                .boxed()
                .shared();
                // Driven to its end even if no caller stays to poll it.
                self.tasks.spawn(job.clone());
                running.insert(key, (job.clone(), callers));
                (job, waiting)
            }
        };
        job.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn callers_at_the_same_time_share_one_job_and_a_later_one_sees_its_result() {
        let joined = Arc::new(Joined::<&str, usize>::new(TaskTracker::new()));
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let call = {
            let (joined, gate) = (Arc::clone(&joined), Arc::clone(&gate));
            move || {
                let (joined, runs, gate) = (Arc::clone(&joined), Arc::clone(&runs), Arc::clone(&gate));
                async move {
                    let work = |callers: Callers| async move {
                        gate.notified().await;
                        assert!(!callers.are_gone(), "two wait");
                        runs.fetch_add(1, Ordering::SeqCst) + 1
                    };
                    joined.run("pod", || None, work, |_| 0).await
                }
            }
        };
        // The first caller gives up; its job goes on.
        let impatient = tokio::spawn(call());
        tokio::task::yield_now().await;
        impatient.abort();
        let callers = tokio::spawn(async move { futures_util::join!(call(), call()) });
        tokio::task::yield_now().await;
        gate.notify_one();
        assert_eq!(callers.await.unwrap(), (1, 1));
        assert_eq!(joined.run("pod", || Some(1), |_| async { 7 }, |_| 0).await, 1);
    }

    #[tokio::test]
    async fn a_job_knows_when_nobody_waits_for_it_any_more() {
        let joined = Arc::new(Joined::<u8, bool>::new(TaskTracker::new()));
        let (gate, answer) = (Arc::new(Notify::new()), Arc::new(Mutex::new(None)));
        let caller = {
            let (joined, gate, answer) = (Arc::clone(&joined), Arc::clone(&gate), Arc::clone(&answer));
            let work = |callers: Callers| async move {
                gate.notified().await;
                *answer.lock().unwrap() = Some(callers.are_gone());
                true
            };
            tokio::spawn(async move { joined.run(1, || None, work, |_| false).await })
        };
        tokio::task::yield_now().await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        gate.notify_one();
        joined.tasks.close();
        joined.tasks.wait().await;
        assert_eq!(*answer.lock().unwrap(), Some(true));
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_answer_and_not_a_hang() {
        let joined = Arc::new(Joined::<u8, String>::new(TaskTracker::new()));
        let answer = joined.run(1, || None, |_| async { panic!("boom") }, |why| why).await;
        assert!(answer.contains("panic"), "{answer}");
    }
}
