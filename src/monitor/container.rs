//! What the monitor keeps of one container.

use std::{
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Instant,
};

use wharf_proto::monitor as proto;

use super::{
    exit::Exit,
    log::{Lines, Log, Stamp},
    notifier::Notifier,
    sys,
};
use crate::{
    runtime::{ContainerRef, Created, Handler},
    store,
};

/// Where a container stands.
pub enum State {
    /// The runtime builds it.
    Creating,
    /// Init exists and is let go.
    Starting,
    Running,
    Exited(Exit),
}

/// One output stream of a container.
#[derive(Debug)]
pub struct Output {
    /// Read end of a pipe, or the master of a terminal.
    pub source: std::fs::File,
    pub lines: Lines,
}

/// One container.
pub struct Container {
    pub serial: u32,
    pub id: String,
    pub bundle: PathBuf,
    pub handler: Box<dyn Handler>,
    pub seccomp_filter: Option<PathBuf>,
    pub cgroup_path: String,
    /// It was dumped once, and is brought back instead of created.
    pub restore: Option<proto::Restore>,
    /// A checkpoint for this connection has it stand still, or is about to.
    pub frozen_for: Option<u32>,
    pub exit_file: PathBuf,
    pub log: Log,
    pub line_limit: usize,
    pub outputs: [Option<Output>; 2],
    /// Our end of the container's standard input, kept open for attach.
    pub stdin: Option<OwnedFd>,
    /// It has a terminal instead of three streams.
    pub terminal: bool,
    /// The first client that attaches to stdin gets our end for good: what it closes stays closed.
    pub stdin_once: bool,
    /// Outputs that are not read because an attached client has no room.
    pub paused: [bool; 2],
    /// With a terminal: its slave, so that the master does not report a hang-up while nobody has it open.
    pub slave: Option<OwnedFd>,
    pub created: Option<Created>,
    pub state: State,
    /// 0 before it exists and after it was waited for.
    pub init_pid: i32,
    /// Wait status of an init that ended before its start was confirmed.
    pub early_end: Option<i32>,
    /// How many of its processes had been killed for lack of memory when it was first sent a signal: what ends it then
    /// is the signal, unless the count has grown.
    pub oom_before_signal: Option<u64>,
    /// How many processes had been killed for lack of memory in the cgroup above and in none of this pod's containers, when
    /// this one was made. For when its own count is gone.
    pub oom_above: Option<u64>,
    /// Unix time, nanoseconds.
    pub started_at: i64,
    /// When outputs that outlive init are closed.
    pub drain_until: Option<Instant>,
    /// Class of cache and memory bandwidth.
    pub class: Option<PathBuf>,
    /// What its seccomp profile blocks.
    pub notifier: Option<Notifier>,
    /// When a start that has not come to its end is given up.
    pub start_until: Option<Instant>,
    /// It was.
    pub overdue: bool,
    /// The exit file could not be written yet.
    pub exit_unsaved: bool,
}

/// What reading an output came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing more at the moment, or enough for one wake-up.
    Open,
    /// Nothing should be read before an attached client has taken what it was given.
    Stalled,
    /// Everyone has closed it.
    End,
}

impl Container {
    pub fn reference(&self) -> ContainerRef<'_> {
        ContainerRef {
            id: &self.id,
            bundle: &self.bundle,
            init_pid: self.init_pid,
            cgroup_path: &self.cgroup_path,
        }
    }

    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    pub fn has_exited(&self) -> bool {
        matches!(self.state, State::Exited(_))
    }

    pub fn describe(&self) -> proto::Container {
        proto::Container {
            id: self.id.clone(),
            pid: self.init_pid,
            running: !self.has_exited(),
            started_at: self.started_at,
            exit: self.exited(),
            blocked: self.notifier.as_ref().map(Notifier::calls).unwrap_or_default(),
        }
    }

    pub fn exited(&self) -> Option<proto::ContainerExited> {
        let State::Exited(exit) = &self.state else { return None };
        Some(proto::ContainerExited {
            container_id: self.id.clone(),
            code: exit.code,
            oom_killed: exit.oom_killed,
            finished_at: exit.finished_at,
        })
    }

    /// Moves output to the log: at most about `budget` bytes, through `buffer`. `pass` gets a copy for whoever is
    /// attached and says whether there is room for more.
    pub fn drain(
        &mut self,
        index: usize,
        budget: usize,
        buffer: &mut [u8],
        mut pass: impl FnMut(&[u8]) -> bool,
    ) -> Drained {
        let Some(output) = &mut self.outputs[index] else {
            return Drained::End;
        };
        let mut taken = 0;
        let mut drained = Drained::Open;
        while taken < budget {
            match output.source.read(buffer) {
                Ok(0) => {
                    drained = Drained::End;
                    break;
                }
                Ok(count) => {
                    output
                        .lines
                        .push(&buffer[..count], Stamp::at(store::now()), &mut self.log);
                    taken += count;
                    if !pass(&buffer[..count]) {
                        drained = Drained::Stalled;
                        break;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                // A terminal says EIO when nobody has it open any more.
                Err(_) => {
                    drained = Drained::End;
                    break;
                }
            }
        }
        self.log.flush();
        drained
    }

    /// Bytes that may still be in an output after its writers have died.
    pub fn rest(&self, index: usize) -> usize {
        const TERMINAL: usize = 64 << 10;
        match &self.outputs[index] {
            Some(output) => sys::pipe_capacity(output.source.as_fd()).max(TERMINAL),
            None => 0,
        }
    }

    /// Forgets an output; what stands unterminated in it is logged. The caller has taken it out of the poll set.
    pub fn close_output(&mut self, index: usize) {
        if let Some(mut output) = self.outputs[index].take() {
            output.lines.end(Stamp::at(store::now()), &mut self.log);
            self.log.flush();
        }
    }

    pub fn output_fd(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.outputs[index].as_ref().map(|output| output.source.as_fd())
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.log.shrink();
        for output in self.outputs.iter_mut().flatten() {
            output.lines.shrink();
        }
    }
}
