//! Frames on the wire.

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};

use crate::streaming::{Ended, outgoing::Outgoing, transport::Source};

/// Longest head of a frame that a server writes.
pub const HEAD: usize = 10;
/// Longest payload of a control frame (section 5.5).
const CONTROL_LIMIT: u64 = 125;

/// What a frame of ours carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Text = 1,
    Binary = 2,
    Pong = 10,
}

/// Why a connection is closed (section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Close {
    Normal = 1000,
    GoingAway = 1001,
    Protocol = 1002,
}

/// The head of a whole, unmasked message of `length` bytes, and how long the head is.
#[must_use]
pub fn head(opcode: Opcode, length: usize) -> ([u8; HEAD], usize) {
    let mut head = [0; HEAD];
    head[0] = 0x80 | opcode as u8;
    let [.., c, d] = (length as u64).to_be_bytes();
    match length {
        0..=125 => {
            head[1] = d;
            (head, 2)
        }
        126..=0xffff => {
            head[1..4].copy_from_slice(&[126, c, d]);
            (head, 4)
        }
        _ => {
            head[1] = 127;
            head[2..].copy_from_slice(&(length as u64).to_be_bytes());
            (head, 10)
        }
    }
}

/// A whole close frame.
#[must_use]
fn close(why: Close) -> [u8; 4] {
    let [a, b] = (why as u16).to_be_bytes();
    [0x88, 2, a, b]
}

/// Part of a message.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Text or binary.
    pub text: bool,
    /// The message begins with it.
    pub first: bool,
    /// The message ends with it.
    pub last: bool,
    pub data: BytesMut,
}

/// Reads a client's messages and answers its control frames.
pub struct Messages {
    source: Source,
    outgoing: Arc<Outgoing>,
    frame: Option<Frame>,
    /// The kind of the message whose frames are coming.
    message: Option<bool>,
    /// Nothing of the message was handed out.
    first: bool,
    /// We have sent a close frame.
    closed: bool,
}

/// A frame whose payload has not come wholly.
struct Frame {
    fin: bool,
    mask: [u8; 4],
    left: u64,
}

impl Messages {
    pub fn new(source: Source, outgoing: Arc<Outgoing>) -> Self {
        Self {
            source,
            outgoing,
            frame: None,
            message: None,
            first: true,
            closed: false,
        }
    }

    /// Sends a close frame, once.
    pub fn close(&mut self, why: Close) {
        if !std::mem::replace(&mut self.closed, true) {
            let _ = self.outgoing.urgent_outer(&close(why));
        }
    }

    /// As [`Source::hung_up`].
    pub async fn hung_up(&self) {
        self.source.hung_up().await;
    }

    /// The next part of a message, as soon as there is one. Cancel-safe.
    ///
    /// # Errors
    /// When the client closes, breaks the rules or is gone.
    pub async fn next(&mut self) -> Result<Piece, Ended> {
        loop {
            match self.piece() {
                Ok(Some(piece)) => return Ok(piece),
                Ok(None) => {}
                Err(ended) => {
                    let why = match ended {
                        Ended::Closed => Close::Normal,
                        _ => Close::Protocol,
                    };
                    self.close(why);
                    return Err(ended);
                }
            }
            if !self.source.fill().await? {
                return Err(Ended::Closed);
            }
        }
    }

    fn piece(&mut self) -> Result<Option<Piece>, Ended> {
        loop {
            let Some(frame) = &mut self.frame else {
                if !self.begin()? {
                    return Ok(None);
                }
                continue;
            };
            let here = frame.left.min(self.source.buffer.len() as u64);
            if here == 0 && frame.left > 0 {
                return Ok(None);
            }
            let mut data = self.source.buffer.split_to(here as usize);
            frame.mask = unmask(&mut data, frame.mask);
            frame.left -= here;
            let ended = frame.left == 0;
            let last = ended && frame.fin;
            let text = self.message.unwrap_or_default();
            let first = std::mem::replace(&mut self.first, last);
            if ended {
                self.frame = None;
            }
            if last {
                self.message = None;
            }
            return Ok(Some(Piece {
                text,
                first,
                last,
                data,
            }));
        }
    }

    /// Reads the head of a data frame, and control frames before it; false when more must come.
    fn begin(&mut self) -> Result<bool, Ended> {
        loop {
            let buffer = &mut self.source.buffer;
            let &[a, b, ..] = &buffer[..] else { return Ok(false) };
            if a & 0x70 != 0 {
                return Err(Ended::WebSocket("a reserved bit that no extension gives a meaning"));
            }
            if b & 0x80 == 0 {
                return Err(Ended::WebSocket("a frame that is not masked"));
            }
            let extended = match b & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            };
            let length_end = 2 + extended;
            let Some(bytes) = buffer.get(2..length_end + 4) else {
                return Ok(false);
            };
            let (length, mask) = bytes.split_at(extended);
            let length = match extended {
                0 => u64::from(b & 0x7f),
                _ => length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            };
            let mask = [mask[0], mask[1], mask[2], mask[3]];
            let (fin, opcode) = (a & 0x80 != 0, a & 0x0f);
            if opcode & 8 == 0 {
                match (opcode, self.message) {
                    (0, Some(_)) => {}
                    (1 | 2, None) => {
                        self.message = Some(opcode == Opcode::Text as u8);
                        self.first = true;
                    }
                    _ => return Err(Ended::WebSocket("a frame out of the order of its message")),
                }
                buffer.advance(length_end + 4);
                self.frame = Some(Frame {
                    fin,
                    mask,
                    left: length,
                });
                return Ok(true);
            }
            if !fin || length > CONTROL_LIMIT {
                return Err(Ended::WebSocket("a control frame that is long or in parts"));
            }
            let whole = length_end + 4 + length as usize;
            if buffer.len() < whole {
                return Ok(false);
            }
            let mut payload = buffer.split_to(whole);
            payload.advance(length_end + 4);
            unmask(&mut payload, mask);
            self.control(opcode, &payload)?;
        }
    }

    fn control(&self, opcode: u8, payload: &[u8]) -> Result<(), Ended> {
        match opcode {
            8 => Err(Ended::Closed),
            9 => {
                let (head, length) = head(Opcode::Pong, payload.len());
                let pong = [&head[..length], payload].concat();
                Ok(self.outgoing.urgent_outer(&pong)?)
            }
            10 => Ok(()),
            _ => Err(Ended::WebSocket("a control frame of an unknown kind")),
        }
    }
}

/// Takes the mask off, and returns it as it begins for the bytes that follow.
fn unmask(data: &mut [u8], mask: [u8; 4]) -> [u8; 4] {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = data.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    rest.iter_mut()
        .zip([a, b, c, d, a, b, c, d])
        .for_each(|(byte, mask)| *byte ^= mask);
    let mut next = mask;
    next.rotate_left(rest.len() % 4);
    next
}
