//! Operations under way: a request may have given up long ago, the work goes on. What it is at is in the node's status for
//! whoever asks, and in the log when it takes long (feature row A3).

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    sandbox::Stage,
    telemetry::{Parent, Telemetry},
};

/// After this, and again each time it has passed, the log says what an operation is at.
const LONG: Duration = Duration::from_secs(10);
/// What takes longer is told in the log when it is over, with what each stage took.
const SLOW: Duration = Duration::from_secs(2);

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// As CRI calls it, for example `RunPodSandbox`.
    pub call: &'static str,
    /// The id of the object, which it may not have been told to anybody yet; of a pull, the reference.
    pub id: String,
    /// Its name in Kubernetes.
    pub name: String,
    /// The step that it is at.
    pub stage: &'static str,
    /// How long it has been under way.
    pub taken: Duration,
    /// How long it has been at this step.
    pub at_stage: Duration,
}

impl Operation {
    /// The kind of object that it makes; none if it makes none.
    #[must_use]
    pub fn makes(&self) -> Option<&'static str> {
        match self.call {
            "RunPodSandbox" => Some("pod sandbox"),
            "CreateContainer" => Some("container"),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Entry {
    call: &'static str,
    id: String,
    name: String,
    stage: Stage,
    since: Instant,
}

/// All that are under way, in the order of their beginning.
#[derive(Debug, Default)]
pub(super) struct Operations {
    entries: Mutex<Entries>,
    telemetry: Telemetry,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

impl Operations {
    pub fn new(telemetry: Telemetry) -> Self {
        Self {
            telemetry,
            ..Self::default()
        }
    }

    /// Does `work`, which is `call` on `id`, and has it listed meanwhile. It tells `stage` what it is at.
    pub async fn follow<T>(
        &self,
        call: &'static str,
        id: &str,
        name: &str,
        stage: &Stage,
        work: impl Future<Output = T>,
    ) -> T {
        stage.begin();
        let (since, parent) = (Instant::now(), Parent::present());
        let entry = Entry {
            call,
            id: id.to_owned(),
            name: name.to_owned(),
            stage: stage.clone(),
            since,
        };
        let _listed = Listed::new(self, entry);
        tokio::pin!(work);
        let made = loop {
            tokio::select! {
                made = &mut work => break made,
                () = tokio::time::sleep(LONG) => {
                    let seconds = since.elapsed().as_secs();
                    tracing::warn!(call, id, name, stage = stage.now(), seconds, "an operation takes long");
                }
            }
        };
        let taken = since.elapsed();
        if self.telemetry.is_on() {
            self.telemetry.operation(&parent, call, (id, name), taken, &stage.all());
        }
        if taken > SLOW {
            let milliseconds = u64::try_from(taken.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                call,
                id,
                name,
                milliseconds,
                stages = stage.told(),
                "an operation was slow"
            );
        }
        made
    }

    /// Those under way now, the oldest first.
    pub fn list(&self) -> Vec<Operation> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = entries.all.values().map(|entry| {
            let (stage, at_stage) = entry.stage.since();
            Operation {
                call: entry.call,
                id: entry.id.clone(),
                name: entry.name.clone(),
                stage,
                taken: entry.since.elapsed(),
                at_stage,
            }
        });
        listed.collect()
    }
}

/// Takes the entry out when the work has ended, in whichever way.
struct Listed<'a> {
    operations: &'a Operations,
    number: u64,
}

impl<'a> Listed<'a> {
    fn new(operations: &'a Operations, entry: Entry) -> Self {
        let mut entries = operations.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let number = entries.next;
        entries.next += 1;
        entries.all.insert(number, entry);
        Self { operations, number }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        let mut entries = self.operations.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.all.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operation_is_listed_with_its_stage_while_it_lasts() {
        let (operations, stage) = (Operations::default(), Stage::default());
        let seen = operations
            .follow("RunPodSandbox", "id", "web", &stage, async {
                stage.enter("network");
                operations.list()
            })
            .await;
        assert_eq!(
            (seen.len(), seen[0].stage, seen[0].name.as_str()),
            (1, "network", "web")
        );
        assert!(stage.told().starts_with("begin "), "{}", stage.told());
        assert!(operations.list().is_empty());
        let given_up = operations.follow("RunPodSandbox", "id", "web", &stage, std::future::pending::<()>());
        assert!(tokio::time::timeout(Duration::from_millis(1), given_up).await.is_err());
        assert!(operations.list().is_empty(), "one that was dropped is listed no more");
    }
}
