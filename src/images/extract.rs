//! From a blob's bytes to a layer's files in one pass: hash, decompress, hash again, unpack.
//!
//! The transfer feeds a bounded channel. One blocking thread hashes and decompresses, a second one writes files, so that
//! a layer uses two cores. Per layer at most about a dozen megabytes are in flight, a decompressor's window included.

use std::{
    fs::File,
    io::{self, BufRead, Read, Write as _},
    path::Path,
    sync::mpsc as threads,
    thread,
};

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use wharf_proto::api::LayerState;

use super::{
    Error, Layer, Result,
    layers::{Layers, Pin, Size, Temporary, blob_name},
    progress::Meter,
    registry::Session,
    room::Room,
    unpack,
};

/// Pieces of archive that wait to be written, and their size.
const PIECES: usize = 16;
const PIECE: usize = 128 << 10;
/// How much is still read after a layer turned out to be damaged, to say whether its digest is wrong too.
const POST_MORTEM: u64 = 8 << 20;

/// A read of the network; a channel that closes without `End` was cut off.
pub(super) enum Input {
    Data(Bytes),
    End,
}

/// Takes `layer` from `session` and adds it to the room's layers. When this future is dropped, what was done by then is kept
/// for the next try, for a while; see [`super::paused`].
///
/// # Errors
/// Of the transfer, or when the content is not what its digests promise or can't be unpacked.
pub(super) async fn extract(session: &Session, layer: &Layer, room: &Room, meter: &Meter) -> Result<Pin> {
    let mut unpacking = room.paused.unpacking(layer, &room.layers);
    if unpacking.fed() > 0 {
        meter.add(unpacking.fed());
    }
    let mut stream = session.blob_from(&layer.digest, layer.size, unpacking.fed());
    while let Some(data) = stream.next().await? {
        meter.add(data.len() as u64);
        stream.note(data.len() as u64, unpacking.is_waiting());
        if !unpacking.feed(data).await {
            break;
        }
    }
    meter.state(LayerState::LayerExtracting);
    unpacking.finish().await
}

/// Unpacks the blob `source` and adds it as `layer`. Blocking.
pub(super) fn unpack_layer<F: Feed>(mut source: Source<F>, layer: &Layer, layers: &Layers) -> Result<Pin> {
    let keep = layers.keep_blobs();
    match unpack_keeping(&mut source, &layer.digest, layers, keep) {
        Ok(mut unpacked) => {
            source.check(layer)?;
            if unpacked.diff_id != layer.diff_id {
                return Err(Error::Mismatch {
                    what: format!("uncompressed layer {}", layer.digest),
                    expected: layer.diff_id.clone(),
                    got: unpacked.diff_id,
                });
            }
            if keep {
                unpacked.size.kept.bytes += layer.size;
                unpacked.size.kept.inodes += 1;
            }
            layers.add(unpacked.directory, &layer.diff_id, unpacked.size)
        }
        Err(error) => {
            // Damaged bytes fail in many ways; the digest tells the plain truth about them.
            if source.skip(POST_MORTEM) {
                source.check(layer)?;
            }
            Err(error)
        }
    }
}

/// A layer that nobody has looked for yet.
pub(super) struct Unpacked {
    pub directory: Temporary,
    pub size: Size,
    /// Of the archive.
    pub diff_id: String,
}

/// Unpacks the blob `source`, which messages call `name`, to its last byte. Blocking.
///
/// # Errors
/// When it can't be read, decompressed or unpacked; then it may not have been read to its end.
pub(super) fn unpack<F: Feed>(source: &mut Source<F>, name: &str, layers: &Layers) -> Result<Unpacked> {
    unpack_keeping(source, name, layers, false)
}

/// The same; keeps the blob, whose digest is `name`, beside the files if `keep`.
fn unpack_keeping<F: Feed>(source: &mut Source<F>, name: &str, layers: &Layers, keep: bool) -> Result<Unpacked> {
    let directory = layers.temporary()?;
    let files = directory.path().join("fs");
    std::fs::create_dir(&files).map_err(Error::io("create directory", &files))?;
    if keep {
        let path = directory.path().join(blob_name(name));
        source.copy = Some(File::create_new(&path).map_err(Error::io("create", path))?);
    }
    let (diff_id, size) = decompress(source, name, directory.path(), layers.limit())?;
    Ok(Unpacked {
        directory,
        size,
        diff_id,
    })
}

/// Unpacks `source` into `directory` and returns the digest of the archive.
fn decompress<F: Feed>(
    source: &mut Source<F>,
    name: &str,
    directory: &Path,
    limit: Option<u64>,
) -> Result<(String, Size)> {
    let bad = |error: io::Error| Error::BadContent {
        what: format!("layer {name}"),
        reason: format!("it can't be decompressed: {error}"),
    };
    let options = unpack::Options {
        layer: name.to_owned(),
        ..Default::default()
    };
    let (full, pieces) = threads::sync_channel::<Option<Vec<u8>>>(PIECES);
    let (recycle, empties) = threads::sync_channel::<Vec<u8>>(PIECES);
    thread::scope(|scope| {
        let writer = scope.spawn(|| unpack::unpack_layer(Pieces::new(pieces, recycle), directory, &options));
        let mut digest = Sha256::new();
        let mut left = limit.unwrap_or(u64::MAX);
        let mut pump = |source: &mut Source<F>| -> io::Result<()> {
            let mut archive = decoder(source)?;
            loop {
                let mut piece = empties.try_recv().unwrap_or_default();
                piece.resize(PIECE, 0);
                let length = fill(&mut archive, &mut piece)?;
                piece.truncate(length);
                if length == 0 {
                    let _ = full.send(None);
                    return Ok(());
                }
                left = left.checked_sub(length as u64).ok_or_else(|| {
                    let limit = limit.unwrap_or_default();
                    let reason = format!("it has more than {limit} bytes, which pull.max_layer_size allows");
                    io::Error::new(io::ErrorKind::FileTooLarge, reason)
                })?;
                digest.update(&piece);
                if full.send(Some(piece)).is_err() {
                    // The writer has given up and says why.
                    return Ok(());
                }
            }
        };
        let pumped = pump(source);
        drop(full);
        let written = writer.join().map_err(|_| Error::BadContent {
            what: format!("layer {name}"),
            reason: "the unpacker panicked".into(),
        })?;
        pumped.map_err(bad)?;
        let (stats, kept) = written?;
        // What follows the archive's last byte belongs to the blob.
        source.skip(u64::MAX);
        let size = Size { stats, kept };
        Ok((format!("sha256:{}", hex::encode(digest.finalize())), size))
    })
}

