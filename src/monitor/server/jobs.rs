//! Runtime operations under way: each has a descriptor that becomes readable when its result is there.

use std::os::fd::{AsFd as _, OwnedFd};

use wharf_proto::monitor::{Done, Error, ErrorKind, ExecStarted, Started, reply::Result as Answer};

use super::{
    super::{
        connection::send_byte,
        container::{Output, State},
        exit::{Exit, START_FAILED_CODE},
        log::Lines,
        poll::Source,
        sys,
    },
    Exec, Monitor, Origin,
};
use crate::{
    runtime::{self, Created, Pending},
    store,
};

/// One operation.
pub(super) struct Job {
    pub serial: u32,
    pending: Pending,
    work: Work,
}

impl Job {
    pub fn is_helper(&self, pid: i32) -> bool {
        self.pending.helper == Some(pid)
    }

    /// The helper was waited for: its number may be another's now.
    pub fn forget_helper(&mut self) {
        self.pending.helper = None;
    }

    /// The helper that makes or starts the container `serial`, if this is that.
    pub fn starts(&self, serial: u32) -> Option<i32> {
        match self.work {
            Work::Create { serial: of, .. } | Work::Start { serial: of, .. } if of == serial => self.pending.helper,
            _ => None,
        }
    }

    /// The helper that makes a checkpoint of the container `serial`, if this is that.
    pub fn checkpoints(&self, serial: u32) -> Option<i32> {
        match self.work {
            Work::Checkpoint { serial: of, .. } if of == serial => self.pending.helper,
            _ => None,
        }
    }
}

/// What to do with its result. `serial` names the container.
pub(super) enum Work {
    Create {
        origin: Origin,
        serial: u32,
    },
    Start {
        origin: Origin,
        serial: u32,
    },
    Exec {
        origin: Origin,
        serial: u32,
        exec_id: String,
        /// Where the terminal's master goes.
        console: Option<OwnedFd>,
        /// It ends with the connection that asked for it.
        bound: bool,
        /// KillExec came in between, or the connection it is bound to has closed.
        unwanted: bool,
    },
    Checkpoint {
        origin: Origin,
        serial: u32,
    },
    Kill {
        origin: Option<Origin>,
        serial: u32,
    },
    Delete {
        origin: Option<Origin>,
        serial: u32,
    },
}

pub(super) fn error(kind: ErrorKind, message: impl Into<String>) -> Answer {
    Answer::Error(Error {
        kind: kind.into(),
        message: message.into(),
    })
}

fn kind_of(error: &runtime::Error) -> ErrorKind {
    match error {
        runtime::Error::StartFailed(_) => ErrorKind::StartFailed,
        _ => ErrorKind::Failed,
    }
}

impl Monitor {
    pub(super) fn add_job(&mut self, pending: Pending, work: Work) {
        let serial = self.serial();
        if let Err(error) = self.poll.add(&pending, Source::Job(serial)) {
            self.notes.say(&format!("watch a runtime operation: {error}"));
        }
        self.jobs.push(Job { serial, pending, work });
    }

    /// The exec under way with this id.
    pub(super) fn starting_exec(&mut self, exec_id: &str) -> Option<&mut bool> {
        self.jobs.iter_mut().find_map(|job| match &mut job.work {
            Work::Exec {
                exec_id: id, unwanted, ..
            } if id == exec_id => Some(unwanted),
            _ => None,
        })
    }

    pub(super) fn finish_job(&mut self, serial: u32) {
        let Some(at) = self.jobs.iter().position(|job| job.serial == serial) else {
            return;
        };
        let Job { pending, work, .. } = self.jobs.swap_remove(at);
        self.poll.remove(&pending);
        self.settle(pending, work);
        self.forget_unnamed();
    }

