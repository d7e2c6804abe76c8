//! Running a command in a running container and collecting its output.

use std::{
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::fcntl::OFlag;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::unix::pipe,
};
use tokio_util::sync::CancellationToken;
use wharf_proto::monitor::Exec;

use super::{Container, Error, Result, is_gone, pause, process};
use crate::{monitor, store};

/// Most bytes kept per stream; the rest is dropped silently (contract rule 20).
const OUTPUT_LIMIT: usize = 16 << 20;

/// What a command wrote and how it ended.
#[derive(Debug)]
pub struct Output {
    /// At most 16 MiB.
    pub stdout: Vec<u8>,
    /// At most 16 MiB.
    pub stderr: Vec<u8>,
    /// 0..255; 128 + signal when a signal ended it.
    pub exit_code: i32,
}

/// Runs `command` in the container. A `timeout` of zero means none. Cancelling `gone` kills it too. What it leaves running with its
/// output is waited for, up to `drain` after its end (zero is no limit): its output is a part of the command's.
///
/// # Errors
/// [`Error::State`] when the container does not run, [`Error::Exec`] when the command can't be started,
/// [`Error::Deadline`] when it takes longer than `timeout`, it is then killed with all its descendants; [`Error::HeldOpen`] when
/// its output takes longer than `timeout` or `drain`, what holds it goes on.
pub async fn exec_sync(
    container: &Container,
    command: Vec<String>,
    timeout: Duration,
    drain: Duration,
    gone: CancellationToken,
) -> Result<Output> {
    if command.is_empty() {
        return Err(Error::Invalid("the command to run is empty".into()));
    }
    pause::check(container)?;
    let monitor = container.monitor()?;
    let process = process_json(container, command, false).await?;

    let (stdout, stdout_write) = output_pipe().map_err(container.io("make a pipe"))?;
    let (stderr, stderr_write) = output_pipe().map_err(container.io("make a pipe"))?;
    let stdin: OwnedFd = std::fs::File::open("/dev/null")
        .map_err(container.io("open /dev/null"))?
        .into();
    let id = store::new_id()?;
    let exited = container.sandbox.expect_exec(&id);
    let request = Exec {
        exec_id: id.clone(),
        container_id: container.id.clone(),
        process,
        terminal: false,
        // Without this daemon nobody hears of its end, and nobody would see to its time limit.
        bound: true,
    };
    let limit = async {
        if timeout.is_zero() {
            std::future::pending().await
        } else {
            tokio::time::sleep(timeout).await;
        }
    };
    tokio::pin!(limit);
    let ended = AtomicBool::new(false);
    let took_long = || format!("timed out: it took longer than {} s", timeout.as_secs());
    let nobody = || "has nobody left who waits for it".to_owned();
    let killed = |why: String| Error::Deadline(format!("command in container {} {why} and was killed", container.id));
    // In the words that containerd uses. What it left running is the container's own now.
    let held_open = |limit: Duration| {
        Error::HeldOpen(format!(
            "command in container {}: failed to drain exec process: it has ended, but what it left running held its output open \
             for {} s",
            container.id,
            limit.as_secs()
        ))
    };
    // The time counts from here: a monitor that does not answer starts nothing.
    let started = tokio::select! {
        started = monitor.exec(request, vec![stdin, stdout_write, stderr_write]) => started.map_err(|error| exec_error(container, &error)),
        () = &mut limit => Err(killed(took_long())),
        () = gone.cancelled() => Err(killed(nobody())),
    };
    if let Err(error) = started {
        container.sandbox.forget_exec(&id);
        // Should it start after all.
        monitor.kill_exec_soon(&id);
        return Err(error);
    }

    let output = async {
        // Both streams are read while the command runs, so that it never blocks on a full pipe.
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = {
            let streams = async { tokio::join!(collect(stdout, &mut out), collect(stderr, &mut err)) };
            tokio::pin!(streams);
            tokio::pin!(exited);
            tokio::select! {
                code = &mut exited => {
                    ended.store(true, Ordering::Relaxed);
                    if drain.is_zero() {
                        streams.await;
                    } else if tokio::time::timeout(drain, streams).await.is_err() {
                        return None;
                    }
                    code
                }
                _ = &mut streams => exited.await,
            }
        };
        Some(code.map(|exit_code| Output {
            stdout: out,
            stderr: err,
            exit_code,
        }))
    };
    let why = tokio::select! {
        result = output => match result {
            Some(result) => return result.map_err(|_| Error::Exec {
                id: container.id.clone(),
                message: "the pod's monitor ended".into(),
            }),
            None => return Err(held_open(drain)),
        },
        () = &mut limit => took_long(),
        () = gone.cancelled() => nobody(),
    };
    if ended.load(Ordering::Relaxed) {
        return Err(held_open(timeout));
    }
    match monitor.kill_exec(&id).await {
        // It is told, and kills when it goes on.
        Err(monitor::Error::Timeout { .. }) => {}
        other => other.map_err(container.monitor_error())?,
    }
    Err(killed(why))
}

/// The OCI process object of `command`.
pub(super) async fn process_json(container: &Container, command: Vec<String>, terminal: bool) -> Result<Vec<u8>> {
    let spec_path = container.dir.join("config.json");
    let failed = container.io("read config.json");
    container
        .blocking(move || {
            let spec =
                oci_spec::runtime::Spec::load(&spec_path).map_err(|error| failed(std::io::Error::other(error)))?;
            let process = process::for_exec(&spec, command, terminal)?;
            serde_json::to_vec(&process).map_err(|error| Error::Invalid(error.to_string()))
        })
        .await
}

pub(super) fn exec_error(container: &Container, error: &monitor::Error) -> Error {
    if is_gone(error) {
        return Error::State(format!("container {} is not running any more", container.id));
    }
    let message = match error {
        monitor::Error::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    };
    Error::Exec {
        id: container.id.clone(),
        message,
    }
}

fn output_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// Reads to the end, keeping the first [`OUTPUT_LIMIT`] bytes.
async fn collect(mut stream: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut buffer = vec![0u8; 16 << 10];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let room = OUTPUT_LIMIT.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
        }
    }
}
