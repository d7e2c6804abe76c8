//! Ends of processes: of containers' inits, of execs, of helpers and of orphans that came here.

use std::time::Instant;

use wharf_proto::monitor::{ContainerExited, ExecExited, reply::Result as Answer};

use super::{
    super::{
        attach,
        container::{Container, Drained, State},
        exit::{self, Exit},
        notifier::Notifier,
        sys,
    },
    LINGER, Monitor, READ,
    jobs::Work,
};
use crate::store;

/// Most ended children remembered while a job runs that may name them.
const MAX_UNNAMED: usize = 1024;

/// A child that ended while a job ran that may be about to name it.
pub(super) struct Unnamed {
    pid: i32,
    status: i32,
    /// Only jobs up to this serial can mean it.
    before: u32,
}

impl Monitor {
    /// Waits for every child that has ended.
    pub(super) fn reap(&mut self) {
        self.warm = true;
        while let Ok(Some(_)) = self.signals.read_signal() {}
        while let Some((pid, status)) = sys::reap() {
            self.ended_child(pid, status);
        }
    }

    fn ended_child(&mut self, pid: i32, status: i32) {
        if pid == self.pod_init {
            self.pod_init = 0;
            self.headless = true;
            self.notes
                .say("the init of the pod's PID namespace has ended, and all that ran in it");
        } else if let Some(container) = self.containers.iter_mut().find(|c| c.init_pid == pid) {
            if container.is_running() {
                let serial = container.serial;
                self.container_ended(serial, status);
            } else {
                container.early_end = Some(status);
                container.init_pid = 0;
            }
        } else if let Some(at) = self.execs.iter().position(|exec| exec.pid == pid) {
            let exec = self.execs.swap_remove(at);
            self.exec_ended(exec.id, status);
        } else if let Some(job) = self.jobs.iter_mut().find(|job| job.is_helper(pid)) {
            job.forget_helper();
        } else if !self.jobs.is_empty() {
            if self.unnamed.len() >= MAX_UNNAMED {
                self.unnamed.remove(0);
            }
            let before = self.next_serial;
            self.unnamed.push(Unnamed { pid, status, before });
        }
    }

    /// Forgets ended children that no job can name any more: all jobs that ran when they ended have finished.
    pub(super) fn forget_unnamed(&mut self) {
        match self.jobs.iter().map(|job| job.serial).min() {
            Some(oldest) => self.unnamed.retain(|ended| ended.before >= oldest),
            None => self.unnamed = Vec::new(),
        }
    }

    /// The wait status of a child that ended before anyone knew what it is.
    pub(super) fn take_unnamed(&mut self, pid: i32) -> Option<i32> {
        let at = self.unnamed.iter().position(|ended| ended.pid == pid)?;
        Some(self.unnamed.remove(at).status)
    }

    pub(super) fn exec_ended(&mut self, exec_id: String, status: i32) {
        let code = exit::code(status);
        self.send(0, Answer::ExecExited(ExecExited { exec_id, code }));
    }

    /// A running container's init has ended.
    pub(super) fn container_ended(&mut self, serial: u32, status: i32) {
        let finished_at = store::now();
        self.fail_point("monitor.ended");
        // Asked before Wharf removes the cgroup. The count stands before the victim dies.
        let oom_killed = self.is_oom_killed(serial, exit::code(status));
        let Some(container) = self.container(serial) else {
            return;
        };
        container.init_pid = 0;
        let notifier = self.container(serial).and_then(|container| container.notifier.as_ref());
        let seccomp_killed = notifier.is_some_and(|notifier| notifier.stopping);
        let message = notifier.map(Notifier::describe).unwrap_or_default();
        self.conclude(
            serial,
            Exit {
                code: exit::code(status),
                oom_killed,
                seccomp_killed,
                message,
                start_failed: false,
                finished_at,
            },
        );
    }

