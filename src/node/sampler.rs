//! Figures of all that there is, taken before they are asked for (feature rows I14 and J3; contract rules 35 and 36).
//!
//! A list of few is measured when it is asked for. A list of a thousand would then take a tenth of a second, so that lists
//! of many tell what a pass over all objects found a moment ago; each figure comes with its time. The first such list is
//! measured at once and begins the passes, which keep step with the lists that follow, and end when none has come for two
//! minutes: a node that nobody watches spends nothing on it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use wharf_proto::record::Owner;

use super::Node;
use crate::containers::Container;

/// A list of so many is measured when it is asked for.
const FEW: usize = 16;
/// Before the first pass has ended, a figure in a list of many is at most this old.
const OLDEST: Duration = Duration::from_secs(15);
/// Passes end when no list of many was asked for in this time: metrics are scraped once a minute.
const KEPT_UP: Duration = Duration::from_secs(130);
/// So many objects are measured one after another; then comes a rest of so many times what they took, so that a pass keeps
/// a twentieth of a core busy and nobody who asks meanwhile waits for a processor.
const TOGETHER: usize = 8;
const REST: u32 = 20;
/// A pass begins at least this long after the one before it.
const SHORTEST_PASS: Duration = Duration::from_secs(1);
/// With very many objects the rests are shorter, so that all have their turn in this time.
const LONGEST_PASS: Duration = Duration::from_secs(10);

/// What lists of many tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    Stats,
    Metrics,
    Disk,
}

const TOPICS: [Topic; 3] = [Topic::Stats, Topic::Metrics, Topic::Disk];

/// Which figures a list tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Those that are not older than this; what is missing is measured.
    Within(Duration),
    /// The newest that there are. What has none yet gets them in a moment.
    Newest,
}

/// When lists of many were asked for, and whether passes are going on.
#[derive(Debug, Default)]
pub(super) struct Sampler(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    topics: [Asked; TOPICS.len()],
    running: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Asked {
    last: Option<Instant>,
    /// Between the last two lists.
    apart: Duration,
    /// A whole pass has been made since the first of them.
    covered: bool,
}

impl Asked {
    fn is_kept_up(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < KEPT_UP)
    }
}

impl Sampler {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a list of many is asked for; true if the caller must begin the passes.
    fn ask(&self, topic: Topic) -> (Ask, bool) {
        let mut state = self.lock();
        let asked = &mut state.topics[topic as usize];
        asked.apart = asked.last.map_or(Duration::ZERO, |last| last.elapsed());
        asked.last = Some(Instant::now());
        let ask = match asked.covered {
            true => Ask::Newest,
            false => Ask::Within(OLDEST),
        };
        (ask, !std::mem::replace(&mut state.running, true))
    }

    /// How long a pass may take with its rests, and the next not begin, and what it is about; None when nobody has asked
    /// for long, and the passes have ended.
    fn pace(&self) -> Option<(Duration, Vec<Topic>)> {
        let mut state = self.lock();
        for asked in state.topics.iter_mut().filter(|asked| !asked.is_kept_up()) {
            *asked = Asked::default();
        }
        let wanted: Vec<_> = TOPICS
            .into_iter()
            .filter(|topic| state.topics[*topic as usize].last.is_some())
            .collect();
        state.running = !wanted.is_empty();
        let apart = wanted.iter().map(|topic| state.topics[*topic as usize].apart).min()?;
        // Two passes between two lists: what the later one tells is young.
        Some(((apart / 2).clamp(SHORTEST_PASS, LONGEST_PASS), wanted))
    }

    /// Notes that a pass about `topics` has been over everything.
    fn cover(&self, topics: &[Topic]) {
        let mut state = self.lock();
        for topic in topics {
            let asked = &mut state.topics[*topic as usize];
            asked.covered = asked.last.is_some();
        }
    }

    /// What passes are about now.
    fn topics(&self) -> Vec<Topic> {
        let state = self.lock();
        let topics = TOPICS.into_iter();
        topics
            .filter(|topic| state.topics[*topic as usize].is_kept_up())
            .collect()
    }
}

