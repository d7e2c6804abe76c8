//! Checkpoints under way. A container that stands still for one goes on when whoever asked has gone.

use std::path::Path;

use wharf_proto::monitor::{self as proto, Done, ErrorKind, reply::Result as Answer};

use super::{
    super::tree,
    Monitor, Origin,
    jobs::{Work, error},
    requests::Outcome,
};
use crate::runtime::{CheckpointRequest, Pending, checkpoint::freeze};

impl Monitor {
    pub(super) fn checkpoint(&mut self, origin: Origin, asked: &proto::Checkpoint) -> Outcome {
        let serial = self.to_freeze(&asked.container_id, asked.frozen.then_some(origin.connection))?;
        let container = self.find(&asked.container_id)?;
        let request = CheckpointRequest {
            container: container.reference(),
            criu: Path::new(&asked.criu),
            images: Path::new(&asked.images),
            work: Path::new(&asked.work),
        };
        match container.handler.checkpoint(&request) {
            Ok(pending) => {
                if let Some(container) = self.container(serial) {
                    container.frozen_for = Some(origin.connection);
                }
                self.add_job(pending, Work::Checkpoint { origin, serial });
                Ok(None)
            }
            Err(failure) => Err(error(ErrorKind::Failed, failure.to_string())),
        }
    }

    /// Has a container stand still until it is dumped, or thawed.
    pub(super) fn freeze(&mut self, origin: Origin, id: &str) -> Outcome {
        let serial = self.to_freeze(id, None)?;
        match freeze(&self.find(id)?.reference()) {
            Ok(pending) => {
                if let Some(container) = self.container(serial) {
                    container.frozen_for = Some(origin.connection);
                }
                self.add_job(pending, Work::Checkpoint { origin, serial });
                Ok(None)
            }
            Err(failure) => Err(error(ErrorKind::Failed, failure.to_string())),
        }
    }

    /// The running container `id`, which must be frozen for the connection `by` and nobody else, and no work be done on it.
    fn to_freeze(&self, id: &str, by: Option<u32>) -> Result<u32, Answer> {
        let container = self.find(id)?;
        let wrong = |why: &str| {
            Err(error(
                ErrorKind::WrongState,
                format!("container {} {why}", container.id),
            ))
        };
        let serial = container.serial;
        match () {
            () if !container.is_running() => wrong("does not run"),
            () if by.is_some() && container.frozen_for.is_none() => wrong("is not frozen any more"),
            () if container.frozen_for != by || self.jobs.iter().any(|job| job.checkpoints(serial).is_some()) => {
                wrong("is being checkpointed")
            }
            () => Ok(serial),
        }
    }

    pub(super) fn checkpointed(&mut self, origin: Origin, serial: u32, pending: Pending) {
        let asker = self.connection.as_ref().map(|connection| connection.serial);
        let Some(container) = self.container(serial) else {
            return self.answer(origin, error(ErrorKind::NotFound, "the container is gone"));
        };
        let answer = match container.handler.finish_checkpoint(pending) {
            Ok(()) if container.frozen_for.is_some() => Answer::Done(Done {}),
            Ok(()) => error(ErrorKind::WrongState, "the checkpoint was given up"),
            Err(failure) => error(ErrorKind::Failed, failure.to_string()),
        };
        // Once more where it was given up: what has just been killed may have frozen it in its last moment.
        if matches!(answer, Answer::Error(_)) || asker != Some(origin.connection) {
            self.thaw(serial);
        }
        self.answer(origin, answer);
    }

    pub(super) fn thaw_by_name(&mut self, id: &str) -> Answer {
        if let Ok(container) = self.find(id)
            && container.frozen_for.is_some()
        {
            let serial = container.serial;
            self.thaw(serial);
        }
        Answer::Done(Done {})
    }

    /// Gives up the checkpoint that is being made of a container, if there is one, and lets it go on.
    pub(super) fn thaw(&mut self, serial: u32) {
        let helpers: Vec<i32> = self.jobs.iter().filter_map(|job| job.checkpoints(serial)).collect();
        helpers.into_iter().for_each(|pid| tree::kill(pid, Vec::new));
        let Some(container) = self.container(serial) else {
            return;
        };
        container.frozen_for = None;
        let path = container.cgroup_path.clone();
        if let Err(failure) = self.roots.thaw(&path) {
            self.notes.say(&format!("thaw cgroup {path}: {failure}"));
        }
    }

    /// Lets every container go on that stands still for this connection.
    pub(super) fn thaw_all_of(&mut self, connection: u32) {
        let frozen: Vec<u32> = self
            .containers
            .iter()
            .filter(|container| container.frozen_for == Some(connection))
            .map(|container| container.serial)
            .collect();
        frozen.into_iter().for_each(|serial| self.thaw(serial));
    }
}