    /// Whether it was lack of memory that has just ended a container.
    fn is_oom_killed(&self, serial: u32, code: i32) -> bool {
        let Some(container) = self.containers.iter().find(|c| c.serial == serial) else {
            return false;
        };
        if container.cgroup_path.is_empty() {
            return false;
        }
        if let Some(count) = self.roots.oom_kills(&container.cgroup_path) {
            return count > container.oom_before_signal.unwrap_or(0);
        }
        // systemd removes the cgroup of a scope that has become empty, and was faster. The cgroup above counts for all below
        // it, also for those that are gone.
        let killed = code == 128 + libc::SIGKILL && container.oom_before_signal.is_none();
        let (before, now) = (container.oom_above, self.oom_above(&container.cgroup_path));
        killed && now.zip(before).is_some_and(|(now, before)| now > before)
    }

    /// How many processes the cgroup above `path` has seen killed for lack of memory, without those that containers of this
    /// pod still show themselves.
    pub(super) fn oom_above(&self, path: &str) -> Option<u64> {
        let (above, _) = path.rsplit_once('/').filter(|(above, _)| !above.is_empty())?;
        let all = self.roots.oom_kills(above)?;
        let shown = self.containers.iter().filter(|c| !c.cgroup_path.is_empty());
        let shown: u64 = shown.filter_map(|c| self.roots.oom_kills(&c.cgroup_path)).sum();
        Some(all.saturating_sub(shown))
    }

    /// Ends what is left of a container, takes what is left of its output, and makes its exit known: first on disk.
    pub(super) fn conclude(&mut self, serial: u32, exit: Exit) {
        self.end_survivors(serial);
        self.buffer.resize(READ, 0);
        for index in 0..2 {
            let (attaches, poll) = (&mut self.attaches, &self.poll);
            let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
                return;
            };
            // Nobody waits for a client here: what it has no room for is kept, and is not more than this.
            let pass = |bytes: &[u8]| {
                attach::spread(attaches, poll, serial, index, bytes);
                true
            };
            // What the dead wrote is in the pipe; more than it holds can only come from the living.
            if container.drain(index, container.rest(index), &mut self.buffer, pass) == Drained::End {
                self.close_output(serial, index);
            }
        }
        let start_failed = exit.start_failed;
        self.close_notifier(serial);
        let Some(container) = self.container(serial) else {
            return;
        };
        container.slave = None;
        container.start_until = None;
        container.stdin = None;
        container.created = None;
        container.state = State::Exited(exit);
        container.drain_until = Some(Instant::now() + LINGER);
        container.save_exit();
        let unsaved = container
            .exit_unsaved
            .then(|| container.exit_file.display().to_string());
        let told: Option<ContainerExited> = container.exited();
        self.fail_point("monitor.recorded");
        if let Some(file) = unsaved {
            self.notes.say(&format!("write {file}: failed, will be tried again"));
        }
        // A failed start is told by the answer to Start.
        if let (false, Some(told)) = (start_failed, told) {
            self.send(0, Answer::ContainerExited(told));
        }
    }

    /// Kills processes that outlive init, which happens unless the container has a PID namespace of its own.
    fn end_survivors(&mut self, serial: u32) {
        let Some(container) = self.containers.iter().find(|c| c.serial == serial) else {
            return;
        };
        if container.cgroup_path.is_empty() || !self.roots.is_populated(&container.cgroup_path) {
            return;
        }
        match container.handler.kill(&container.reference(), libc::SIGKILL, true) {
            Ok(None) => {}
            Ok(Some(pending)) => self.add_job(pending, Work::Kill { origin: None, serial }),
            Err(error) => {
                let what = format!("end what is left of container {}: {error}", container.id);
                self.notes.say(&what);
            }
        }
    }
}

impl Container {
    /// Writes the exit file, or remembers that it must be tried again.
    pub(super) fn save_exit(&mut self) {
        let State::Exited(exit) = &self.state else { return };
        self.exit_unsaved =
            !self.exit_file.as_os_str().is_empty() && exit.save(&self.exit_file, self.started_at).is_err();
    }
}
