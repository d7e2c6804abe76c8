//! Creations under way: a request may have given up long ago, the work goes on. What it is at is in the log when it takes
//! long, and in the node's status for whoever asks (feature row A3).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::sandbox::Stage;

/// After this, and again each time it has passed, the log says what a creation is at.
const LONG: Duration = Duration::from_secs(10);

/// One creation.
#[derive(Debug, Clone)]
pub struct Creation {
    /// The kind of object.
    pub what: &'static str,
    /// The id that it will have.
    pub id: String,
    /// Its name in Kubernetes.
    pub name: String,
    /// The step that it is at.
    pub stage: &'static str,
    /// How long it has been under way.
    pub taken: Duration,
}

#[derive(Debug)]
struct Entry {
    what: &'static str,
    name: String,
    stage: Stage,
    since: Instant,
}

/// All that are under way, by id.
#[derive(Debug, Default)]
pub(super) struct Creations(Mutex<HashMap<String, Entry>>);

impl Creations {
    /// Does `work`, which creates `id`, and has it listed meanwhile.
    pub async fn follow<T>(
        &self,
        what: &'static str,
        id: &str,
        name: &str,
        stage: &Stage,
        work: impl Future<Output = T>,
    ) -> T {
        let entry = Entry {
            what,
            name: name.to_owned(),
            stage: stage.clone(),
            since: Instant::now(),
        };
        let _listed = Listed::new(self, id, entry);
        tokio::pin!(work);
        let mut taken = Duration::ZERO;
        loop {
            tokio::select! {
                made = &mut work => return made,
                () = tokio::time::sleep(LONG) => {
                    taken += LONG;
                    tracing::warn!(
                        id,
                        name,
                        stage = stage.now(),
                        seconds = taken.as_secs(),
                        "creation of a {what} takes long"
                    );
                }
            }
        }
    }

    /// Those under way now, the oldest first.
    pub fn list(&self) -> Vec<Creation> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = entries
            .iter()
            .map(|(id, entry)| Creation {
                what: entry.what,
                id: id.clone(),
                name: entry.name.clone(),
                stage: entry.stage.now(),
                taken: entry.since.elapsed(),
            })
            .collect();
        list.sort_by_key(|creation| std::cmp::Reverse(creation.taken));
        list
    }
}

/// Takes the entry out when the work has ended, in whichever way.
struct Listed<'a> {
    creations: &'a Creations,
    id: String,
}

impl<'a> Listed<'a> {
    fn new(creations: &'a Creations, id: &str, entry: Entry) -> Self {
        let mut entries = creations.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(id.to_owned(), entry);
        Self {
            creations,
            id: id.to_owned(),
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut entries = self.creations.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_creation_is_listed_with_its_stage_while_it_lasts() {
        let (creations, stage) = (Creations::default(), Stage::default());
        let seen = creations
            .follow("pod sandbox", "id", "web", &stage, async {
                stage.enter("network");
                creations.list()
            })
            .await;
        assert_eq!(
            (seen.len(), seen[0].stage, seen[0].name.as_str()),
            (1, "network", "web")
        );
        assert!(creations.list().is_empty());
        let given_up = creations.follow("pod sandbox", "id", "web", &stage, std::future::pending::<()>());
        assert!(tokio::time::timeout(Duration::from_millis(1), given_up).await.is_err());
        assert!(creations.list().is_empty(), "one that was dropped is listed no more");
    }
}
