//! SPDY/3.1 as Kubernetes' clients speak it: a connection carries streams that the client opens, each with headers,
//! data in both directions, half-close and reset.
//!
//! `frame.rs` and `headers.rs` are the bytes; `connection.rs` reads a connection and hands its streams out;
//! `stream.rs` is one of them. Nothing here knows what the streams are for.

mod connection;
mod frame;
mod headers;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Incoming, connection};
pub use stream::Stream;

/// What a peer did that SPDY forbids, or that is more than is allowed. The connection ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A frame.
    #[error("SPDY: the client sent {0}")]
    Frame(&'static str),
    /// A header block.
    #[error("SPDY: the client's headers are wrong: {0}")]
    Headers(&'static str),
}
