//! Signals that this process gets, and what they mean for a container in the foreground.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::Code;
use wharf_proto::api;

use crate::cli::client::{Client, Owner};
use crate::cli::error::{Error, Result};
use crate::cli::stop::GRACE;

/// Those that a person or a supervisor sends.
const NUMBERS: [i32; 6] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Watched signals: they do not end this process any more.
pub struct Signals(Vec<(i32, Signal)>);

impl Signals {
    /// # Errors
    /// When they can't be watched.
    pub fn new() -> Result<Self> {
        let watch = |number| {
            signal(SignalKind::from_raw(number))
                .map(|signal| (number, signal))
                .map_err(|source| Error::new(format!("watch for signals: {source}")))
        };
        NUMBERS.into_iter().map(watch).collect::<Result<_>>().map(Self)
    }

    /// The next one's number. Cancel-safe.
    pub async fn next(&mut self) -> i32 {
        std::future::poll_fn(|context| {
            for (number, signal) in &mut self.0 {
                if signal.poll_recv(context).is_ready() {
                    return std::task::Poll::Ready(*number);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Passes signals on to a container.
pub struct Proxy<'a> {
    pub client: &'a Client,
    pub id: &'a str,
    pub name: &'a str,
}

impl Proxy<'_> {
    /// Waits for `work` while signals go to the container. Who sends SIGINT or SIGTERM again gets it stopped, a third
    /// time killed, and a fourth time is let go: the number of that signal is then the error.
    pub async fn during<T>(&self, work: impl Future<Output = T>, signals: &mut Signals) -> std::result::Result<T, i32> {
        let mut work = std::pin::pin!(work);
        let mut sent = FuturesUnordered::new();
        let mut presses = 0;
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                number = signals.next() => {
                    presses += i32::from(matches!(number, libc::SIGINT | libc::SIGTERM));
                    if presses > 3 {
                        return Err(number);
                    }
                    sent.push(self.act(number, presses));
                }
                Some(result) = sent.next(), if !sent.is_empty() => {
                    let result: Result<()> = result;
                    if let Err(problem) = result {
                        let _ = problem.report();
                    }
                }
            }
        }
    }

    async fn act(&self, number: i32, presses: i32) -> Result<()> {
        match (number, presses) {
            (libc::SIGINT | libc::SIGTERM, 2) => self.client.stop_container(self.id, self.name, GRACE).await,
            (libc::SIGINT | libc::SIGTERM, 3) => self.client.stop_container(self.id, self.name, Duration::ZERO).await,
            _ => self.send(number).await,
        }
    }

    async fn send(&self, number: i32) -> Result<()> {
        let message = api::SignalContainerRequest {
            container_id: self.id.to_owned(),
            signal: number,
        };
        let request = self.client.request(message, Owner::All, self.client.timeout());
        match self.client.wharf().signal_container(request).await {
            Ok(_) => Ok(()),
            // It has just ended.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::NotFound) => Ok(()),
            // CRI can't send a signal; it can stop.
            Err(status) if status.code() == Code::Unimplemented => {
                self.client.stop_container(self.id, self.name, GRACE).await
            }
            Err(status) => Err(self
                .client
                .error(&format!("send a signal to container {}", self.name), &status)),
        }
    }
}
