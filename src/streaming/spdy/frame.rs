//! Frames on the wire, SPDY/3.1: what comes is read strictly, what goes is written plainly.

use super::{
    Error,
    headers::{Deflater, Headers, Inflater},
};

/// Bytes before every payload.
pub const HEADER: usize = 8;
/// Longest control frame that is read; header blocks are small.
const CONTROL_LIMIT: usize = 64 << 10;
/// Most entries of one SETTINGS frame.
const SETTINGS_LIMIT: usize = 64;
/// The bit of a stream number that must be zero.
const NUMBER: u32 = 0x7fff_ffff;

const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;
const INITIAL_WINDOW_SIZE: u32 = 7;

/// Why a stream was reset (section 2.4.2 of the draft).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reset {
    Protocol = 1,
    Refused = 3,
    Cancel = 5,
    InUse = 8,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Data { stream: u32, fin: bool, length: usize },
    Control { kind: u16, flags: u8, length: usize },
}

/// A whole control frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    SynStream {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    /// The initial window, where the frame names one.
    Settings {
        window: Option<u32>,
    },
    Ping(u32),
    GoAway {
        last: u32,
    },
    Headers {
        stream: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
}

/// Reads the head of a frame.
///
/// # Errors
/// When it is a control frame of another version of SPDY, or longer than any that is allowed.
pub fn head(bytes: [u8; HEADER]) -> Result<Head, Error> {
    let [a, b, c, d, flags, x, y, z] = bytes;
    let length = u32::from_be_bytes([0, x, y, z]) as usize;
    if a & 0x80 == 0 {
        let stream = u32::from_be_bytes([a, b, c, d]);
        return match stream {
            0 => Err(Error::Frame("data of stream 0")),
            _ => Ok(Head::Data {
                stream,
                fin: flags & FIN != 0,
                length,
            }),
        };
    }
    if u16::from_be_bytes([a & 0x7f, b]) != 3 {
        return Err(Error::Frame("a version that is not 3"));
    }
    if length > CONTROL_LIMIT {
        return Err(Error::Frame("a control frame that is too long"));
    }
    Ok(Head::Control {
        kind: u16::from_be_bytes([c, d]),
        flags,
        length,
    })
}

