//! The two formats: what vouches for a table and how it is unpacked, and how content is.

use std::io::{self, Read as _};

use super::{chunked, footer};
use crate::images::{Error, Result, registry::digest_of};

/// Where a layer's table of contents is, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::images) struct Place {
    /// Of the table: of eStargz' JSON, of zstd:chunked's as it is in the blob.
    pub digest: String,
    /// Where it begins in the blob.
    pub offset: u64,
    #[serde(default)]
    pub format: Format,
}

/// How a layer and its table are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(in crate::images) enum Format {
    /// By gzip.
    #[default]
    EStargz,
    /// By zstd; the table has so many bytes unpacked.
    ZstdChunked { unpacked: u64 },
}

impl Place {
    /// The table, JSON, that `toc` is compressed, of the layer `digest`.
    ///
    /// # Errors
    /// When it is not what `digest` promises, or can't be unpacked.
    pub fn json(&self, digest: &str, toc: &[u8]) -> Result<Vec<u8>> {
        let bad = |reason: String| Error::BadContent {
            what: format!("layer {digest}"),
            reason,
        };
        let check = |bytes: &[u8]| match digest_of(bytes) {
            got if got == self.digest => Ok(()),
            got => Err(Error::Mismatch {
                what: format!("table of contents of layer {digest}"),
                expected: self.digest.clone(),
                got,
            }),
        };
        match self.format {
            Format::EStargz => {
                let json = footer::table(toc).map_err(bad)?;
                check(&json).map(|()| json)
            }
            Format::ZstdChunked { unpacked } => {
                check(toc)?;
                chunked::table(toc, unpacked).map_err(bad)
            }
        }
    }

    /// Where the content of files ends in the blob.
    pub fn content_end(&self) -> u64 {
        match self.format {
            Format::EStargz => self.offset,
            Format::ZstdChunked { .. } => self.offset.saturating_sub(chunked::FRAME_HEADER),
        }
    }
}

/// A gzip member, or a frame of zstd, that is being read.
pub(super) struct Member<'a> {
    content: Box<dyn io::Read + 'a>,
    /// Bytes of its content that were read.
    pub at: u64,
}

impl<'a> Member<'a> {
    /// The one that `bytes` begin with.
    ///
    /// # Errors
    /// When a decoder can't be made.
    pub fn new(bytes: &'a [u8], format: Format) -> io::Result<Self> {
        let content: Box<dyn io::Read + 'a> = match format {
            Format::EStargz => Box::new(flate2::bufread::GzDecoder::new(bytes)),
            Format::ZstdChunked { .. } => Box::new(zstd::stream::read::Decoder::with_buffer(bytes)?.single_frame()),
        };
        Ok(Self { content, at: 0 })
    }

    /// Reads up to the byte `at` of the content, which is not before it is now.
    ///
    /// # Errors
    /// When the content is torn, or ends before.
    pub fn skip_to(&mut self, at: u64) -> io::Result<()> {
        let gap = at - self.at;
        let skipped = io::copy(&mut self.content.by_ref().take(gap), &mut io::sink())?;
        self.at += skipped;
        if skipped < gap {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Fills `into` with what comes next.
    ///
    /// # Errors
    /// As [`Member::skip_to`].
    pub fn read(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.content.read_exact(into)?;
        self.at += into.len() as u64;
        Ok(())
    }
}
