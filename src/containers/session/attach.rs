//! A client at a container's own streams.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
    time::Duration,
};

use nix::sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair};
use tokio::{net::unix::pipe, sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use wharf_proto::{
    monitor::Attach,
    record::{self, ContainerState},
};

use super::{
    super::{Container, Error, Result},
    AttachOptions, Input, Process, Session, Terminal, is_persons, output, pipe,
    streams::{self, Shared},
};
use crate::monitor::client::passing::{self, Word};

/// How long output still goes to a client whose stdin has ended. Its session then ends, as with the peers; unless the
/// container's stdin ends with it (stdin_once), so that there is an end to wait for.
const AFTERMATH: Duration = Duration::from_secs(1);

/// What a session knows of the container it is attached to. Dropping it detaches.
#[derive(Debug)]
pub(super) struct Attached {
    container: Arc<Container>,
    record: watch::Receiver<Arc<record::Container>>,
    /// The socket that the monitor has the other end of.
    control: Shared,
    /// The monitor has told of the container's input.
    introduced: CancellationToken,
    /// The monitor has closed its end.
    silent: bool,
    /// Cancelled when the client's stdin has ended and the session ends with it.
    stdin_ended: CancellationToken,
    ends_at: Option<Instant>,
    /// Brings the input to a container that is started later.
    _relay: Option<AbortOnDropHandle<()>>,
}

/// Attaches to a container's streams, from now on.
///
/// # Errors
/// As [`AttachOptions::check`], and when the monitor refuses.
pub async fn attach(container: &Arc<Container>, options: AttachOptions) -> Result<Session> {
    options.check(container)?;
    let monitor = container.monitor()?;
    let record = container.record.subscribe();
    let early = container.state() != ContainerState::ContainerRunning;
    let config = container.record.get().config.clone().unwrap_or_default();
    let stderr = options.stderr && !config.tty;
    let failed = || container.io("make the streams of a client");

    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed()(errno.into()))?;
    let control = streams::reader(ours).map_err(failed())?;
    let mut descriptors = vec![theirs];
    let mut outputs = [None, None];
    for (place, wanted) in outputs.iter_mut().zip([options.stdout, stderr]) {
        if wanted {
            let (output, write) = output().map_err(failed())?;
            *place = Some(output);
            descriptors.push(write);
        }
    }
    let request = Attach {
        container_id: container.id.clone(),
        stdin: options.stdin,
        stdout: options.stdout,
        stderr,
        early,
    };
    monitor
        .attach(request, descriptors)
        .await
        .map_err(container.monitor_error())?;

    let introduced = CancellationToken::new();
    let terminal = if config.tty {
        Terminal::awaited()
    } else {
        Terminal::none()
    };
    let mut relay = None;
    let stdin = if early {
        let (read, write) = pipe().map_err(failed())?;
        let from = options
            .stdin
            .then(|| pipe::Receiver::from_owned_fd(read))
            .transpose()
            .map_err(failed())?;
        let bring = bring(Arc::clone(&control), introduced.clone(), terminal.clone(), from);
        relay = Some(AbortOnDropHandle::new(tokio::spawn(bring)));
        options
            .stdin
            .then(|| streams::writer(write).map(Input::new))
            .transpose()
            .map_err(failed())?
    } else {
        let word = passing::hear(control.get_ref().as_fd()).map_err(failed())?;
        introduced.cancel();
        let input = take(word, &terminal).map_err(failed())?;
        match (options.stdin, input) {
            (false, _) => None,
            (true, Some(input)) => Some(input),
            (true, None) => Some(Input::absent().map_err(failed())?),
        }
    };
    let stdin_ended = CancellationToken::new();
    let stdin = match stdin {
        Some(stdin) if config.tty || !config.stdin_once => Some(stdin.telling(stdin_ended.clone())),
        stdin => stdin,
    };
    let [stdout, stderr] = outputs;
    Ok(Session {
        stdin,
        stdout,
        stderr,
        terminal,
        persons: is_persons(container),
        process: Process::Attached(Attached {
            container: Arc::clone(container),
            record,
            control,
            introduced,
            silent: false,
            stdin_ended,
            ends_at: None,
            _relay: relay,
        }),
    })
}

/// The input that the monitor has handed over, if any.
fn take(word: Word, terminal: &Terminal) -> io::Result<Option<Input>> {
    match word {
        Word::Terminal(master) => {
            let master = streams::writer(master)?;
            terminal.arrive(Arc::clone(&master));
            Ok(Some(Input::new(master)))
        }
        Word::Input(stdin) => Ok(Some(Input::new(streams::writer(stdin)?))),
        Word::NoInput | Word::CutOff | Word::Closed => Ok(None),
    }
}

/// Waits for the container's input, and moves there what the client has sent meanwhile and sends later.
async fn bring(control: Shared, introduced: CancellationToken, terminal: Terminal, from: Option<pipe::Receiver>) {
    let input = match hear(&control).await {
        Ok(word) => take(word, &terminal),
        Err(error) => Err(error),
    };
    introduced.cancel();
    match (input, from) {
        (Ok(Some(mut input)), Some(mut from)) => {
            // A process that reads no more: what is left is lost, as in any pipe.
            let _ = tokio::io::copy(&mut from, &mut input).await;
        }
        (Err(error), _) => tracing::warn!(%error, "take over a container's input"),
        _ => {}
    }
}

async fn hear(control: &Shared) -> io::Result<Word> {
    loop {
        let mut ready = control.readable().await?;
        if let Ok(word) = ready.try_io(|control| passing::hear(control.get_ref().as_fd())) {
            return word;
        }
    }
}

impl Attached {
    pub async fn wait(&mut self) -> Result<i32> {
        loop {
            let ends_at = self.ends_at;
            let aftermath = async {
                if let Some(at) = ends_at {
                    return tokio::time::sleep_until(at).await;
                }
                std::future::pending().await
            };
            let word = async {
                self.introduced.cancelled().await;
                hear(&self.control).await
            };
            tokio::select! {
                ended = self.record.wait_for(|record| has_ended(record)) => {
                    let exit = ended.ok().and_then(|record| record.exit.clone());
                    let id = &self.container.id;
                    return exit
                        .map(|exit| exit.code)
                        .ok_or_else(|| Error::State(format!("container {id} was removed before it was started")));
                }
                word = word, if !self.silent => match word {
                    Ok(Word::CutOff) => return Err(Error::State(format!(
                        "the client did not read what container {} writes, and was cut off so that it does not hold \
                         the container up",
                        self.container.id
                    ))),
                    Ok(_) => self.silent = true,
                    Err(error) => return Err(self.container.io("hear of a client")(error)),
                },
                () = self.stdin_ended.cancelled(), if ends_at.is_none() => {
                    self.ends_at = Some(Instant::now() + AFTERMATH);
                }
                () = aftermath => {
                    // The monitor closes the streams in its turn.
                    let _ = shutdown(self.control.get_ref().as_raw_fd(), Shutdown::Write);
                    return Ok(0);
                }
            }
        }
    }
}

fn has_ended(record: &record::Container) -> bool {
    record.exit.is_some() || record.state() == ContainerState::ContainerRemoving
}
