//! Blocked system calls of containers, and starts that take too long: what the monitor does on its own.

use std::time::Instant;

use wharf_proto::monitor::{CallsBlocked, reply::Result as Answer};

use super::{super::container::State, Monitor, jobs::Work};
use crate::monitor::{sys, tree};

impl Monitor {
    /// Something happened that a container's notifier waits for.
    pub(super) fn notice(&mut self, serial: u32) {
        self.warm = true;
        let next = &mut self.next_serial;
        for container in &mut self.containers {
            if let Some(notifier) = container.notifier.as_mut().filter(|notifier| notifier.has(serial)) {
                notifier.ready(serial, &self.poll, || {
                    *next = next.wrapping_add(1);
                    *next
                });
                return;
            }
        }
    }

    /// Tells what was blocked, ends containers that are to be ended for it, and gives up starts that take too long.
    pub(super) fn keep_notices(&mut self, now: Instant) {
        for at in 0..self.containers.len() {
            let container = &mut self.containers[at];
            let (id, serial) = (container.id.clone(), container.serial);
            let Some(notifier) = &mut container.notifier else {
                continue;
            };
            let news = notifier.news(now);
            let due = notifier.is_due(now);
            if let Some(calls) = news {
                let container_id = id.clone();
                self.send(0, Answer::CallsBlocked(CallsBlocked { container_id, calls }));
            }
            if due {
                self.end_for_calls(serial);
            }
        }
        for at in 0..self.containers.len() {
            if self.containers[at].start_until.is_some_and(|until| until <= now) {
                self.containers[at].start_until = None;
                self.give_up_start(at);
            }
        }
    }

    fn end_for_calls(&mut self, serial: u32) {
        let Some(container) = self.containers.iter().find(|c| c.serial == serial && c.is_running()) else {
            return;
        };
        match container.handler.kill(&container.reference(), libc::SIGKILL, true) {
            Ok(None) => {}
            Ok(Some(pending)) => self.add_job(pending, Work::Kill { origin: None, serial }),
            Err(error) => {
                let what = format!("end container {} for its system calls: {error}", container.id);
                self.notes.say(&what);
            }
        }
    }

    /// Whatever it hangs in ends; what waits for it then sees a failure.
    fn give_up_start(&mut self, at: usize) {
        let container = &mut self.containers[at];
        if !matches!(container.state, State::Creating | State::Starting) {
            return;
        }
        container.overdue = true;
        let (serial, init) = (container.serial, container.init_pid);
        match self.jobs.iter().find_map(|job| job.starts(serial)) {
            Some(helper) => tree::kill(helper, Vec::new),
            None if init > 0 => drop(sys::kill(init, libc::SIGKILL)),
            None => {}
        }
    }

    /// The container has ended.
    pub(super) fn close_notifier(&mut self, serial: u32) {
        let container = self.containers.iter_mut().find(|c| c.serial == serial);
        if let Some(notifier) = container.and_then(|container| container.notifier.as_mut()) {
            notifier.close(&self.poll);
        }
    }
}