    fn settle(&mut self, pending: Pending, work: Work) {
        match work {
            Work::Create { origin, serial } => self.created(origin, serial, pending),
            Work::Start { origin, serial } => self.started(origin, serial, pending),
            Work::Exec {
                origin,
                serial,
                exec_id,
                console,
                bound,
                unwanted,
            } => {
                let exec = Exec {
                    id: exec_id,
                    pid: 0,
                    bound_to: bound.then_some(origin.connection),
                    cgroup_path: self
                        .container(serial)
                        .map(|container| container.cgroup_path.clone())
                        .unwrap_or_default(),
                };
                self.executed(origin, serial, pending, exec, console, unwanted);
            }
            Work::Checkpoint { origin, serial } => self.checkpointed(origin, serial, pending),
            Work::Kill { origin, serial } => {
                let result = self.container(serial).map(|c| c.handler.finish_kill(pending));
                if let Some(origin) = origin {
                    self.answer(origin, done(result));
                }
            }
            Work::Delete { origin, serial } => {
                let result = self.container(serial).map(|c| c.handler.finish_delete(pending));
                self.deleted(origin, serial, done(result));
            }
        }
    }

    fn created(&mut self, origin: Origin, serial: u32, pending: Pending) {
        self.fail_point("monitor.created");
        let Some(container) = self.container(serial) else {
            return;
        };
        let restored = container.restore.is_some();
        let finished = match restored {
            true => container.handler.finish_restore(pending),
            false => container.handler.finish_create(pending),
        };
        let mut created = match finished {
            Ok(created) => created,
            Err(error) => return self.start_failed(origin, serial, &error.to_string()),
        };
        let pid = created.init_pid;
        if let Some(master) = created.console.take()
            && let Err(error) = self.take_terminal(serial, master)
        {
            let _ = sys::kill(pid, libc::SIGKILL);
            return self.start_failed(origin, serial, &format!("take over the terminal: {error}"));
        }
        let ended = self.take_unnamed(pid);
        let Some(container) = self.container(serial) else {
            return;
        };
        match ended {
            None => container.init_pid = pid,
            status => container.early_end = status,
        }
        container.state = State::Starting;
        if restored {
            return self.running(origin, serial);
        }
        let pending = container.handler.start(&container.reference(), &mut created);
        container.created = Some::<Created>(created);
        match pending {
            Ok(pending) => self.add_job(pending, Work::Start { origin, serial }),
            Err(error) => self.start_failed(origin, serial, &error.to_string()),
        }
    }

    /// The terminal's master becomes the container's one output.
    fn take_terminal(&mut self, serial: u32, master: OwnedFd) -> std::io::Result<()> {
        sys::set_nonblocking(master.as_fd())?;
        let slave = sys::terminal_slave(master.as_fd())?;
        self.poll.add(&master, Source::Stream(serial, 0))?;
        if let Some(container) = self.container(serial) {
            container.slave = Some(slave);
            container.outputs[0] = Some(Output {
                source: master.into(),
                lines: Lines::new("stdout", container.line_limit),
            });
        }
        self.introduce(serial);
        Ok(())
    }

    fn started(&mut self, origin: Origin, serial: u32, pending: Pending) {
        let Some(container) = self.container(serial) else {
            return;
        };
        let finished = container.handler.finish_start(pending);
        let overdue = container.overdue;
        match finished {
            Err(error) => return self.start_failed(origin, serial, &error.to_string()),
            Ok(()) if overdue => return self.start_failed(origin, serial, ""),
            Ok(()) => {}
        }
        self.running(origin, serial);
    }

    fn running(&mut self, origin: Origin, serial: u32) {
        self.fail_point("monitor.running");
        let Some(container) = self.container(serial) else {
            return;
        };
        container.created = None;
        container.start_until = None;
        container.state = State::Running;
        container.started_at = store::now();
        let (pid, started_at) = (container.init_pid, container.started_at);
        let ended = container.early_end.take();
        self.answer(origin, Answer::Started(Started { pid, started_at }));
        if let Some(status) = ended {
            self.container_ended(serial, status);
        }
    }

