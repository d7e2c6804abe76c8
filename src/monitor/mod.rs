//! The monitor: one small process per pod that is the parent of the pod's containers, owns their output, writes their
//! logs and records their ends, while the daemon comes and goes.
//!
//! Two halves live here. [`main`] is the monitor itself: single-threaded, epoll, no async runtime; it never blocks on
//! a helper and never ends before it is told to. [`client`] is the daemon's side: it starts monitors, finds them again
//! after a restart, and speaks their protocol (`monitor.proto`). The room may ask `runtime` (to make containers),
//! `cgroups` and `store`; it knows pods only by id.

use std::{ffi::OsString, io, path::PathBuf, process::ExitCode};

mod attach;
mod cgroup;
pub mod client;
mod connection;
mod container;
mod exit;
pub mod frame;
mod log;
mod notifier;
mod pod_init;
mod poll;
mod server;
mod setup;
mod sys;
mod tree;

pub use client::{Client, Event, Events, Program, SpawnOptions};
pub use setup::CGROUP as DEFAULT_CGROUP;

/// Version of the protocol that this build speaks. Raised only when an older daemon would misunderstand: new operations and
/// fields need no new number, as who does not know them says so.
pub const PROTOCOL_VERSION: u32 = 1;

/// The oldest version that a monitor may speak to be served by this build's daemon.
const OLDEST_PROTOCOL: u32 = 1;

/// Why a monitor could not be reached or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{attempt} {object}: {source}")]
    Io {
        /// What was tried, for example "connect to monitor".
        attempt: &'static str,
        /// A path, a pod or a container.
        object: String,
        /// What the system said.
        source: io::Error,
    },
    /// The monitor answered with an error.
    #[error("monitor: {attempt} {object}: {message}")]
    Refused {
        /// The operation, for example "start container".
        attempt: &'static str,
        /// The container or exec.
        object: String,
        /// The kind the monitor gave.
        kind: wharf_proto::monitor::ErrorKind,
        /// The monitor's words.
        message: String,
    },
    /// The connection ended before the answer came. The monitor may be alive: connect again.
    #[error("{attempt} {object}: connection to the monitor closed")]
    Closed {
        /// The operation.
        attempt: &'static str,
        /// The container or exec.
        object: String,
    },
    /// The monitor did not answer in time.
    #[error("{attempt} {}: no answer within {seconds} s", path.display())]
    Timeout {
        /// What was tried.
        attempt: &'static str,
        /// The monitor's socket.
        path: PathBuf,
        /// The limit.
        seconds: f32,
    },
    /// The monitor is of a version that this daemon does not know how to serve, so it is left alone.
    #[error(
        "{object}: the pod's monitor speaks version {theirs} of the protocol, this daemon serves {OLDEST_PROTOCOL} to {ours}: run a {} version of wharf",
        if theirs > ours { "newer" } else { "older" }
    )]
    Version {
        /// The monitor's socket.
        object: String,
        /// The monitor's version.
        theirs: u32,
        /// The daemon's version.
        ours: u32,
    },
    /// The monitor sent something that is not the protocol.
    #[error("{attempt} {object}: the monitor broke the protocol: {message}")]
    Protocol {
        /// The operation.
        attempt: &'static str,
        /// The container, exec or socket.
        object: String,
        /// What was wrong.
        message: String,
    },
}

/// Result of this room.
pub type Result<T> = std::result::Result<T, Error>;

/// The monitor process: `wharf monitor --pod ID --socket PATH [--pid-namespace [--user-namespace PATH]]
/// [--cgroup PATH]`. `args` begins after the word `monitor`. Must be called before anything else of the process has started a thread.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    sys::tune_allocator();
    let options = match setup::Options::parse(args) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("wharf monitor: {message}");
            return ExitCode::from(2);
        }
    };
    let notes = setup::Notes::beside(&options.socket);
    let panicked = notes.clone();
    std::panic::set_hook(Box::new(move |info| panicked.say(&info.to_string())));
    match server::Monitor::new(options, notes.clone()) {
        Ok(monitor) => monitor.run(),
        Err(error) => {
            notes.say(&format!("start: {error}"));
            eprintln!("wharf monitor: start: {error}");
            ExitCode::FAILURE
        }
    }
}
