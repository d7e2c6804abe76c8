//! The least HTTP/2 with which gRPC calls can be made: with an `:authority` that no honest library would send, and without a
//! library's own work in what is timed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Result;

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// A setting: how much of an answer may be on its way.
const INITIAL_WINDOW: u8 = 4;

/// Calls a method that takes an empty message and returns the bytes of the answering message.
///
/// # Errors
/// When the server resets the stream, closes the connection, or answers without a message.
pub fn call_empty(socket: &Path, authority: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    let block = request_headers(authority, path)?;
    stream.write_all(&frame(HEADERS, 4, 1, &block))?;
    stream.write_all(&frame(DATA, 1, 1, &[0, 0, 0, 0, 0]))?;
    let mut body = Vec::new();
    loop {
        let mut header = [0; 9];
        stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        let (kind, flags, id) = (
            header[3],
            header[4],
            u32::from_be_bytes([header[5], header[6], header[7], header[8]]),
        );
        match kind {
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            DATA if id == 1 => body.extend_from_slice(&payload),
            RST_STREAM | GOAWAY => return Err(format!("the server refused: frame {kind}, payload {payload:?}").into()),
            _ => {}
        }
        if id == 1 && flags & 1 != 0 && (kind == DATA || kind == HEADERS) {
            break;
        }
    }
    body.get(5..)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| "the server answered without a message".into())
}

/// What came on a connection that the server has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Last {
    /// The bytes of the answering message, with the five that precede it.
    pub body: Vec<u8>,
    /// The answer was whole.
    pub ended: bool,
    /// The server has said that it goes.
    pub farewell: bool,
}

/// Makes a call with an encoded message, reads until the server has closed its side, and writes on for a tenth of a second, as
/// clients do that have not noticed yet.
///
/// # Errors
/// When the connection breaks, or can't be written to at its end.
pub fn last_call(socket: &Path, path: &str, message: &[u8]) -> Result<Last> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(crate::PATIENCE))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    stream.write_all(&frame(HEADERS, 4, 1, &request_headers("localhost", path)?))?;
    let length = u32::try_from(message.len())?.to_be_bytes();
    stream.write_all(&frame(DATA, 1, 1, &[&[0], length.as_slice(), message].concat()))?;
    let mut last = Last {
        body: Vec::new(),
        ended: false,
        farewell: false,
    };
    loop {
        let mut header = [0; 9];
        // Between two frames the end is welcome.
        if stream.read(&mut header[..1])? == 0 {
            break;
        }
        stream.read_exact(&mut header[1..])?;
        let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
        stream.read_exact(&mut payload)?;
        let (kind, flags) = (header[3], header[4]);
        match kind {
            SETTINGS if flags & 1 == 0 => stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
            PING if flags & 1 == 0 => stream.write_all(&frame(PING, 1, 0, &payload))?,
            DATA => last.body.extend_from_slice(&payload),
            GOAWAY => last.farewell = true,
            RST_STREAM => return Err(format!("the server reset the call: {payload:?}").into()),
            _ => {}
        }
        last.ended |= matches!(kind, DATA | HEADERS) && flags & 1 != 0;
    }
    for _ in 0..10 {
        stream.write_all(&frame(PING, 0, 0, &[7; 8]))?;
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(last)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The fields of a call's headers, each as it is.
fn request_headers(authority: &str, path: &str) -> Result<Vec<u8>> {
    // POST, http: from the table that both ends have.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "grpc-go/1.70.0"),
    ] {
        // Literal field without indexing, new name, no Huffman code.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len())?);
            block.extend_from_slice(text.as_bytes());
        }
    }
    Ok(block)
}

/// A connection for one call after another, whose answers are counted and thrown away.
pub struct Caller {
    stream: UnixStream,
    /// What was read and not looked at yet.
    held: Vec<u8>,
    next: u32,
    window: Window,
}

/// How much of an answer may be on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// All of it.
    Whole,
    /// 64 KiB, as with a client in Go at first; more is let come as soon as a quarter of it is there.
    Small,
}

