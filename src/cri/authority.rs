//! Makes the `:authority` of Go's gRPC clients acceptable.
//!
//! For a unix socket grpc-go sends the URL-encoded path, `%2Frun%2Fwharf.sock`, and in older versions (as in crictl 1.24)
//! the path as it is. Neither percent signs nor slashes may stand in an authority, so that h2 resets the stream
//! before anything of ours sees the request. Nothing here needs the authority, so each of them is overwritten by a hyphen
//! as the bytes come in. All three are coded in six bits by HPACK's Huffman code, and in one byte without it: no length
//! changes, and both ends' dynamic tables stay equal.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::Connected;

/// Length of HTTP/2's client preface.
const PREFACE: usize = 24;
/// Length of a frame's header.
const FRAME_HEAD: usize = 9;
/// Type of the frame with a request's header fields.
const HEADERS: u8 = 1;
/// Flags of such a frame.
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Longest frame that h2 accepts unless it says otherwise; a longer one is handed on as it is.
const LONGEST: usize = 16384;
/// Index of `:authority` in HPACK's static table.
const AUTHORITY: usize = 1;

/// A connection whose incoming header fields are looked at.
#[derive(Debug)]
pub struct Lenient<S = UnixStream> {
    inner: BufReader<S>,
    /// Bytes held back until they are complete.
    held: Vec<u8>,
    /// How many bytes `held` must have.
    wanted: usize,
    /// How many of `held` have been handed on; as many as there are once it is complete.
    handed: usize,
    /// Bytes that pass unseen: the rest of a frame.
    unseen: usize,
    started: bool,
}

impl<S: AsyncRead> Lenient<S> {
    /// Wraps a connection of which nothing has been read.
    pub fn new(inner: S) -> Self {
        Self {
            inner: BufReader::new(inner),
            held: Vec::with_capacity(64),
            wanted: PREFACE,
            handed: 0,
            unseen: 0,
            started: false,
        }
    }

    /// Looks at what is complete: decides whether more is wanted. Returns whether it may be handed on.
    fn complete(&mut self) -> bool {
        if !self.started {
            self.started = true;
            return true;
        }
        let length = usize::from(self.held[0]) << 16 | usize::from(self.held[1]) << 8 | usize::from(self.held[2]);
        if self.held[3] != HEADERS || length > LONGEST {
            self.unseen = length;
            return true;
        }
        if self.held.len() < FRAME_HEAD + length {
            self.wanted = FRAME_HEAD + length;
            return false;
        }
        let flags = self.held[4];
        if let Some(block) = header_block(flags, &mut self.held[FRAME_HEAD..]) {
            soften(block);
        }
        true
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lenient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            // `wanted` is 0 when what is held may go.
            if this.wanted == 0 && this.handed < this.held.len() {
                let count = out.remaining().min(this.held.len() - this.handed);
                out.put_slice(&this.held[this.handed..this.handed + count]);
                this.handed += count;
                return Poll::Ready(Ok(()));
            }
            if this.unseen > 0 && this.wanted == 0 {
                let mut chunk = [0; 8192];
                let most = chunk.len().min(this.unseen).min(out.remaining());
                let mut part = ReadBuf::new(&mut chunk[..most]);
                ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
                out.put_slice(part.filled());
                this.unseen -= part.filled().len();
                return Poll::Ready(Ok(()));
            }
            if this.wanted == 0 {
                this.held.clear();
                this.handed = 0;
                this.wanted = FRAME_HEAD;
            }
            let mut chunk = [0; 512];
            let count = chunk.len().min(this.wanted - this.held.len());
            let mut part = ReadBuf::new(&mut chunk[..count]);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut part))?;
            let ended = part.filled().is_empty();
            this.held.extend_from_slice(part.filled());
            // At its end the connection is handed on as far as it came.
            if ended && this.held.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if ended || (this.held.len() == this.wanted && this.complete()) {
                this.wanted = 0;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lenient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

impl<S: AsyncRead + Connected> Connected for Lenient<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.get_ref().connect_info()
    }
}

/// The header block in the payload of a HEADERS frame; `None` if the frame is malformed, which h2 will say.
fn header_block(flags: u8, payload: &mut [u8]) -> Option<&mut [u8]> {
    let mut from = 0;
    let mut to = payload.len();
    if flags & PADDED != 0 {
        to = to.checked_sub(usize::from(*payload.first()?))?;
        from += 1;
    }
    if flags & PRIORITY != 0 {
        from += 5;
    }
    payload.get_mut(from..to)
}

/// Overwrites the percent signs and slashes in the authority of a header block (RFC 7541, section 6).
fn soften(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        if first & 0x80 != 0 {
            integer(block, &mut at, 7)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            integer(block, &mut at, 5)?;
            continue;
        }
        let name = integer(block, &mut at, if first & 0x40 != 0 { 6 } else { 4 })?;
        let mut found = name == AUTHORITY;
        if name == 0 {
            let (text, _) = string(block, &mut at)?;
            found = block.get(text)? == b":authority";
        }
        let (text, huffman) = string(block, &mut at)?;
        let value = block.get_mut(text)?;
        match (found, huffman) {
            (true, true) => soften_huffman(value),
            (true, false) => value
                .iter_mut()
                .filter(|byte| matches!(**byte, b'%' | b'/'))
                .for_each(|byte| *byte = b'-'),
            (false, _) => {}
        }
    }
    Some(())
}

