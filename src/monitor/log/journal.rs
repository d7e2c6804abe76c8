//! Copies of log lines for systemd's journal, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

use std::{
    io::{self, Write as _},
    os::unix::net::UnixDatagram,
};

/// Where the journal takes entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Priorities of syslog(3).
const INFO: &str = "6";
const ERROR: &str = "3";

/// A way to the journal, for one container.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    /// Fields of every entry, as the protocol has them.
    fields: Vec<u8>,
    entry: Vec<u8>,
}

impl Journal {
    /// Entries with `fields`, which are lines `NAME=value`. The journal may come and go.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub fn new(fields: Vec<u8>) -> io::Result<Journal> {
        let socket = UnixDatagram::unbound()?;
        // A journal that does not keep up costs entries and no time.
        socket.set_nonblocking(true)?;
        Ok(Journal {
            socket,
            fields,
            entry: Vec::new(),
        })
    }

    /// Sends one line, or a part of one. False if the journal did not take it.
    pub fn send(&mut self, stream: &str, full: bool, content: [&[u8]; 2]) -> bool {
        let entry = &mut self.entry;
        entry.clear();
        entry.extend_from_slice(&self.fields);
        let priority = if stream == "stderr" { ERROR } else { INFO };
        let partial = if full { "" } else { "CONTAINER_PARTIAL_MESSAGE=true\n" };
        // Writing to memory can't fail.
        let _ = write!(entry, "PRIORITY={priority}\n{partial}MESSAGE\n");
        entry.extend_from_slice(&((content[0].len() + content[1].len()) as u64).to_le_bytes());
        entry.extend_from_slice(content[0]);
        entry.extend_from_slice(content[1]);
        entry.push(b'\n');
        self.socket.send_to(entry, SOCKET).is_ok()
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.entry = Vec::new();
    }
}
