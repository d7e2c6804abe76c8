//! Work that several callers may ask for at once and that is done once (design decision 6).

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use tokio_util::task::TaskTracker;

/// Running jobs by key. The work belongs to the node, not to the request: it goes on when every caller has gone.
pub struct Joined<K, V: Clone> {
    running: Mutex<HashMap<K, Shared<BoxFuture<'static, V>>>>,
    tasks: TaskTracker,
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
        work: impl FnOnce() -> F,
        lost: impl Fn(String) -> V + Send + Sync + 'static,
    ) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let job = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(job) = running.get(&key) {
                job.clone()
            } else if let Some(value) = finished() {
                return value;
            } else {
                let task = self.tasks.spawn(work());
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
                running.insert(key, job.clone());
                job
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
                    let work = || async move {
                        gate.notified().await;
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
        assert_eq!(joined.run("pod", || Some(1), || async { 7 }, |_| 0).await, 1);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_an_answer_and_not_a_hang() {
        let joined = Arc::new(Joined::<u8, String>::new(TaskTracker::new()));
        let answer = joined.run(1, || None, || async { panic!("boom") }, |why| why).await;
        assert!(answer.contains("panic"), "{answer}");
    }
}
