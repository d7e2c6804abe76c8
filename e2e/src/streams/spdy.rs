//! A SPDY/3.1 client that does as Go's does: no windows, streams opened one after the other.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use crate::Result;

const DICTIONARY: &[u8] = include_bytes!("../../../src/streaming/spdy/dictionary.bin");

/// The sending side of a connection.
pub struct Sender<W> {
    pub write: W,
    zlib: Compress,
    next: u32,
}

impl<W: AsyncWrite + Unpin> Sender<W> {
    pub fn new(write: W) -> Self {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(DICTIONARY).expect("zlib takes a dictionary");
        Self { write, zlib, next: 1 }
    }

    /// Number of the stream that is opened next.
    pub fn next_number(&self) -> u32 {
        self.next
    }

    /// Opens a stream and returns its number.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(plain.len() + 256);
        self.zlib.compress_vec(&plain, &mut packed, FlushCompress::Sync)?;
        let number = self.next;
        self.next += 2;
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.append(&mut packed);
        self.control(1, &payload).await?;
        Ok(number)
    }

    /// Sends a control frame.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn control(&mut self, kind: u16, payload: &[u8]) -> Result {
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(payload);
        self.write.write_all(&frame).await?;
        Ok(self.write.flush().await?)
    }

    /// Sends data.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn data(&mut self, stream: u32, fin: bool, data: &[u8]) -> Result {
        let mut frame = stream.to_be_bytes().to_vec();
        let length = (data.len() as u32).to_be_bytes();
        frame.extend_from_slice(&[u8::from(fin), length[1], length[2], length[3]]);
        frame.extend_from_slice(data);
        self.write.write_all(&frame).await?;
        Ok(self.write.flush().await?)
    }

    /// Resets a stream.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn reset(&mut self, stream: u32) -> Result {
        let payload = [stream.to_be_bytes(), 5u32.to_be_bytes()].concat();
        self.control(3, &payload).await
    }
}

/// A frame from the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Data {
        stream: u32,
        fin: bool,
        data: Vec<u8>,
    },
    Reply {
        stream: u32,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    GoAway,
    Ping(u32),
    /// Settings and windows, which Go's clients ignore.
    Other(u16),
}

/// The receiving side of a connection.
pub struct Receiver<R> {
    read: BufReader<R>,
    zlib: Decompress,
}

impl<R: tokio::io::AsyncRead + Unpin> Receiver<R> {
    pub fn new(read: R) -> Self {
        Self {
            read: BufReader::with_capacity(256 << 10, read),
            zlib: Decompress::new(true),
        }
    }

    /// The next frame; `None` when the server has closed.
    ///
    /// # Errors
    /// When the connection is broken or what came is not SPDY.
    pub async fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 8];
        match self.read.read_exact(&mut head).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut payload = vec![0; length as usize];
        self.read.read_exact(&mut payload).await?;
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data {
                stream: word,
                fin: head[4] & 1 != 0,
                data: payload,
            }));
        }
        let number = |at: usize| -> Result<u32> {
            let bytes = payload.get(at..at + 4).ok_or("a short frame")?;
            Ok(u32::from_be_bytes(bytes.try_into()?))
        };
        Ok(Some(match word as u16 {
            2 => {
                self.headers(&payload[4..])?;
                Frame::Reply { stream: number(0)? }
            }
            3 => Frame::Reset {
                stream: number(0)?,
                status: number(4)?,
            },
            6 => Frame::Ping(number(0)?),
            7 => Frame::GoAway,
            other => Frame::Other(other),
        }))
    }

    /// Reads a header block, which is empty in every answer.
    fn headers(&mut self, packed: &[u8]) -> Result {
        let mut plain = Vec::with_capacity(4096);
        let before = self.zlib.total_in();
        if let Err(error) = self.zlib.decompress_vec(packed, &mut plain, FlushDecompress::Sync) {
            error.needs_dictionary().ok_or(error)?;
            self.zlib.set_dictionary(DICTIONARY)?;
            let rest = &packed[(self.zlib.total_in() - before) as usize..];
            self.zlib.decompress_vec(rest, &mut plain, FlushDecompress::Sync)?;
        }
        match plain.as_slice() {
            [0, 0, 0, 0] => Ok(()),
            other => Err(format!("headers of an answer: {other:?}").into()),
        }
    }
}