/// Reads a control frame's payload; `None` for kinds that are to be ignored.
///
/// # Errors
/// When it is not what its kind says; the connection must end then.
pub fn control(kind: u16, flags: u8, payload: &[u8], zlib: &mut Inflater) -> Result<Option<Control>, Error> {
    let fin = flags & FIN != 0;
    let control = match kind {
        SYN_STREAM => {
            let (stream, rest) = number(payload)?;
            let (_associated, rest) = number(rest)?;
            let packed = rest.get(2..).ok_or(Error::Frame("a short SYN_STREAM"))?;
            Control::SynStream {
                stream,
                fin,
                unidirectional: flags & UNIDIRECTIONAL != 0,
                headers: zlib.unpack(packed)?,
            }
        }
        SYN_REPLY => {
            let (stream, packed) = number(payload)?;
            let headers = zlib.unpack(packed)?;
            Control::SynReply { stream, fin, headers }
        }
        HEADERS => {
            let (stream, packed) = number(payload)?;
            let headers = zlib.unpack(packed)?;
            Control::Headers { stream, fin, headers }
        }
        RST_STREAM => {
            let (stream, status) = pair(payload)?;
            Control::Reset {
                stream: stream & NUMBER,
                status,
            }
        }
        SETTINGS => settings(payload)?,
        PING => match payload {
            &[a, b, c, d] => Control::Ping(u32::from_be_bytes([a, b, c, d])),
            _ => return Err(Error::Frame("a PING of another length")),
        },
        GOAWAY => {
            let (last, _status) = pair(payload)?;
            Control::GoAway { last: last & NUMBER }
        }
        WINDOW_UPDATE => {
            let (stream, delta) = pair(payload)?;
            Control::WindowUpdate {
                stream: stream & NUMBER,
                delta: delta & NUMBER,
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(control))
}

fn number(payload: &[u8]) -> Result<(u32, &[u8]), Error> {
    let (head, rest) = payload.split_first_chunk().ok_or(Error::Frame("a short frame"))?;
    Ok((u32::from_be_bytes(*head) & NUMBER, rest))
}

fn pair(payload: &[u8]) -> Result<(u32, u32), Error> {
    match payload {
        &[a, b, c, d, e, f, g, h] => Ok((u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))),
        _ => Err(Error::Frame("a frame of another length than its kind has")),
    }
}

fn settings(payload: &[u8]) -> Result<Control, Error> {
    let (count, entries) = number(payload)?;
    let (entries, rest) = entries.as_chunks::<8>();
    if count as usize != entries.len() || !rest.is_empty() || entries.len() > SETTINGS_LIMIT {
        return Err(Error::Frame("a SETTINGS of another length than it says"));
    }
    let window = entries
        .iter()
        .filter(|&&[_, a, b, c, ..]| u32::from_be_bytes([0, a, b, c]) == INITIAL_WINDOW_SIZE)
        .map(|&[.., d, e, f, g]| u32::from_be_bytes([d, e, f, g]) & NUMBER)
        .next_back();
    Ok(Control::Settings { window })
}

/// The eight bytes before `length` bytes of data.
#[must_use]
pub fn data(stream: u32, fin: bool, length: usize) -> [u8; HEADER] {
    let [a, b, c, d] = (stream & NUMBER).to_be_bytes();
    let [_, x, y, z] = (length as u32).to_be_bytes();
    [a, b, c, d, u8::from(fin), x, y, z]
}

fn put(out: &mut Vec<u8>, kind: u16, flags: u8, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    let [_, x, y, z] = (length as u32).to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    out.extend_from_slice(&[0x80, 3, c, d, flags, x, y, z]);
    payload.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends a SYN_REPLY.
pub fn syn_reply(out: &mut Vec<u8>, stream: u32, zlib: &mut Deflater) -> Result<(), Error> {
    let packed = zlib.pack(&Headers::default())?;
    put(out, SYN_REPLY, 0, &[&stream.to_be_bytes(), &packed]);
    Ok(())
}

/// Appends a RST_STREAM.
pub fn reset(out: &mut Vec<u8>, stream: u32, why: Reset) {
    put(
        out,
        RST_STREAM,
        0,
        &[&stream.to_be_bytes(), &(why as u32).to_be_bytes()],
    );
}

/// Appends a SETTINGS that names the initial window.
pub fn initial_window(out: &mut Vec<u8>, window: u32) {
    let key = INITIAL_WINDOW_SIZE.to_be_bytes();
    put(out, SETTINGS, 0, &[&1u32.to_be_bytes(), &key, &window.to_be_bytes()]);
}

/// Appends a PING.
pub fn ping(out: &mut Vec<u8>, id: u32) {
    put(out, PING, 0, &[&id.to_be_bytes()]);
}

/// Appends a GOAWAY without an error.
pub fn go_away(out: &mut Vec<u8>, last: u32) {
    put(out, GOAWAY, 0, &[&last.to_be_bytes(), &[0; 4]]);
}

/// Appends a WINDOW_UPDATE; stream 0 is the connection.
pub fn window_update(out: &mut Vec<u8>, stream: u32, delta: u32) {
    put(out, WINDOW_UPDATE, 0, &[&stream.to_be_bytes(), &delta.to_be_bytes()]);
}

/// Appends a SYN_STREAM, as clients do.
#[cfg(test)]
pub fn syn_stream(out: &mut Vec<u8>, stream: u32, headers: &Headers, zlib: &mut Deflater) {
    let packed = zlib.pack(headers).expect("headers are compressible");
    put(out, SYN_STREAM, 0, &[&stream.to_be_bytes(), &[0; 6], &packed]);
}
