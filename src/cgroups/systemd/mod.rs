//! The systemd driver: containers are transient scopes in the slices of their pods, and systemd knows their limits.
//!
//! systemd owns the cgroup tree of a machine where it is the first process. What it does not know of, it may set back when
//! it reloads its units. So a container's cgroup is a scope that systemd makes and delegates; limits are written to
//! the kernel's files as with the other driver, and then told to systemd, as what is in force ([`tell`]).
//! Device rules are not told: a delegated scope with the policy `auto` gets no program of systemd's, and ours stays.
//!
//! The D-Bus client is our own: a scope is made by a helper of the monitor, which must stay without threads and async
//! runtime, and five methods of one object need no more than 400 lines.

mod connection;
mod names;
mod properties;
mod wire;

use std::{
    io,
    path::{Path, PathBuf},
};

use connection::{Connection, Failure, GET_UNIT, RESET_FAILED, SET_PROPERTIES, START_TRANSIENT, STOP};
use wire::{Value, Writer};

pub use names::{Scope, slice_of, slice_path, unit_at};

use super::{Error, Result};

/// What the names of container scopes begin with.
pub const PREFIX: &str = "wharf";

/// Whether systemd is this machine's first process (sd_booted(3)).
#[must_use]
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether systemd answers.
///
/// # Errors
/// What is wrong with the way there.
pub fn probe() -> Result<()> {
    Connection::open()
        .map(drop)
        .map_err(|failure| failed("connect to", "systemd", failure))
}

fn failed(attempt: &str, unit: &str, failure: Failure) -> Error {
    let source = match failure {
        Failure::Io(error) => error,
        refused @ Failure::Refused { .. } => io::Error::other(refused.to_string()),
    };
    Error::io(format!("systemd: {attempt}"), unit, source)
}

/// Makes the scope with the calling process in it. It is systemd's by its number 0: "who asks", whatever its number is
/// in its own PID namespace.
///
/// # Errors
/// When systemd refuses or can't be reached.
pub fn start(scope: &Scope, description: &str) -> Result<()> {
    let mut systemd = Connection::open().map_err(|failure| failed("start", &scope.unit, failure))?;
    match start_once(&mut systemd, scope, description) {
        // Of the same container, from an attempt that was cut off.
        Err(failure) if failure.kind() == "UnitExists" => {
            stop_with(&mut systemd, &scope.unit)?;
            start_once(&mut systemd, scope, description)
        }
        other => other,
    }
    .map_err(|failure| failed("start", &scope.unit, failure))
}

fn start_once(systemd: &mut Connection, scope: &Scope, description: &str) -> std::result::Result<(), Failure> {
    let properties = [
        ("Description", Value::Text(description.to_owned())),
        ("Slice", Value::Text(scope.slice.clone())),
        // Its inside is ours, with all controllers.
        ("Delegate", Value::Bool(true)),
        // Kubelet ends pods when the machine goes down, in its own order; what is left is killed at the very end.
        ("DefaultDependencies", Value::Bool(false)),
        // Else systemd's default for all units holds.
        ("TasksMax", Value::U64(u64::MAX)),
        // Nothing is kept of one that ended badly: that is told by the monitor.
        ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
        ("PIDs", Value::U32s(vec![0])),
    ];
    let mut body = Writer::default();
    body.text(&scope.unit);
    body.text("replace");
    body.properties(&properties);
    body.array(8, |_| {});
    match systemd.job(&START_TRANSIENT, body)?.as_str() {
        "done" => Ok(()),
        other => Err(Failure::Io(io::Error::other(format!("the job ended with {other:?}")))),
    }
}

/// Has systemd forget a unit, and waits for that. What still runs in it is ended. Fine if there is no such unit.
///
/// # Errors
/// When systemd refuses or can't be reached.
pub fn stop(unit: &str) -> Result<()> {
    let mut systemd = Connection::open().map_err(|failure| failed("stop", unit, failure))?;
    stop_with(&mut systemd, unit)
}

fn stop_with(systemd: &mut Connection, unit: &str) -> Result<()> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("replace");
    match systemd.job(&STOP, body) {
        Ok(_) => {}
        Err(failure) if failure.kind() == "NoSuchUnit" => return Ok(()),
        Err(failure) => return Err(failed("stop", unit, failure)),
    }
    // One that does not collect what failed would keep its name.
    let mut body = Writer::default();
    body.text(unit);
    match systemd.call(&RESET_FAILED, body) {
        Err(failure @ Failure::Io(_)) => Err(failed("reset", unit, failure)),
        _ => Ok(()),
    }
}

/// Tells systemd the limits that `files` of the unit's cgroup hold, so that it does not set them back. A unit that systemd
/// does not know has none to set back.
///
/// # Errors
/// When systemd refuses or can't be reached.
pub fn tell(unit: &str, files: &[PathBuf]) -> Result<()> {
    let told = properties::of(files);
    if told.properties.is_empty() {
        return Ok(());
    }
    let mut systemd = Connection::open().map_err(|failure| failed("set limits of", unit, failure))?;
    let mut body = Writer::default();
    body.text(unit);
    body.bool(true);
    body.properties(&told.properties);
    match systemd.call(&SET_PROPERTIES, body) {
        Err(failure) if failure.kind() == "NoSuchUnit" => return Ok(()),
        Err(failure) => return Err(failed("set limits of", unit, failure)),
        Ok(_) => {}
    }
    if told.rounded.is_empty() {
        return Ok(());
    }
    // systemd writes the rounded value after its answer, and before it reads the next call.
    let mut body = Writer::default();
    body.text(unit);
    match systemd.call(&GET_UNIT, body) {
        Err(failure @ Failure::Io(_)) => return Err(failed("look at", unit, failure)),
        // Gone meanwhile: then so are the files.
        Err(Failure::Refused { .. }) => return Ok(()),
        Ok(_) => {}
    }
    told.rounded
        .iter()
        .try_for_each(|(path, value)| super::fsutil::write(path, value))
}
