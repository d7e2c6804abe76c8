//! Checkpoints under way. A container that stands still for one goes on when whoever asked has gone.

use std::path::Path;

use wharf_proto::monitor::{self as proto, Done, ErrorKind, reply::Result as Answer};

use super::{
    super::tree,
    Monitor, Origin,
    jobs::{Work, error},
    requests::Outcome,
};
use crate::runtime::{CheckpointRequest, Pending};

impl Monitor {
    pub(super) fn checkpoint(&mut self, origin: Origin, asked: &proto::Checkpoint) -> Outcome {
        let container = self.find(&asked.container_id)?;
        let wrong = |why: &str| {
            Err(error(
                ErrorKind::WrongState,
                format!("container {} {why}", container.id),
            ))
        };
        if !container.is_running() {
            return wrong("does not run");
        }
        if container.frozen_for.is_some() {
            return wrong("is being checkpointed");
        }
        let serial = container.serial;
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
