//! Bytes and messages: ttrpc's frames, and around them those that let two connections share one socket.
//!
//! The socket carries frames of the multiplexer: a connection's number and a length, each 4 bytes, big-endian, then so
//! many bytes of that connection. Within a connection lie ttrpc's messages, a header of 10 bytes (length, stream, type,
//! flags) and their content. A frame may end anywhere in a message, and need not hold a whole one.

use bytes::{Buf as _, Bytes, BytesMut};

/// The connection on which the plugin serves and the daemon asks.
pub const PLUGIN: u32 = 1;
/// The connection on which the daemon serves and the plugin asks.
pub const RUNTIME: u32 = 2;

/// Largest content of a message (ttrpc's own limit), bytes.
pub const LARGEST: usize = 4 << 20;

/// Length, stream, type, flags.
const HEADER: usize = 10;

/// Connection, length.
const OUTER: usize = 8;

/// Go's plugins read through a buffer of so many bytes, and give up when a frame that begins a message is longer.
const FIRST: usize = 4096;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Asks.
    Request,
    /// Answers.
    Response,
    /// More of a stream, which NRI does not use.
    Data,
}

/// One message of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// [`PLUGIN`] or [`RUNTIME`].
    pub connection: u32,
    /// Which request it belongs to; odd, as clients begin them.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// ttrpc's flags, which only streams need.
    pub flags: u8,
    /// Its content.
    pub content: Bytes,
}

/// What is not the protocol. The socket can't be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Longer than anything may be.
    #[error("{what} of {length} bytes, at most {most} are allowed")]
    TooLong {
        /// A frame or a message.
        what: &'static str,
        /// Bytes.
        length: usize,
        /// Bytes.
        most: usize,
    },
    /// ttrpc knows no such message.
    #[error("a message of the unknown type {0}")]
    Type(u8),
}

/// Takes messages out of what has been read from the socket. Holds at most one message of each connection and one reading.
#[derive(Debug, Default)]
pub struct Decoder {
    read: BytesMut,
    /// Whose bytes come, and how many more.
    open: Option<(u32, usize)>,
    /// What has come of the two connections.
    parts: [BytesMut; 2],
}

