//! The streaming face: the HTTP server behind the URLs that Exec, Attach and PortForward answer, over SPDY/3.1 and
//! WebSocket.
//!
//! It owns the listener, the tokens and the connections, and translates between clients' streams and the node's
//! sessions. It must never touch a mechanism, and asks `node` and `config` only.
//!
//! `server.rs` listens and owns every connection's task; `http.rs` answers requests and agrees on a protocol; `spdy/`
//! and `websocket/` are the protocols; `remote/` serves exec and attach, `forward/` port-forward, over either.

mod block;
mod forward;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod http;
mod inbox;
mod lobby;
mod outgoing;
#[cfg(test)]
mod recorded;
mod remote;
mod server;
mod spdy;
mod tls;
mod tokens;
mod transport;
mod websocket;

use std::io;

pub use server::Server;
pub use tokens::{Grant, Urls};

/// Why the server could not start, or gave no URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listener.
    #[error("listen for streams on {address}: {source}")]
    Listen {
        /// As in the configuration.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS.
    #[error("TLS for streams: {0}")]
    Tls(String),
    /// No URL is given before some are used or have expired.
    #[error("{0} streaming URLs are outstanding; use them or wait a minute")]
    TooMany(usize),
    /// The system gave no random bytes.
    #[error("no random bytes for a streaming URL")]
    Random,
}

/// Why a client's connection is at its end.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The client has closed it, in order or not.
    #[error("the client has closed the connection")]
    Closed,
    #[error("the connection is broken: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Spdy(#[from] spdy::Error),
    #[error("WebSocket: the client sent {0}")]
    WebSocket(&'static str),
    #[error("nothing has moved for too long")]
    Idle,
    #[error("the client did not open its streams in time")]
    NoStreams,
    #[error("wharf is ending")]
    Stopping,
}
