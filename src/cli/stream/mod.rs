//! Streams to a container: what the URLs of CRI's Exec, Attach and PortForward lead to, over WebSocket.
//!
//! `connect.rs` opens a connection, `relay.rs` joins it with this process's stdin, stdout and stderr, `terminal.rs` and
//! `keys.rs` are the person's end of it.

mod connect;
mod keys;
mod relay;
mod signals;
mod status;
mod terminal;
mod tls;

pub use connect::{Socket, connect};
pub use keys::Keys;
pub use relay::{End, Relay};
pub use signals::{Proxy, Signals};
pub use status::Ended;
pub use terminal::stdin_is_terminal;

/// Numbers of the streams in a message's first byte, as Kubernetes has them.
pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const RESIZE: u8 = 4;
/// Since v5: the sender ends the stream whose number follows.
pub const CLOSE: u8 = 255;