impl Decoder {
    /// Where to put what is read from the socket.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.read
    }

    /// The next whole message; none when more must be read.
    ///
    /// # Errors
    /// For what is not the protocol.
    pub fn next(&mut self) -> Result<Option<Frame>, Fault> {
        loop {
            for (connection, part) in [PLUGIN, RUNTIME].into_iter().zip(&mut self.parts) {
                if let Some(frame) = message(connection, part)? {
                    return Ok(Some(frame));
                }
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Moves bytes to where they belong; false when there are none.
    fn advance(&mut self) -> Result<bool, Fault> {
        let (connection, left) = match self.open {
            Some(open) => open,
            None if self.read.len() < OUTER => return Ok(false),
            None => {
                let (connection, length) = (self.read.get_u32(), self.read.get_u32() as usize);
                let most = HEADER + LARGEST;
                if length > most {
                    return Err(Fault::TooLong {
                        what: "a frame",
                        length,
                        most,
                    });
                }
                (connection, length)
            }
        };
        let taken = self.read.split_to(left.min(self.read.len()));
        self.open = Some((connection, left - taken.len())).filter(|(_, left)| *left > 0);
        match connection {
            PLUGIN => self.parts[0].extend_from_slice(&taken),
            RUNTIME => self.parts[1].extend_from_slice(&taken),
            // For a connection that a later version of the protocol may have.
            _ => {}
        }
        Ok(self.open.is_none() || !taken.is_empty())
    }
}

fn message(connection: u32, part: &mut BytesMut) -> Result<Option<Frame>, Fault> {
    let Some(mut header) = part.get(..HEADER) else {
        return Ok(None);
    };
    let (length, stream) = (header.get_u32() as usize, header.get_u32());
    let (kind, flags) = (header.get_u8(), header.get_u8());
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Response,
        3 => Kind::Data,
        other => return Err(Fault::Type(other)),
    };
    if length > LARGEST {
        return Err(Fault::TooLong {
            what: "a message",
            length,
            most: LARGEST,
        });
    }
    if part.len() < HEADER + length {
        return Ok(None);
    }
    part.advance(HEADER);
    Ok(Some(Frame {
        connection,
        stream,
        kind,
        flags,
        content: part.split_to(length).freeze(),
    }))
}

/// A message as it goes over the socket.
///
/// # Errors
/// When it is too long.
pub fn encode(connection: u32, stream: u32, kind: Kind, content: &[u8]) -> Result<Vec<u8>, Fault> {
    let length = content.len();
    if length > LARGEST {
        return Err(Fault::TooLong {
            what: "a message",
            length,
            most: LARGEST,
        });
    }
    let first = length.min(FIRST - HEADER);
    let mut out = Vec::with_capacity(length + HEADER + 2 * OUTER);
    let outer = |out: &mut Vec<u8>, length: usize| {
        out.extend_from_slice(&connection.to_be_bytes());
        // Less than 2^23, see above.
        out.extend_from_slice(&(length as u32).to_be_bytes());
    };
    outer(&mut out, HEADER + first);
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&stream.to_be_bytes());
    let kind = match kind {
        Kind::Request => 1,
        Kind::Response => 2,
        Kind::Data => 3,
    };
    out.extend_from_slice(&[kind, 0]);
    out.extend_from_slice(&content[..first]);
    if first < length {
        outer(&mut out, length - first);
        out.extend_from_slice(&content[first..]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Everything in `bytes`, read in pieces of `size`.
    fn decode(bytes: &[u8], size: usize) -> Result<Vec<Frame>, Fault> {
        let (mut decoder, mut out) = (Decoder::default(), Vec::new());
        for piece in bytes.chunks(size.max(1)) {
            decoder.buffer().extend_from_slice(piece);
            while let Some(frame) = decoder.next()? {
                out.push(frame);
            }
            let held: usize = decoder.parts.iter().map(BytesMut::len).sum();
            assert!(held <= 2 * (LARGEST + HEADER) + piece.len(), "holds {held} bytes");
        }
        Ok(out)
    }

    #[test]
    fn a_message_begins_with_a_frame_that_go_can_read() {
        let content = vec![7; 10_000];
        let bytes = encode(RUNTIME, 3, Kind::Response, &content).unwrap();
        assert_eq!(bytes[..8], [0, 0, 0, 2, 0, 0, 0x10, 0]);
        assert_eq!(bytes[8..18], [0, 0, 0x27, 0x10, 0, 0, 0, 3, 2, 0]);
        let rest = &bytes[8 + FIRST..];
        assert_eq!(rest[..8], [0, 0, 0, 2, 0, 0, 0x17, 0x1a]);
        assert_eq!(rest.len() - 8, 10_000 + HEADER - FIRST);
    }

    #[test]
    fn what_is_too_long_or_unknown_is_refused_before_it_is_kept() {
        let frame = [0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(decode(&frame, 8), Err(Fault::TooLong { what: "a frame", .. })));
        let message = [0, 0, 0, 1, 0, 0, 0, 10, 1, 0, 0, 0, 0, 0, 0, 1, 1, 0];
        assert!(matches!(
            decode(&message, 3),
            Err(Fault::TooLong { what: "a message", .. })
        ));
        let kind = [0, 0, 0, 1, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0];
        assert_eq!(decode(&kind, 18), Err(Fault::Type(9)));
        assert!(encode(PLUGIN, 1, Kind::Request, &vec![0; LARGEST + 1]).is_err());
    }

    #[test]
    fn other_connections_are_skipped() {
        let mut bytes = vec![0, 0, 0, 9, 0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 9, 0, 0, 0, 0];
        bytes.extend(encode(PLUGIN, 5, Kind::Request, b"x").unwrap());
        let frames = decode(&bytes, 1).unwrap();
        assert_eq!(frames.len(), 1);
        assert_eq!((frames[0].stream, &frames[0].content[..]), (5, &b"x"[..]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_cut(
            messages in proptest::collection::vec((1u32..3, any::<u32>(), 0usize..9000), 0..5),
            size in 1usize..5000,
        ) {
            let mut bytes = Vec::new();
            for (connection, stream, length) in &messages {
                let content = vec![*stream as u8; *length];
                bytes.extend(encode(*connection, *stream, Kind::Request, &content).unwrap());
            }
            let mut read: Vec<_> = decode(&bytes, size).unwrap().into_iter()
                .map(|frame| (frame.connection, frame.stream, frame.content.len())).collect();
            let mut written = messages;
            // Order holds within a connection only.
            read.sort_by_key(|(connection, ..)| *connection);
            written.sort_by_key(|(connection, ..)| *connection);
            prop_assert_eq!(read, written);
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1usize..64) {
            let _ = decode(&bytes, size);
        }

        #[test]
        fn nor_do_damaged_messages(at in 0usize..60, with in any::<u8>(), size in 1usize..64) {
            let mut bytes = encode(PLUGIN, 1, Kind::Response, &[1; 20]).unwrap();
            bytes.extend(encode(RUNTIME, 3, Kind::Request, &[2; 5]).unwrap());
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = decode(&bytes, size);
        }
    }
}
