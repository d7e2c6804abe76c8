//! Clients that come, go, and hold a container up.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use wharf_proto::monitor::{self as proto, Done, ErrorKind, reply::Result as Answer};

use super::{
    super::{
        attach::{Attach, Sink},
        connection::send_byte,
        container::State,
        poll::Source,
    },
    Monitor,
    jobs::error,
    requests::Outcome,
};

/// Most clients at a time; each takes three descriptors.
const MAX_ATTACHES: usize = 250;

/// What stands on the socket of a client; see `monitor.proto`.
const TERMINAL: u8 = b'T';
const INPUT: u8 = b'I';
const NO_INPUT: u8 = b'N';
const CUT_OFF: u8 = b'C';

impl Monitor {
    pub(super) fn attach(&mut self, request: &proto::Attach, descriptors: Vec<OwnedFd>) -> Outcome {
        let id = &request.container_id;
        let container = self.containers.iter().find(|c| c.id == *id);
        match container {
            None if !request.early => return Err(error(ErrorKind::NotFound, format!("no container {id}"))),
            Some(container) if container.has_exited() => {
                return Err(error(ErrorKind::WrongState, format!("container {id} has ended")));
            }
            _ => {}
        }
        if self.attaches.len() >= MAX_ATTACHES {
            let message = format!("{MAX_ATTACHES} clients are attached to this pod already");
            return Err(error(ErrorKind::Failed, message));
        }
        let container = container.map(|c| c.serial);
        let mut attach = self
            .client(request, container, descriptors)
            .map_err(|failure| error(ErrorKind::Failed, format!("attach to container {id}: {failure}")))?;
        if let Some(container) = self.containers.iter().find(|c| Some(c.serial) == container)
            && container.is_running()
        {
            for (index, output) in container.outputs.iter().enumerate() {
                if output.is_none() {
                    attach.end(&self.poll, index);
                }
            }
        }
        self.attaches.push(attach);
        if let Some(serial) = container {
            self.introduce(serial);
        }
        Ok(Some(Answer::Done(Done {})))
    }

    fn client(
        &mut self,
        request: &proto::Attach,
        container: Option<u32>,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Attach> {
        let expected = 1 + usize::from(request.stdout) + usize::from(request.stderr);
        let found = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let (Some(control), true) = (descriptors.next(), found == expected) else {
            let message = format!("{found} descriptors instead of {expected}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let mut sinks = [None, None];
        for (index, wanted) in [request.stdout, request.stderr].into_iter().enumerate() {
            if wanted && let Some(pipe) = descriptors.next() {
                sinks[index] = Some(Sink::new(pipe)?);
            }
        }
        let serial = self.serial();
        self.poll.add(&control, Source::Attach(serial))?;
        Ok(Attach {
            serial,
            container_id: request.container_id.clone(),
            container,
            wants_stdin: request.stdin,
            introduced: false,
            control,
            sinks,
        })
    }

    /// Clients that waited for this container to be started belong to it from now on.
    pub(super) fn adopt_early(&mut self, serial: u32) {
        let Some(container) = self.containers.iter().find(|c| c.serial == serial) else {
            return;
        };
        for attach in &mut self.attaches {
            if attach.container.is_none() && attach.container_id == container.id {
                attach.container = Some(serial);
            }
        }
    }

    /// Gives the container's input to those of its clients who do not have it yet, if it is there.
    pub(super) fn introduce(&mut self, serial: u32) {
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return;
        };
        let terminal = container.terminal;
        if terminal && container.outputs[0].is_none() && matches!(container.state, State::Creating) {
            return;
        }
        for attach in &mut self.attaches {
            if attach.container != Some(serial) || attach.introduced {
                continue;
            }
            attach.introduced = true;
            let sent = match (terminal, &container.stdin, container.output_fd(0)) {
                (true, _, Some(master)) => send_byte(attach.control.as_fd(), TERMINAL, Some(master)),
                (false, Some(stdin), _) if attach.wants_stdin => {
                    let sent = send_byte(attach.control.as_fd(), INPUT, Some(stdin.as_fd()));
                    if sent.is_ok() && container.stdin_once {
                        container.stdin = None;
                    }
                    sent
                }
                _ => send_byte(attach.control.as_fd(), NO_INPUT, None),
            };
            if let Err(error) = sent {
                // It has gone already, which its socket will say.
                self.notes
                    .say(&format!("greet a client of container {}: {error}", container.id));
            }
        }
    }

    /// A client has gone, or wants to.
    pub(super) fn detach(&mut self, serial: u32) {
        self.warm = true;
        if let Some(at) = self.attaches.iter().position(|attach| attach.serial == serial) {
            self.drop_attach(at);
        }
    }

    fn drop_attach(&mut self, at: usize) {
        let attach = self.attaches.swap_remove(at);
        attach.leave(&self.poll);
        if let Some(container) = attach.container {
            drop(attach);
            self.resume(container, 0);
            self.resume(container, 1);
        }
    }

    /// A client's pipe has room again.
    pub(super) fn relieve(&mut self, serial: u32, index: usize) {
        self.warm = true;
        let Some(attach) = self.attaches.iter_mut().find(|attach| attach.serial == serial) else {
            return;
        };
        attach.relieve(&self.poll, index);
        if let Some(container) = attach.container {
            self.resume(container, index);
        }
    }

    /// Does not read an output until its clients have room.
    pub(super) fn pause(&mut self, serial: u32, index: usize) {
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return;
        };
        container.paused[index] = true;
        if let Some(fd) = container.output_fd(index) {
            self.poll.remove(fd);
        }
    }

    fn resume(&mut self, serial: u32, index: usize) {
        let full = |attach: &Attach| {
            attach.container == Some(serial) && attach.sinks[index].as_ref().is_some_and(Sink::is_stalled)
        };
        if self.attaches.iter().any(full) {
            return;
        }
        let Some(container) = self.containers.iter_mut().find(|c| c.serial == serial) else {
            return;
        };
        if std::mem::take(&mut container.paused[index])
            && let Some(fd) = container.output_fd(index)
            && let Err(error) = self.poll.add(fd, Source::Stream(serial, index))
        {
            self.notes
                .say(&format!("read on from container {}: {error}", container.id));
        }
    }

    /// Stream `index` of a container has ended.
    pub(super) fn end_sinks(&mut self, serial: u32, index: usize) {
        for attach in self.attaches.iter_mut().filter(|a| a.container == Some(serial)) {
            attach.end(&self.poll, index);
        }
    }

    /// Cuts off clients that do not read, and lets those go whose container has ended.
    pub(super) fn keep_attaches(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.attaches.len() {
            let attach = &self.attaches[at];
            let stuck = attach.is_stuck(now);
            if stuck {
                let _ = send_byte(attach.control.as_fd(), CUT_OFF, None);
            }
            if stuck || self.is_over(attach) {
                self.drop_attach(at);
            } else {
                at += 1;
            }
        }
    }

    fn is_over(&self, attach: &Attach) -> bool {
        let Some(serial) = attach.container else { return false };
        if attach.sinks.iter().any(Option::is_some) {
            return false;
        }
        let container = self.containers.iter().find(|c| c.serial == serial);
        container.is_none_or(|c| c.has_exited() && c.outputs.iter().all(Option::is_none))
    }
}
