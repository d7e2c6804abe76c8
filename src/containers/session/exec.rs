//! A command with a client's streams.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::sync::oneshot;
use wharf_proto::monitor::Exec;

use super::{
    super::{Container, Error, Result, exec::exec_error, exec::process_json},
    ExecOptions, Input, Output, Process, Session, Terminal, is_persons, output, pipe, streams,
};
use crate::{monitor::client::passing, store};

/// A command that runs or is being started. Dropping it kills it with all its descendants.
#[derive(Debug)]
pub(super) struct Running {
    container: Arc<Container>,
    id: String,
    exited: oneshot::Receiver<i32>,
    code: Option<i32>,
}

impl Running {
    pub async fn wait(&mut self) -> Result<i32> {
        if let Some(code) = self.code {
            return Ok(code);
        }
        match (&mut self.exited).await {
            Ok(code) => {
                self.code = Some(code);
                Ok(code)
            }
            Err(_) => Err(Error::Exec {
                id: self.container.id.clone(),
                message: "the pod's monitor ended".into(),
            }),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.code.is_some() {
            return;
        }
        self.container.sandbox.forget_exec(&self.id);
        if let Ok(monitor) = self.container.monitor() {
            monitor.kill_exec_soon(&self.id);
        }
    }
}

/// Runs a command with streams.
///
/// # Errors
/// As [`ExecOptions::check`], and [`Error::Exec`] when the command can't be started.
pub async fn exec(container: &Arc<Container>, options: ExecOptions) -> Result<Session> {
    options.check(container)?;
    let monitor = container.monitor()?;
    let process = process_json(container, options.command, options.tty).await?;
    let id = store::new_id()?;
    let request = Exec {
        exec_id: id.clone(),
        container_id: container.id.clone(),
        process,
        terminal: options.tty,
        bound: true,
    };
    let running = Running {
        exited: container.sandbox.expect_exec(&id),
        container: Arc::clone(container),
        id,
        code: None,
    };
    let mut session = Session {
        stdin: None,
        stdout: None,
        stderr: None,
        terminal: Terminal::none(),
        process: Process::Exec(running),
        persons: is_persons(container),
    };
    if options.tty {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| container.io("make a socket pair")(errno.into()))?;
        monitor
            .exec(request, vec![theirs])
            .await
            .map_err(|error| exec_error(container, &error))?;
        let failed = container.io("take over the terminal of a command");
        let master = passing::terminal(ours.as_fd())
            .and_then(streams::reader_and_writer)
            .map_err(failed)?;
        session.stdin = options.stdin.then(|| Input::new(Arc::clone(&master)));
        session.stdout = options.stdout.then(|| Output::new(Arc::clone(&master)));
        session.terminal = Terminal::there(master);
    } else {
        let failed = container.io("make the streams of a command");
        let descriptors = connect(&mut session, [options.stdin, options.stdout, options.stderr]).map_err(failed)?;
        monitor
            .exec(request, descriptors)
            .await
            .map_err(|error| exec_error(container, &error))?;
    }
    Ok(session)
}

/// Makes the wanted streams, and gives the process's ends of all three.
fn connect(session: &mut Session, [stdin, stdout, stderr]: [bool; 3]) -> std::io::Result<Vec<OwnedFd>> {
    let mut theirs = Vec::with_capacity(3);
    if stdin {
        let (read, write) = pipe()?;
        session.stdin = Some(Input::new(streams::writer(write)?));
        theirs.push(read);
    } else {
        theirs.push(File::open("/dev/null")?.into());
    }
    for (wanted, place) in [(stdout, &mut session.stdout), (stderr, &mut session.stderr)] {
        if wanted {
            let (output, write) = output()?;
            *place = Some(output);
            theirs.push(write);
        } else {
            theirs.push(File::options().write(true).open("/dev/null")?.into());
        }
    }
    Ok(theirs)
}
