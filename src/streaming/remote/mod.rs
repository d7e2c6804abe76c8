//! Exec and attach: the client's streams on one side, a session of the node on the other, whatever the protocol.
//!
//! `session.rs` moves the bytes; `spdy.rs` and `channels.rs` get the streams out of their protocols; `status.rs` is how
//! it ends, `size.rs` the terminal's size.

mod channels;
mod session;
mod size;
mod spdy;
mod status;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
pub use channels::channels;
pub use spdy::spdy;

use crate::streaming::{
    inbox::{Broken, Inbox},
    spdy::Stream,
    websocket::Outlet,
};

/// How long the client is given to close the connection itself once it has everything. Closing it before would cost
/// some clients what they have not read yet.
const LINGER: Duration = Duration::from_secs(5);

/// Where a client's bytes come from.
#[derive(Clone)]
enum Reader {
    Spdy(Arc<Stream>),
    Channel(Arc<Inbox>),
}

impl Reader {
    async fn read(&self) -> Result<Option<Bytes>, Broken> {
        match self {
            Self::Spdy(stream) => stream.read().await,
            Self::Channel(inbox) => inbox.read().await,
        }
    }

    fn discard(&self) {
        match self {
            Self::Spdy(stream) => stream.discard(),
            Self::Channel(inbox) => inbox.discard(),
        }
    }
}

/// Reads sizes of a terminal until no more come, for a fuzz target.
#[cfg(any(fuzzing, test))]
pub async fn fuzz_sizes(inbox: Arc<Inbox>) {
    size::Sizes::new(Some(Reader::Channel(inbox))).all().await;
}

/// Where bytes for a client go.
#[derive(Clone)]
enum Writer {
    Spdy(Arc<Stream>),
    Channel(Outlet),
}

impl Writer {
    async fn write(&self, data: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Spdy(stream) => stream.write(data).await,
            Self::Channel(outlet) => outlet.write(data).await,
        }
    }

    async fn finish(&self) -> std::io::Result<()> {
        match self {
            Self::Spdy(stream) => stream.finish().await,
            // Ended by the status that follows.
            Self::Channel(_) => Ok(()),
        }
    }
}

/// The streams of one client.
struct Streams {
    stdin: Option<Reader>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    resize: Option<Reader>,
    error: Writer,
    /// The outcome is told in JSON.
    json: bool,
}

impl Streams {
    /// Says over WebSocket, by an empty message, that the session stands: older clients wait for it, and one that
    /// attaches before it starts the container must know that nothing will be missed.
    async fn greet(&self) -> std::io::Result<()> {
        match self.stdout.as_ref().or(self.stderr.as_ref()).unwrap_or(&self.error) {
            first @ Writer::Channel(_) => first.write(&[]).await,
            Writer::Spdy(_) => Ok(()),
        }
    }
}
