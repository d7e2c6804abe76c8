//! A monitor that lives and does not answer (stopped by a signal, stuck in the kernel): the last resort.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// How long a killed process may take to vanish, milliseconds.
const VANISH_LIMIT: u16 = 5_000;

/// Kills the monitor of pod `pod_id` that was told to listen at `socket`, with the children it has forked and not yet
/// given another program, and waits until they are gone. Its containers lose their parent: they are for the caller to
/// settle. No such process: done.
///
/// # Errors
/// When the process table can't be read, or a process is still there 5 s after SIGKILL.
pub async fn kill(pod_id: &str, socket: &Path) -> io::Result<()> {
    let (pod_id, socket) = (pod_id.to_owned(), socket.to_owned());
    tokio::task::spawn_blocking(move || {
        for process in find(&pod_id, &socket)? {
            end(&process, &pod_id, &socket)?;
        }
        Ok(())
    })
    .await
    .map_err(io::Error::other)?
}

fn find(pod_id: &str, socket: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        if is_monitor(&path, pod_id, socket) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether the process at `/proc/PID` has the command line that `spawn` gives: nothing else names both.
fn is_monitor(process: &Path, pod_id: &str, socket: &Path) -> bool {
    let Ok(line) = fs::read(process.join("cmdline")) else {
        return false;
    };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let wanted: [&[u8]; 5] = [
        b"monitor",
        b"--pod",
        pod_id.as_bytes(),
        b"--socket",
        socket.as_os_str().as_bytes(),
    ];
    words.get(1..6).is_some_and(|words| *words == wanted)
}

fn end(process: &Path, pod_id: &str, socket: &Path) -> io::Result<()> {
    let pid = process
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse::<i32>().ok());
    let Some(pid) = pid else { return Ok(()) };
    let fd = match sys::pidfd_open(pid) {
        Err(error) if is_gone(&error) => return Ok(()),
        fd => fd?,
    };
    // The number may have been given to another process before the descriptor held it.
    if !is_monitor(process, pod_id, socket) {
        return Ok(());
    }
    match sys::pidfd_kill(fd.as_fd(), libc::SIGKILL) {
        Err(error) if is_gone(&error) => return Ok(()),
        sent => sent?,
    }
    let mut ended = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut ended, PollTimeout::from(VANISH_LIMIT))? {
        0 => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("monitor process {pid} is still there after SIGKILL"),
        )),
        _ => Ok(()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}
