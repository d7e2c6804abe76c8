//! What plugins have been told of.

use std::collections::HashMap;

use wharf_proto::nri::{Container, ContainerState, PodSandbox};

use super::State;

/// The pods and containers that plugins know.
#[derive(Debug, Default)]
pub struct Told {
    known: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    stopped: bool,
    /// What it is, while it can't be found yet.
    unseen: Option<Unseen>,
}

#[derive(Debug)]
enum Unseen {
    Pod(Box<PodSandbox>),
    Container(Box<Container>),
}

impl Told {
    /// What was there before the first plugin counts as told, with its end if it has ended.
    pub fn begin(&mut self, state: &State) {
        let pods = state.pods.iter().map(|pod| (&pod.id, false));
        let ended = |container: &Container| container.state() == ContainerState::ContainerStopped;
        let containers = state.containers.iter().map(|one| (&one.id, ended(one)));
        for (id, stopped) in pods.chain(containers) {
            let known = Known { stopped, unseen: None };
            self.known.entry(id.clone()).or_insert(known);
        }
    }

    /// Plugins have been told of a new pod.
    pub fn pod(&mut self, pod: PodSandbox) {
        let known = Known {
            stopped: false,
            unseen: Some(Unseen::Pod(Box::new(pod.clone()))),
        };
        self.known.insert(pod.id, known);
    }

    /// Plugins have been told of a new container.
    pub fn container(&mut self, container: Container) {
        let known = Known {
            stopped: false,
            unseen: Some(Unseen::Container(Box::new(container.clone()))),
        };
        self.known.insert(container.id, known);
    }

    /// It can be found from now on.
    pub fn seen(&mut self, id: &str) {
        if let Some(known) = self.known.get_mut(id) {
            known.unseen = None;
        }
    }

    /// Plugins know it.
    pub fn knows(&self, id: &str) -> bool {
        self.known.contains_key(id)
    }

    /// Notes that its end is told; false if it has been, or nobody knows it.
    pub fn stop(&mut self, id: &str) -> bool {
        match self.known.get_mut(id) {
            Some(known) => !std::mem::replace(&mut known.stopped, true),
            None => false,
        }
    }

    /// Notes that its removal is told; false if it has been, or nobody knows it.
    pub fn remove(&mut self, id: &str) -> bool {
        self.known.remove(id).is_some()
    }

    /// What a new plugin must hear of: each pod and each container that has not ended, of which the others have heard.
    pub fn all(&self, mut state: State) -> State {
        state.pods.retain(|pod| self.knows(&pod.id));
        let lives = |container: &Container| self.known.get(&container.id).is_some_and(|known| !known.stopped);
        state.containers.retain(lives);
        for (id, known) in &self.known {
            match &known.unseen {
                Some(Unseen::Pod(pod)) if !state.pods.iter().any(|seen| seen.id == *id) => {
                    state.pods.push((**pod).clone());
                }
                Some(Unseen::Container(container))
                    if !known.stopped && !state.containers.iter().any(|seen| seen.id == *id) =>
                {
                    state.containers.push((**container).clone());
                }
                _ => {}
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{container, pod},
        *,
    };

    fn ids(state: &State) -> (Vec<&str>, Vec<&str>) {
        let pods = state.pods.iter().map(|pod| pod.id.as_str()).collect();
        (pods, state.containers.iter().map(|one| one.id.as_str()).collect())
    }

    #[test]
    fn a_new_plugin_hears_of_what_the_others_know_and_of_nothing_else() {
        let mut told = Told::default();
        let ended = Container {
            state: ContainerState::ContainerStopped.into(),
            ..container("ended")
        };
        told.begin(&State {
            pods: vec![pod("old")],
            containers: vec![container("o"), ended],
        });
        told.pod(pod("new"));
        told.container(container("n"));
        let there = || State {
            // One that is listed and not told of yet, or not any more.
            pods: vec![pod("old"), pod("other")],
            containers: vec![container("o"), container("x"), container("ended")],
        };
        // What is on its way is added.
        assert_eq!(ids(&told.all(there())), (vec!["old", "new"], vec!["o", "n"]));
        told.seen("new");
        told.seen("n");
        assert_eq!(ids(&told.all(there())), (vec!["old"], vec!["o"]));
        // Its end is told once.
        assert!(told.stop("o") && !told.stop("o") && !told.stop("x"));
        assert_eq!(ids(&told.all(there())), (vec!["old"], vec![]));
        assert!(told.stop("old") && told.remove("old") && !told.remove("old"));
        assert_eq!(ids(&told.all(there())), (vec![], vec![]));
    }
}
