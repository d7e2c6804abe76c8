//! The least HTTP/2 with which a gRPC call can be made whose `:authority` no honest library would send.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Result;

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const SETTINGS: u8 = 4;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;

/// Calls a method that takes an empty message and returns the bytes of the answering message.
///
/// # Errors
/// When the server resets the stream, closes the connection, or answers without a message.
pub fn call_empty(socket: &Path, authority: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
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

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
