//! WebSocket (RFC 6455), the server's side, without extensions. Messages are handed on piece by piece as they come, so
//! that a message of any length needs no memory, and are written from where their bytes lie: the reasons for not using
//! a library, which collects and copies each.
//!
//! `frame.rs` is the bytes; `channels.rs` the streams that Kubernetes numbers by a message's first byte; `tunnel.rs`
//! carries SPDY.

mod channels;
mod frame;
mod handshake;
#[cfg(test)]
mod tests;
mod tunnel;

pub use channels::{Channels, Form, Outlet};
pub use frame::{Close, HEAD, Messages, Opcode, head};
pub use handshake::{accept_key, offered};
pub use tunnel::Feed;