/// An integer with a prefix of `bits` bits (section 5.1); moves `at` behind it.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Where a string's bytes are, and whether they are Huffman-coded (section 5.2); moves `at` behind it.
fn string(block: &[u8], at: &mut usize) -> Option<(std::ops::Range<usize>, bool)> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let range = *at..at.checked_add(length)?;
    *at = range.end;
    (range.end <= block.len()).then_some((range, huffman))
}

/// Codes of HPACK's Huffman code by length in bits, first and last (appendix B). Longer codes are of characters that
/// no URL-encoded text has.
const CODES: &[(usize, u16, u16)] = &[
    (5, 0x0, 0x9),
    (6, 0x14, 0x2d),
    (7, 0x5c, 0x7b),
    (8, 0xf8, 0xfd),
    (10, 0x3f8, 0x3fc),
    (11, 0x7fa, 0x7fc),
    (12, 0xffa, 0xffb),
    (13, 0x1ff8, 0x1ffd),
];
const PERCENT: u16 = 0x15;
const SLASH: u16 = 0x18;
const HYPHEN: u16 = 0x16;

/// Overwrites the codes of `%` and `/` by that of `-`, all six bits long.
fn soften_huffman(value: &mut [u8]) {
    let bit = |value: &[u8], n: usize| u16::from(value[n / 8] >> (7 - n % 8) & 1);
    let mut at = 0;
    while at < value.len() * 8 {
        let code = |length: usize| (at..at + length).fold(0, |code, n| code << 1 | bit(value, n));
        let fits = |length: &usize| at + length <= value.len() * 8;
        let mut known = CODES
            .iter()
            .filter(|(length, _, _)| fits(length))
            .map(|(length, first, last)| (*length, code(*length), *first, *last));
        // Nothing fits in the padding at the end.
        let Some((length, found, _, _)) = known.find(|(_, code, first, last)| (first..=last).contains(&code)) else {
            return;
        };
        if length == 6 && matches!(found, PERCENT | SLASH) {
            for n in 0..6 {
                let mask = 1 << (7 - (at + n) % 8);
                let byte = &mut value[(at + n) / 8];
                *byte = if HYPHEN >> (5 - n) & 1 == 1 {
                    *byte | mask
                } else {
                    *byte & !mask
                };
            }
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Codes of the characters that the tests need.
    fn huffman(text: &str) -> Vec<u8> {
        let mut bits = String::new();
        for character in text.chars() {
            bits += match character {
                '%' => "010101",
                '-' => "010110",
                '/' => "011000",
                '2' => "00010",
                'F' => "1100010",
                'a' => "00011",
                'r' => "101100",
                'u' => "101101",
                'n' => "101010",
                '.' => "010111",
                's' => "01000",
                'k' => "1110101",
                _ => panic!("no code for {character}"),
            };
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        let bytes = bits.as_bytes().chunks(8);
        bytes
            .map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0')))
            .collect()
    }

    #[test]
    fn what_can_not_stand_in_an_authority_becomes_hyphens_in_both_codings() {
        for (sent, expected) in [("%2Frun%2Fa.ssk%", "-2Frun-2Fa.ssk-"), ("/run/a.ssk", "-run-a.ssk")] {
            let mut coded = huffman(sent);
            soften_huffman(&mut coded);
            assert_eq!(coded, huffman(expected));
        }
        // Indexed field, size update, then the authority as Go writes it: literal with incremental indexing.
        let mut block = vec![0x83, 0x3f, 0xe1, 0x1f, 0x41, 4];
        block.extend_from_slice(b"%2F/");
        block.extend_from_slice(&[0x44, 2, b'/', b'%']);
        soften(&mut block).unwrap();
        assert!(
            block.ends_with(&[0x41, 4, b'-', b'2', b'F', b'-', 0x44, 2, b'/', b'%']),
            "{block:x?}"
        );
    }

    #[test]
    fn a_cut_or_senseless_block_is_left_alone() {
        for length in 0..6 {
            let mut block = [0x41, 5, b'%', b'%', b'%', b'%'][..length].to_vec();
            let before = block.clone();
            soften(&mut block);
            assert_eq!(block, before);
        }
        soften(&mut [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    }

    #[tokio::test]
    async fn everything_else_passes_as_it_is_however_it_is_cut() {
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        sent.extend_from_slice(&[0, 0, 6, HEADERS, 4, 0, 0, 0, 1, 0x83, 0x41, 3, b'%', b'2', b'F']);
        sent.extend_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 0, 1]);
        sent.extend(std::iter::repeat_n(b'%', 4096));
        sent.extend_from_slice(&[0, 0, 0]);
        let mut expected = sent.clone();
        let position = expected.iter().position(|byte| *byte == b'%').unwrap();
        expected[position] = b'-';
        for size in [1, 7, 100, 8192] {
            let (near, far) = tokio::io::duplex(size);
            let sent = sent.clone();
            let writer = tokio::spawn(async move {
                let mut far = far;
                tokio::io::AsyncWriteExt::write_all(&mut far, &sent).await.unwrap();
            });
            let mut received = Vec::new();
            Lenient::new(near).read_to_end(&mut received).await.unwrap();
            writer.await.unwrap();
            assert_eq!(received.len(), expected.len());
            assert!(received == expected, "pieces of {size}");
        }
    }
}