impl Node {
    /// Which figures a list of `count` objects tells: of few, those of this moment.
    pub(super) fn ask_figures(&self, topic: Topic, count: usize) -> Ask {
        if count <= FEW {
            return Ask::Within(Duration::ZERO);
        }
        let (ask, begin) = self.inner.sampler.ask(topic);
        if begin {
            let node = self.clone();
            self.inner.tasks.spawn_on(
                async move {
                    tokio::select! {
                        () = node.keep_sampling() => {}
                        () = node.inner.ending.cancelled() => {}
                    }
                },
                &self.inner.runtime,
            );
        }
        ask
    }

    /// Has a container measured that has just begun, if lists tell what passes have found: the next may be far.
    pub(super) fn sample_new(&self, container: &Arc<Container>) {
        let topics = self.inner.sampler.topics();
        if topics.is_empty() {
            return;
        }
        let (node, container) = (self.clone(), Arc::clone(container));
        self.inner.tasks.spawn(async move {
            for topic in topics {
                node.sample_container(&container, topic).await;
            }
        });
    }

    async fn keep_sampling(&self) {
        // The list that begins it measures all that there is.
        let mut begun = Instant::now();
        while let Some((pace, _)) = self.inner.sampler.pace() {
            tokio::time::sleep(pace.saturating_sub(begun.elapsed())).await;
            begun = Instant::now();
            // What was asked for meanwhile counts too.
            let topics = self.inner.sampler.topics();
            self.pass(&topics).await;
            self.inner.sampler.cover(&topics);
        }
    }

    async fn pass(&self, topics: &[Topic]) {
        let everybody = &[Owner::Cri, Owner::User];
        let (containers, pods) = (self.containers(everybody), self.pods(everybody));
        let turns = (containers.len() + pods.len()).div_ceil(TOGETHER).max(1);
        let longest = LONGEST_PASS / u32::try_from(turns).unwrap_or(u32::MAX);
        let rest = async |begun: Instant| tokio::time::sleep((begun.elapsed() * REST).min(longest)).await;
        self.sample_node(topics).await;
        for some in containers.chunks(TOGETHER) {
            let begun = Instant::now();
            for container in some {
                for topic in topics {
                    self.sample_container(container, *topic).await;
                }
            }
            rest(begun).await;
        }
        for some in pods.chunks(TOGETHER) {
            let begun = Instant::now();
            for pod in some {
                for topic in topics {
                    self.sample_pod(pod, *topic).await;
                }
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
        assert!(sampler.ask(Topic::Stats).1);
        assert!(!sampler.ask(Topic::Metrics).1);
        assert_eq!(
            sampler.pace(),
            Some((SHORTEST_PASS, vec![Topic::Stats, Topic::Metrics]))
        );
        for (apart, pace) in [(10, 5), (60, 10)] {
            for asked in &mut sampler.lock().topics {
                asked.apart = Duration::from_secs(apart);
            }
            assert_eq!(sampler.pace().unwrap().0, Duration::from_secs(pace));
        }
    }

    #[test]
    fn passes_end_when_nobody_asks_and_begin_again() {
        let sampler = Sampler::default();
        assert!(sampler.ask(Topic::Stats).1);
        sampler.lock().topics[0].last = Instant::now().checked_sub(KEPT_UP);
        assert_eq!(sampler.pace(), None);
        assert!(sampler.ask(Topic::Stats).1);
    }

    #[test]
    fn only_what_a_pass_has_been_over_is_told_without_a_look() {
        let sampler = Sampler::default();
        assert_eq!(sampler.ask(Topic::Stats).0, Ask::Within(OLDEST));
        sampler.cover(&[Topic::Stats, Topic::Disk]);
        assert_eq!(sampler.ask(Topic::Stats).0, Ask::Newest);
        assert_eq!(
            sampler.ask(Topic::Disk).0,
            Ask::Within(OLDEST),
            "nobody had asked for it"
        );
        sampler.lock().topics[0].last = Instant::now().checked_sub(KEPT_UP);
        sampler.pace();
        assert_eq!(sampler.ask(Topic::Stats).0, Ask::Within(OLDEST), "passes had ended");
    }
}
