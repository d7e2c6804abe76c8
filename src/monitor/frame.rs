//! Frames: a 32-bit little-endian length, then one message.

use prost::Message;

/// Longest frame that either side accepts, bytes.
pub const MAX_FRAME: usize = 4 << 20;

/// Bytes of the length in front of each message.
pub const HEADER: usize = 4;

/// A frame that can't be one: the connection is of no use any more.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The announced length is above [`MAX_FRAME`].
    #[error("frame of {0} bytes")]
    TooLong(usize),
    /// The message does not decode.
    #[error("message: {0}")]
    Message(#[from] prost::DecodeError),
}

/// Appends `message` as a frame to `out`.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) {
    let length = message.encoded_len();
    out.reserve(HEADER + length);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    message.encode_raw(out);
}

/// Puts frames together from what a socket gives. It asks for no byte beyond the current frame, so that descriptors
/// that arrive with a read belong to the frame being read.
#[derive(Debug, Default)]
pub struct Assembler {
    buffer: Vec<u8>,
    /// Length of the message once the header is complete.
    length: Option<usize>,
}

/// Most bytes asked for at once: a hostile length must not cost memory before its bytes arrive.
const STEP: usize = 64 << 10;

impl Assembler {
    /// How many bytes to read next; never 0.
    #[must_use]
    pub fn wanted(&self) -> usize {
        match self.length {
            None => HEADER - self.buffer.len(),
            Some(length) => (length - self.buffer.len()).min(STEP),
        }
    }

    /// Takes bytes, at most [`Self::wanted`] of them. Gives the message when they complete it.
    ///
    /// # Errors
    /// When this is not the protocol.
    pub fn push<M: Message + Default>(&mut self, bytes: &[u8]) -> Result<Option<M>, Malformed> {
        self.buffer.extend_from_slice(bytes);
        if self.length.is_none() {
            let Ok(header) = <[u8; HEADER]>::try_from(self.buffer.as_slice()) else {
                return Ok(None);
            };
            let length = usize::try_from(u32::from_le_bytes(header)).unwrap_or(usize::MAX);
            if length > MAX_FRAME {
                return Err(Malformed::TooLong(length));
            }
            self.buffer.clear();
            self.length = Some(length);
        }
        if self.length != Some(self.buffer.len()) {
            return Ok(None);
        }
        self.length = None;
        let message = M::decode(self.buffer.as_slice());
        self.buffer = Vec::new();
        Ok(Some(message?))
    }
}

#[cfg(test)]
mod tests {
    use wharf_proto::monitor::{Kill, Reply, Request, request::Op};

    use super::*;

    fn kill(id: u64) -> Request {
        Request {
            id,
            op: Some(Op::Kill(Kill {
                container_id: "c".repeat(300),
                signal: 9,
                all: true,
            })),
        }
    }

    #[test]
    fn frames_come_back_whatever_the_size_of_the_pieces() {
        let mut bytes = Vec::new();
        for id in 1..=3 {
            encode(&kill(id), &mut bytes);
        }
        for piece in [1, 2, 3, 5, 64, 4096] {
            let mut assembler = Assembler::default();
            let (mut at, mut seen) = (0, Vec::new());
            while at < bytes.len() {
                let n = assembler.wanted().min(piece).min(bytes.len() - at);
                if let Some(message) = assembler.push::<Request>(&bytes[at..at + n]).unwrap() {
                    seen.push(message);
                }
                at += n;
            }
            assert_eq!(seen, [kill(1), kill(2), kill(3)], "pieces of {piece} bytes");
        }
    }

    #[test]
    fn an_empty_message_is_a_frame() {
        let mut bytes = Vec::new();
        encode(&Reply::default(), &mut bytes);
        assert_eq!(Assembler::default().push::<Reply>(&bytes), Ok(Some(Reply::default())));
    }

    #[test]
    fn a_hostile_length_is_refused_before_memory_is_taken() {
        let mut assembler = Assembler::default();
        assert_eq!(
            assembler.push::<Request>(&u32::MAX.to_le_bytes()),
            Err(Malformed::TooLong(u32::MAX as usize))
        );
        let mut assembler = Assembler::default();
        let longest = u32::try_from(MAX_FRAME).unwrap();
        assert_eq!(assembler.push::<Request>(&longest.to_le_bytes()), Ok(None));
        assert!(assembler.wanted() <= STEP && assembler.buffer.capacity() <= STEP);
    }

    #[test]
    fn garbage_is_an_error_and_not_a_panic() {
        let mut assembler = Assembler::default();
        assembler.push::<Request>(&3u32.to_le_bytes()).unwrap();
        assert!(matches!(
            assembler.push::<Request>(&[0xff; 3]),
            Err(Malformed::Message(_))
        ));
    }
}
