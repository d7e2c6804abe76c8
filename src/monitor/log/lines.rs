//! From a stream of bytes to log lines.

use super::{Log, Stamp};

/// Where a stream stands in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between two lines.
    Between,
    /// Parts of the line are in the log already.
    Within,
    /// The rest of the line is left out.
    LeftOut,
}

/// Cuts one output stream of a container into log lines.
#[derive(Debug)]
pub struct Lines {
    /// `stdout` or `stderr`.
    stream: &'static str,
    limit: usize,
    /// The beginning of a line whose end has not come; at most `limit` bytes.
    partial: Vec<u8>,
    place: Place,
}

impl Lines {
    /// Lines of `stream`, split at `limit` bytes (above 0).
    #[must_use]
    pub fn new(stream: &'static str, limit: usize) -> Lines {
        Lines {
            stream,
            limit,
            partial: Vec::new(),
            place: Place::Between,
        }
    }

    /// Takes output and hands the lines in it to `log`.
    pub fn push(&mut self, mut input: &[u8], stamp: Stamp, log: &mut Log) {
        log.counters.bytes_in += input.len() as u64;
        while !input.is_empty() {
            let room = self.limit - self.partial.len();
            let reach = &input[..input.len().min(room + 1)];
            let (line, full, used) = match reach.iter().position(|&b| b == b'\n') {
                Some(at) => (&input[..at], true, at + 1),
                None if input.len() > room => (&input[..room], false, room),
                None => {
                    self.partial.extend_from_slice(input);
                    return;
                }
            };
            self.emit(line, full, stamp, log);
            input = &input[used..];
        }
    }

    /// The stream has ended: an unterminated line goes out as a partial one.
    pub fn end(&mut self, stamp: Stamp, log: &mut Log) {
        if !self.partial.is_empty() {
            self.emit(b"", false, stamp, log);
        }
        if let Some(notice) = log.take_notice() {
            log.line(stamp, self.stream, true, [notice.as_bytes(), b""]);
        }
        self.partial = Vec::new();
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.partial.shrink_to_fit();
    }

    /// Hands a line, or a part of one, to the log, or leaves it out if the log takes no more. A line is left out as a
    /// whole or from some part on; it is then ended, so that no reader joins what does not belong together.
    fn emit(&mut self, line: &[u8], full: bool, stamp: Stamp, log: &mut Log) {
        let length = self.partial.len() + line.len();
        let (mut place, within) = (self.place, self.place == Place::Within);
        if place != Place::LeftOut {
            if log.admits(stamp, length) {
                if !within && let Some(notice) = log.take_notice() {
                    log.line(stamp, self.stream, true, [notice.as_bytes(), b""]);
                }
                log.line(stamp, self.stream, full, [&self.partial, line]);
                place = Place::Within;
            } else {
                if within {
                    log.line(stamp, self.stream, true, [b"", b""]);
                }
                log.leave_out();
                place = Place::LeftOut;
            }
        }
        self.place = if full { Place::Between } else { place };
        self.partial.clear();
    }
}