/// The decompressor that the first bytes call for. Media types are not asked: registries have them wrong.
///
/// # Errors
/// When the source can't be read, or is compressed in a way that images have no name for.
pub(super) fn decoder<'a, F: Feed + 'a>(source: &'a mut Source<F>) -> io::Result<Box<dyn Read + 'a>> {
    let foreign = |name: &str| {
        let reason = format!("it is compressed with {name}, which is not supported");
        Err(io::Error::new(io::ErrorKind::Unsupported, reason))
    };
    Ok(match source.peek(6)? {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        // A frame, or a skippable frame before one.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(source)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => return foreign("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A'] => return foreign("bzip2"),
        _ => Box::new(source),
    })
}

/// Reads until `buffer` is full or the end has come.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match reader.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Where a blob comes from.
pub(super) trait Feed {
    /// The next bytes, not empty; `None` at the end. Blocking.
    fn pull(&mut self) -> io::Result<Option<Bytes>>;
}

/// What a task sends to a blocking thread.
pub(super) struct Channel(pub mpsc::Receiver<Input>);

impl Feed for Channel {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        match self.0.blocking_recv() {
            Some(Input::Data(data)) => Ok(Some(data)),
            Some(Input::End) => Ok(None),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the transfer was cut off")),
        }
    }
}

/// A blob, hashed while it is read.
pub(super) struct Source<F> {
    feed: F,
    current: Bytes,
    digest: Sha256,
    length: u64,
    ended: bool,
    /// Gets what comes, too.
    copy: Option<File>,
}

impl<F: Feed> Source<F> {
    pub(super) fn new(feed: F) -> Self {
        Self {
            feed,
            current: Bytes::new(),
            digest: Sha256::new(),
            length: 0,
            ended: false,
            copy: None,
        }
    }

    /// Where the bytes come from, and what has come and was not read yet.
    pub(super) fn feed(&mut self) -> (&mut F, &Bytes) {
        (&mut self.feed, &self.current)
    }

    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        match self.feed.pull()? {
            Some(data) => {
                self.digest.update(&data);
                self.length += data.len() as u64;
                if let Some(copy) = &mut self.copy {
                    let kept = copy.write_all(&data);
                    kept.map_err(|error| io::Error::new(error.kind(), format!("the blob can't be kept: {error}")))?;
                }
                Ok(Some(data))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// Digest and length of all that came.
    pub(super) fn sum(&self) -> (String, u64) {
        let digest = hex::encode(self.digest.clone().finalize());
        (format!("sha256:{digest}"), self.length)
    }

    /// At least `count` bytes from the head, unless there are no more.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.current.len() < count {
            let Some(data) = self.pull()? else { break };
            self.current = if self.current.is_empty() {
                data
            } else {
                [self.current.as_ref(), data.as_ref()].concat().into()
            };
        }
        Ok(&self.current[..count.min(self.current.len())])
    }

    /// Hashes what is left; false if that is more than `limit` bytes or was cut off.
    pub(super) fn skip(&mut self, limit: u64) -> bool {
        self.current.clear();
        let mut skipped = 0;
        while skipped <= limit {
            match self.pull() {
                Ok(Some(data)) => skipped += data.len() as u64,
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Compares the digest of all that came.
    fn check(&self, layer: &Layer) -> Result<()> {
        let (got, _) = self.sum();
        if self.ended && got == layer.digest {
            return Ok(());
        }
        Err(Error::Mismatch {
            what: format!("layer {}", layer.digest),
            expected: layer.digest.clone(),
            got: if self.ended { got } else { "a part of it".into() },
        })
    }
}

impl<F: Feed> BufRead for Source<F> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.pull()? {
                Some(data) => self.current = data,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl<F: Feed> Read for Source<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// The archive as the writing thread sees it; buffers go back when they are used up.
struct Pieces {
    pieces: threads::Receiver<Option<Vec<u8>>>,
    recycle: threads::SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Pieces {
    fn new(pieces: threads::Receiver<Option<Vec<u8>>>, recycle: threads::SyncSender<Vec<u8>>) -> Self {
        Self {
            pieces,
            recycle,
            current: Vec::new(),
            at: 0,
            ended: false,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.ended {
            let used = std::mem::take(&mut self.current);
            self.at = 0;
            if used.capacity() > 0 {
                let _ = self.recycle.try_send(used);
            }
            match self.pieces.recv() {
                Ok(Some(piece)) => self.current = piece,
                Ok(None) => self.ended = true,
                Err(_) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive was cut off")),
            }
        }
        let rest = &self.current[self.at..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}