const SMALL_WINDOW: u32 = 65_535;
const LARGEST_WINDOW: u32 = (1 << 31) - 1;

impl Caller {
    /// Connects and says hello.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(socket: &Path, window: Window) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        match window {
            Window::Small => hello.extend(frame(SETTINGS, 0, 0, &[])),
            Window::Whole => {
                let initial = [&[0, INITIAL_WINDOW], LARGEST_WINDOW.to_be_bytes().as_slice()].concat();
                hello.extend(frame(SETTINGS, 0, 0, &initial));
                hello.extend(window_update(0, LARGEST_WINDOW - SMALL_WINDOW));
            }
        }
        stream.write_all(&hello)?;
        Ok(Self {
            stream,
            held: Vec::with_capacity(256 << 10),
            next: 1,
            window,
        })
    }

    /// Calls a method with an encoded message. Returns how many bytes the answering message has, and how long it took from
    /// the first byte of the call to the last of the answer.
    ///
    /// # Errors
    /// When the call fails.
    pub fn call(&mut self, path: &str, message: &[u8]) -> Result<(usize, Duration)> {
        self.call_into(path, message, None)
    }

    /// The answering message, with the five bytes that precede it.
    ///
    /// # Errors
    /// When the call fails.
    pub fn fetch(&mut self, path: &str, message: &[u8]) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        self.call_into(path, message, Some(&mut body))?;
        Ok(body)
    }

    fn call_into(&mut self, path: &str, message: &[u8], mut body: Option<&mut Vec<u8>>) -> Result<(usize, Duration)> {
        let id = self.next;
        self.next += 2;
        let length = u32::try_from(message.len())?.to_be_bytes();
        let mut request = frame(HEADERS, 4, id, &request_headers("localhost", path)?);
        request.extend(frame(DATA, 1, id, &[&[0], length.as_slice(), message].concat()));
        let begun = std::time::Instant::now();
        self.stream.write_all(&request)?;
        let (mut came, mut credited, mut ended) = (0, 0, false);
        let mut buffer = vec![0; 64 << 10];
        while !ended {
            let count = self.stream.read(&mut buffer)?;
            if count == 0 {
                return Err("the server closed the connection".into());
            }
            self.held.extend_from_slice(&buffer[..count]);
            let mut at = 0;
            while let Some(header) = self.held.get(at..at + 9) {
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
                let (kind, flags) = (header[3], header[4]);
                let Some(payload) = self.held.get(at + 9..at + 9 + length) else {
                    break;
                };
                match kind {
                    SETTINGS if flags & 1 == 0 => self.stream.write_all(&frame(SETTINGS, 1, 0, &[]))?,
                    PING if flags & 1 == 0 => self.stream.write_all(&frame(PING, 1, 0, payload))?,
                    RST_STREAM | GOAWAY => return Err(format!("the server refused: frame {kind}").into()),
                    DATA => {
                        came += length;
                        if let Some(body) = &mut body {
                            body.extend_from_slice(payload);
                        }
                    }
                    _ => {}
                }
                ended |= matches!(kind, DATA | HEADERS) && flags & 1 != 0;
                at += 9 + length;
            }
            self.held.drain(..at);
            if self.window == Window::Small && !ended && came - credited >= SMALL_WINDOW as usize / 4 {
                let more = u32::try_from(came - credited)?;
                credited = came;
                let updates = [window_update(0, more), window_update(id, more)].concat();
                self.stream.write_all(&updates)?;
            }
        }
        let taken = begun.elapsed();
        let owed = u32::try_from(came - credited)?;
        if owed > 0 {
            self.stream.write_all(&window_update(0, owed))?;
        }
        // A call that fails is answered by headers alone.
        let message = came.checked_sub(5).ok_or_else(|| format!("{path} failed"))?;
        Ok((message, taken))
    }
}

fn window_update(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &more.to_be_bytes())
}
