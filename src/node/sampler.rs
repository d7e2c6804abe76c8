//! Figures of all that runs, taken before they are asked for (feature row J3; contract rules 35 and 36).
//!
//! A list of few is measured when it is asked for. A list of a thousand would then take a tenth of a second, so that lists
//! of many tell what a pass over all objects found a moment ago; each figure comes with its time. The first such list is
//! measured at once and begins the passes, which keep step with the lists that follow, and end when none has come for a
//! minute: a node that nobody watches spends nothing on it.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use wharf_proto::record::Owner;

use super::Node;

/// A list of so many is measured when it is asked for.
const FEW: usize = 16;
/// A figure in a list of many is at most this old.
const OLDEST: Duration = Duration::from_secs(15);
/// Passes end when no list of many was asked for in this time.
const KEPT_UP: Duration = Duration::from_secs(60);
/// So many objects are measured one after another; then comes a rest of so many times what they took, so that a pass keeps
/// a twentieth of a core busy and nobody who asks meanwhile waits for a processor.
const TOGETHER: usize = 8;
const REST: u32 = 20;
/// A pass begins at least this long after the one before it.
const SHORTEST_PASS: Duration = Duration::from_secs(1);
/// With very many objects the rests are shorter, so that all have their turn in this time.
const LONGEST_PASS: Duration = Duration::from_secs(10);

/// When lists of many were asked for, and whether passes are going on.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    asked: Option<Instant>,
    /// Between the last two lists.
    apart: Duration,
    running: bool,
}

impl Sampler {
    /// Notes that a list of many is asked for; true if the caller must begin the passes.
    fn ask(&self) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.apart = state.asked.map_or(Duration::ZERO, |asked| asked.elapsed());
        state.asked = Some(Instant::now());
        !std::mem::replace(&mut state.running, true)
    }

    /// How long a pass may take with its rests, and the next not begin; None when nobody has asked for long, and the passes
    /// have ended.
    fn pace(&self) -> Option<Duration> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = state.asked.is_some_and(|asked| asked.elapsed() < KEPT_UP);
        // Two passes between two lists: what the later one tells is young.
        let pace = (state.apart / 2).clamp(SHORTEST_PASS, LONGEST_PASS);
        state.running.then_some(pace)
    }
}

impl Node {
    /// How old figures may be in a list of `count`: of few, not at all.
    pub(super) fn acceptable_age(&self, count: usize) -> Duration {
        if count <= FEW {
            return Duration::ZERO;
        }
        if self.inner.sampler.ask() {
            let node = self.clone();
            self.inner.tasks.spawn(async move {
                tokio::select! {
                    () = node.keep_sampling() => {}
                    () = node.inner.ending.cancelled() => {}
                }
            });
        }
        OLDEST
    }

    async fn keep_sampling(&self) {
        // The list that begins it measures all that there is.
        let mut begun = Instant::now();
        while let Some(pace) = self.inner.sampler.pace() {
            tokio::time::sleep(pace.saturating_sub(begun.elapsed())).await;
            begun = Instant::now();
            self.pass().await;
        }
    }

    async fn pass(&self) {
        let everybody = &[Owner::Cri, Owner::User];
        let (containers, pods) = (self.containers(everybody), self.pods(everybody));
        let turns = (containers.len() + pods.len()).div_ceil(TOGETHER).max(1);
        let longest = LONGEST_PASS / u32::try_from(turns).unwrap_or(u32::MAX);
        let rest = async |begun: Instant| tokio::time::sleep((begun.elapsed() * REST).min(longest)).await;
        for some in containers.chunks(TOGETHER) {
            let begun = Instant::now();
            for container in some {
                self.sample_container(container).await;
            }
            rest(begun).await;
        }
        for some in pods.chunks(TOGETHER) {
            let begun = Instant::now();
            for pod in some {
                self.sample_pod(pod).await;
            }
            rest(begun).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_keep_step_with_lists_and_begin_once() {
        let sampler = Sampler::default();
        assert!(sampler.ask());
        assert!(!sampler.ask());
        assert_eq!(sampler.pace(), Some(SHORTEST_PASS));
        for (apart, pace) in [(10, 5), (60, 10)] {
            sampler.0.lock().unwrap().apart = Duration::from_secs(apart);
            assert_eq!(sampler.pace(), Some(Duration::from_secs(pace)));
        }
    }

    #[test]
    fn passes_end_when_nobody_asks_and_begin_again() {
        let sampler = Sampler::default();
        assert!(sampler.ask());
        sampler.0.lock().unwrap().asked = Instant::now().checked_sub(KEPT_UP);
        assert_eq!(sampler.pace(), None);
        assert!(sampler.ask());
    }
}
