//! The containers of a node, found by their id and by their pod: a look at each of a thousand costs half a millisecond, and every
//! step of a pod asks for its few.

use std::{collections::HashMap, ops::Deref, sync::Arc};

use crate::containers::Container;

/// All containers, complete or not. To be read as a map by id.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_id: HashMap<String, Arc<Container>>,
    /// By the pod's id; a pod without containers is not there.
    by_pod: HashMap<String, Vec<Arc<Container>>>,
}

impl Known {
    /// Those of one pod, in the order of their coming.
    pub fn of_pod(&self, pod: &str) -> &[Arc<Container>] {
        self.by_pod.get(pod).map_or(&[], Vec::as_slice)
    }

    pub fn insert(&mut self, container: &Arc<Container>) {
        self.remove(&container.id);
        self.by_id.insert(container.id.clone(), Arc::clone(container));
        let pod = &container.sandbox.id;
        match self.by_pod.get_mut(pod) {
            Some(of_pod) => of_pod.push(Arc::clone(container)),
            // Most pods have one or two.
            None => drop(self.by_pod.insert(pod.clone(), vec![Arc::clone(container)])),
        }
        container.sandbox.listing.bell.ring();
    }

    pub fn remove(&mut self, id: &str) {
        let Some(container) = self.by_id.remove(id) else { return };
        let pod = &container.sandbox.id;
        if let Some(of_pod) = self.by_pod.get_mut(pod) {
            of_pod.retain(|one| one.id != id);
            if of_pod.is_empty() {
                self.by_pod.remove(pod);
            }
        }
        container.sandbox.listing.bell.ring();
    }

    /// The containers of each pod that has some.
    pub fn pods(&self) -> impl Iterator<Item = &[Arc<Container>]> {
        self.by_pod.values().map(Vec::as_slice)
    }
}

impl Deref for Known {
    type Target = HashMap<String, Arc<Container>>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use wharf_proto::record;

    use super::*;
    use crate::sandbox::{Roots, Sandbox};

    fn pod(id: &str) -> Arc<Sandbox> {
        let roots = Roots {
            state: PathBuf::from("/nowhere"),
            run: PathBuf::from("/nowhere"),
        };
        let record = record::Pod {
            id: id.into(),
            ..Default::default()
        };
        Arc::new(Sandbox::new(&roots, record))
    }

    fn container(pod: &Arc<Sandbox>, id: &str) -> Arc<Container> {
        let record = record::Container {
            id: id.into(),
            pod_id: pod.id.clone(),
            ..Default::default()
        };
        Arc::new(Container::new(Arc::clone(pod), record))
    }

    fn ids(of_pod: &[Arc<Container>]) -> Vec<&str> {
        of_pod.iter().map(|container| container.id.as_str()).collect()
    }

    #[test]
    fn a_container_is_found_by_its_pod_as_long_as_it_is_there() {
        let (mut known, one, other) = (Known::default(), pod("one"), pod("other"));
        for (pod, id) in [(&one, "a"), (&other, "b"), (&one, "c")] {
            known.insert(&container(pod, id));
        }
        assert_eq!(
            (ids(known.of_pod("one")), ids(known.of_pod("other"))),
            (vec!["a", "c"], vec!["b"])
        );
        assert!(known.of_pod("third").is_empty() && known.len() == 3);
        // Again, as after a restart.
        known.insert(&container(&one, "a"));
        assert_eq!(ids(known.of_pod("one")), ["c", "a"]);
        known.remove("b");
        known.remove("b");
        assert!(known.of_pod("other").is_empty() && known.by_pod.len() == 1 && !known.contains_key("b"));
    }
}