    /// The container's program never ran: what exists of it goes, and that is recorded.
    pub(super) fn start_failed(&mut self, origin: Origin, serial: u32, message: &str) {
        let mut message = message;
        if let Some(container) = self.container(serial) {
            if container.overdue {
                message = "making and starting it took longer than the handler's create_timeout_secs";
            }
            let pid = std::mem::take(&mut container.init_pid);
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        self.conclude(
            serial,
            Exit {
                code: START_FAILED_CODE,
                oom_killed: false,
                seccomp_killed: false,
                message: message.to_owned(),
                start_failed: true,
                finished_at: store::now(),
            },
        );
        let asked_here = self.connection.as_ref().is_some_and(|c| c.serial == origin.connection);
        if asked_here {
            self.answer(origin, error(ErrorKind::StartFailed, message));
        } else if let Some(exited) = self.container(serial).and_then(|c| c.exited()) {
            // The daemon that asked has gone; the one that came knows the container as being started.
            self.send(0, Answer::ContainerExited(exited));
        }
        self.release(serial);
    }

    /// Lets the runtime forget a container whose start failed; the entry stays until Delete.
    fn release(&mut self, serial: u32) {
        let Some(container) = self.container(serial) else {
            return;
        };
        match container.handler.delete(&container.reference()) {
            Ok(Some(pending)) => self.add_job(pending, Work::Delete { origin: None, serial }),
            Ok(None) => {}
            Err(error) => {
                let what = format!("release container {}: {error}", container.id);
                self.notes.say(&what);
            }
        }
    }

    /// The runtime has released a container, or could not.
    pub(super) fn deleted(&mut self, origin: Option<Origin>, serial: u32, result: Answer) {
        let Some(origin) = origin else {
            if let Answer::Error(error) = result {
                self.notes.say(&format!("release a container: {}", error.message));
            }
            return;
        };
        if !matches!(result, Answer::Error(_)) {
            self.close_output(serial, 0);
            self.close_output(serial, 1);
            self.containers.retain(|container| container.serial != serial);
        }
        self.answer(origin, result);
    }

    /// The deletion of the container that is under way without anybody who waits for it is this one's: two at once would
    /// have one write to the bundle that is removed after the other.
    pub(super) fn join_deletion(&mut self, asked: Origin, of: u32) -> bool {
        let unasked = self.jobs.iter_mut().find_map(|job| match &mut job.work {
            Work::Delete {
                origin: origin @ None,
                serial,
            } if *serial == of => Some(origin),
            _ => None,
        });
        match unasked {
            Some(origin) => {
                *origin = Some(asked);
                true
            }
            None => false,
        }
    }

    /// Marks the execs that are being started for a connection that has closed.
    pub(super) fn abandon_starting(&mut self, connection: u32) {
        for job in &mut self.jobs {
            if let Work::Exec {
                origin,
                bound: true,
                unwanted,
                ..
            } = &mut job.work
                && origin.connection == connection
            {
                *unwanted = true;
            }
        }
    }

    fn executed(
        &mut self,
        origin: Origin,
        serial: u32,
        pending: Pending,
        mut exec: Exec,
        console: Option<OwnedFd>,
        unwanted: bool,
    ) {
        let Some(container) = self.container(serial) else {
            return self.answer(origin, error(ErrorKind::NotFound, "the container is gone"));
        };
        let executed = match container.handler.finish_exec(pending) {
            Ok(executed) => executed,
            Err(failure) => return self.answer(origin, error(kind_of(&failure), failure.to_string())),
        };
        // A container that ended meanwhile has had its processes killed; this one may have joined it too late for that.
        let unwanted = unwanted || container.has_exited();
        let pid = executed.pid;
        if let (Some(socket), Some(master)) = (console, executed.console)
            && let Err(error) = send_byte(socket.as_fd(), 0, Some(master.as_fd()))
        {
            self.notes
                .say(&format!("hand over the terminal of exec {}: {error}", exec.id));
        }
        self.fail_point("monitor.executed");
        let ended = self.take_unnamed(pid);
        self.answer(origin, Answer::ExecStarted(ExecStarted { pid }));
        match ended {
            Some(status) => self.exec_ended(exec.id, status),
            None => {
                exec.pid = pid;
                if unwanted {
                    exec.kill(&self.roots);
                }
                self.execs.push(exec);
            }
        }
    }
}

fn done(result: Option<runtime::Result<()>>) -> Answer {
    match result {
        Some(Err(failure)) => error(kind_of(&failure), failure.to_string()),
        _ => Answer::Done(Done {}),
    }
}
