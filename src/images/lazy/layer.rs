//! The content of a layer that has not come whole yet: what is asked for is fetched by range, checked against the table of
//! contents, and kept in a file without a name, so that nothing of it outlives the daemon.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use nix::fcntl::{FallocateFlags, fallocate};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, watch};

use super::{
    footer,
    format::{Format, Member, Place},
    table::{Kind, Table, ZEROS},
    workers::Workers,
};
use crate::images::{
    Error, ErrorKind, Layer, Result,
    flight::Flights,
    layers::Pin,
    manifest::Toc,
    progress::Progress,
    registry::{Session, digest_of},
};

/// Wait before the second attempt, doubled for each further one up to the second figure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// Fetches of one layer at a time: each has what it brings in memory, and a registry that does not answer holds up its own only.
const TURNS: usize = 4;

/// What all layers share.
#[derive(Clone)]
pub(in crate::images) struct Means {
    pub workers: Workers,
    /// Bytes that were kept of all layers that are not whole.
    pub kept: Arc<AtomicU64>,
    /// How long a read waits for a registry that does not answer; then it fails.
    pub patience: Duration,
}

/// A layer that is used before it is whole.
pub(in crate::images) struct LazyLayer {
    pub layer: Layer,
    pub(super) place: Place,
    pub(in crate::images) table: Table,
    /// How far the pull of the whole is.
    pub(super) progress: Arc<Progress>,
    /// The name of the image, for messages.
    image: String,
    session: Session,
    means: Means,
    /// The content of the chunks that are here, and behind all of it the compressed table.
    file: File,
    table_length: u64,
    /// By group.
    here: Vec<AtomicBool>,
    bytes: AtomicU64,
    /// Fetches at a time.
    turns: Semaphore,
    flights: Flights<usize, std::result::Result<(), Arc<Error>>, ()>,
    whole: OnceLock<Pin>,
    /// Held while `file` is read, or written and counted; what is in it may be given up.
    content: RwLock<()>,
    came: watch::Sender<bool>,
}

impl LazyLayer {
    /// Finds the table of contents of `layer`, for which `toc` vouches, in the registry.
    ///
    /// # Errors
    /// When it can't be had, or the layer can't be used so.
    pub async fn find(
        session: &Session,
        layer: &Layer,
        toc: &Toc,
        image: &str,
        means: &Means,
        scratch: &Path,
    ) -> Result<Arc<Self>> {
        let bad = |reason: String| Error::BadContent {
            what: format!("layer {}", layer.digest),
            reason,
        };
        if let Toc::ZstdChunked {
            digest,
            offset,
            length,
            unpacked,
        } = toc
        {
            let end = offset.checked_add(*length).filter(|end| *end <= layer.size);
            let fits = *length <= footer::MAX_COMPRESSED && *unpacked <= footer::MAX_TABLE;
            let end = end.filter(|_| fits);
            let end = end.ok_or_else(|| bad(format!("its table of contents can't be at {offset}")))?;
            let bytes = session.part(&layer.digest, *offset, end).await?;
            let place = Place {
                digest: digest.clone(),
                offset: *offset,
                format: Format::ZstdChunked { unpacked: *unpacked },
            };
            return Self::open(session, layer, place, bytes, image, means, scratch).await;
        }
        let Toc::EStargz { digest } = toc else {
            return Err(bad("its table of contents is of an unknown kind".into()));
        };
        let tail = layer.size.checked_sub(footer::LENGTH);
        let tail = tail.ok_or_else(|| bad("it is too short to have a table of contents".into()))?;
        let bytes = session.part(&layer.digest, tail, layer.size).await?;
        let offset = footer::offset(&bytes).ok_or_else(|| bad("it ends without a footer of eStargz".into()))?;
        if offset >= tail || tail - offset > footer::MAX_COMPRESSED {
            return Err(bad(format!("its table of contents can't be at {offset}")));
        }
        let bytes = session.part(&layer.digest, offset, tail).await?;
        let place = Place {
            digest: digest.clone(),
            offset,
            format: Format::EStargz,
        };
        Self::open(session, layer, place, bytes, image, means, scratch).await
    }

    /// The layer by its table of contents, compressed as in the blob. Below `scratch` files can be made.
    ///
    /// # Errors
    /// When it is not what its digest promises, or the layer can't be used so.
    pub async fn open(
        session: &Session,
        layer: &Layer,
        place: Place,
        toc: Vec<u8>,
        image: &str,
        means: &Means,
        scratch: &Path,
    ) -> Result<Arc<Self>> {
        let (scratch, known, wanted) = (scratch.to_owned(), layer.clone(), place.clone());
        let read = move || -> Result<(Table, File, u64)> {
            let bad = |reason: String| Error::BadContent {
                what: format!("layer {}", known.digest),
                reason,
            };
            let json = wanted.json(&known.digest, &toc)?;
            let table = Table::parse(&json, wanted.content_end()).map_err(bad)?;
            let file = File::options()
                .read(true)
                .write(true)
                .mode(0o600)
                .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
                .open(&scratch)
                .map_err(Error::io("make a file in", &scratch))?;
            let kept = file.write_all_at(&toc, table.length);
            kept.map_err(Error::io("write a file in", &scratch))?;
            Ok((table, file, toc.len() as u64))
        };
        let done = means.workers.run(read).await;
        let (table, file, table_length) = done.ok_or(Error::ShuttingDown("images"))??;
        Ok(Arc::new(Self {
            layer: layer.clone(),
            place,
            here: table.groups.iter().map(|_| AtomicBool::new(false)).collect(),
            table,
            progress: Progress::of(layer),
            image: image.to_owned(),
            session: session.clone(),
            means: means.clone(),
            file,
            table_length,
            bytes: AtomicU64::new(0),
            turns: Semaphore::new(TURNS),
            flights: Flights::new(),
            whole: OnceLock::new(),
            content: RwLock::new(()),
            came: watch::Sender::new(false),
        }))
    }

    /// The compressed table of contents. Blocking.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn toc(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.table_length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, self.table.length)?;
        Ok(bytes)
    }

    /// The layer has come whole: from now on it is read from there.
    pub async fn complete(self: &Arc<Self>, pin: Pin) {
        let _ = self.whole.set(pin);
        self.came.send_replace(true);
        let layer = self.clone();
        let free = move || {
            let _nobody = layer.content.write().unwrap_or_else(PoisonError::into_inner);
            let length = libc::off_t::try_from(layer.table.length).unwrap_or_default();
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Where the file system can't, it goes with the last container.
            if length > 0 && fallocate(&layer.file, flags, 0, length).is_ok() {
                let bytes = layer.bytes.swap(0, Ordering::Relaxed);
                layer.means.kept.fetch_sub(bytes, Ordering::Relaxed);
            }
        };
        let _ = self.means.workers.run(free).await;
    }

    /// Bytes of the blob that have come: by the pull of the whole, or by what was read.
    pub fn come(&self) -> u64 {
        if self.whole().is_some() {
            return self.layer.size;
        }
        let here = self.table.groups.iter().zip(&self.here);
        let read = here.filter(|(_, here)| here.load(Ordering::Relaxed));
        let read: u64 = read.map(|(group, _)| group.end - group.from).sum();
        read.max(self.progress.come(&self.layer.digest))
    }

    /// The whole layer, if it has come.
    pub fn whole(&self) -> Option<&Pin> {
        self.whole.get()
    }

    /// At most `size` bytes of the file `node` from `offset` on; fewer only at its end.
    ///
    /// # Errors
    /// The number of what to tell the reader; what it is about stands in the log.
    pub async fn read(self: &Arc<Self>, node: u32, offset: u64, size: u32) -> std::result::Result<Vec<u8>, i32> {
        let Some(Kind::File { size: length, chunks }) = self.table.nodes.get(node as usize).map(|node| &node.kind)
        else {
            return Err(libc::EINVAL);
        };
        let wanted = length.saturating_sub(offset).min(size.into());
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let all = &self.table.chunks[chunks.start as usize..chunks.end as usize];
        let Some(base) = all.first().map(|chunk| chunk.at) else {
            return Err(libc::EIO);
        };
        let (from, end) = (base + offset, base + offset + wanted);
        let first = all.partition_point(|chunk| chunk.at + chunk.size <= from);
        let mut need: Vec<usize> = all[first..]
            .iter()
            .take_while(|chunk| chunk.at < end)
            .filter(|chunk| chunk.group != ZEROS)
            .map(|chunk| chunk.group as usize)
            .collect();
        need.dedup();
        for group in need {
            if let Err(error) = self.ensure(group).await {
                tracing::error!(
                    image = self.image,
                    layer = self.layer.digest,
                    host = self.session.hosts(),
                    file = %String::from_utf8_lossy(&self.table.path(node)),
                    %error,
                    "a file of an image that is not complete can't be read; its reader gets an error"
                );
                return Err(libc::EIO);
            }
        }
        let length = usize::try_from(wanted).map_err(|_| libc::EINVAL)?;
        let layer = self.clone();
        let read = move || -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; length];
            let held = layer.content.read().unwrap_or_else(PoisonError::into_inner);
            match layer.whole() {
                Some(pin) => {
                    drop(held);
                    layer.open_whole(pin, node)?.read_exact_at(&mut bytes, offset)?;
                }
                // Nothing of it is given up before it is whole.
                None => layer.file.read_exact_at(&mut bytes, from)?,
            }
            Ok(bytes)
        };
        match self.means.workers.run(read).await {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => {
                tracing::error!(image = self.image, layer = self.layer.digest, %error, "a file of an image can't be read");
                Err(libc::EIO)
            }
            None => Err(libc::EIO),
        }
    }

    /// The file `node` in the whole layer. Blocking.
    fn open_whole(&self, pin: &Pin, node: u32) -> io::Result<File> {
        use std::os::{fd::AsFd as _, unix::ffi::OsStrExt as _};
        let root = File::open(pin.path())?;
        let path = self.table.path(node);
        let path = Path::new(std::ffi::OsStr::from_bytes(&path));
        let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS;
        let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        crate::sys::openat2(root.as_fd(), path, flags, 0, resolve).map(File::from)
    }

    /// Has the chunks of `group` here, or the whole layer.
    ///
    /// # Errors
    /// When they can't be had for long, or are not what the table promises.
    pub async fn ensure(self: &Arc<Self>, group: usize) -> std::result::Result<(), Arc<Error>> {
        if self.whole().is_some() || self.here[group].load(Ordering::Acquire) {
            return Ok(());
        }
        let start = || {
            let layer = self.clone();
            let work = async move { layer.fetch(group).await.map_err(Arc::new) };
            (work.boxed(), ())
        };
        let (flight, (), _) = self.flights.join(group, start);
        let mut came = self.came.subscribe();
        tokio::select! {
            done = flight => done,
            _ = came.wait_for(|came| *came) => Ok(()),
        }
    }

    async fn fetch(self: Arc<Self>, group: usize) -> Result<()> {
        if self.here[group].load(Ordering::Acquire) {
            return Ok(());
        }
        // Waiting for a turn counts, too: who reads waits for all of it.
        let bytes = tokio::time::timeout(self.means.patience, self.part(group));
        let bytes = bytes.await.unwrap_or_else(|_| {
            Err(Error::RegistryUnavailable {
                host: self.session.hosts(),
                reason: format!(
                    "layer {} has not come within {} s",
                    self.layer.digest,
                    self.means.patience.as_secs()
                ),
            })
        })?;
        let layer = self.clone();
        let unpack = move || layer.keep(group, &bytes);
        self.means
            .workers
            .run(unpack)
            .await
            .ok_or(Error::ShuttingDown("images"))?
    }

    /// The bytes of the blob that `group` is in, however long that takes.
    async fn part(&self, group: usize) -> Result<Vec<u8>> {
        let _turn = self.turns.acquire().await;
        let (from, end) = (self.table.groups[group].from, self.table.groups[group].end);
        let mut wait = BACK_OFF.0;
        loop {
            match self.session.part(&self.layer.digest, from, end).await {
                Err(error) if error.kind() == ErrorKind::RegistryUnavailable => {
                    tracing::warn!(image = self.image, layer = self.layer.digest, %error, "a part of an image that is in use is asked for again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(BACK_OFF.1);
                }
                done => return done,
            }
        }
    }

    /// Unpacks the chunks of `group`, checks them and keeps them. Blocking.
    fn keep(&self, group: usize, bytes: &[u8]) -> Result<()> {
        let Some(part) = self.table.groups.get(group) else {
            return Ok(());
        };
        let mut member: Option<(u64, Member)> = None;
        let mut content = Vec::new();
        for at in &part.chunks {
            let chunk = &self.table.chunks[*at as usize];
            let bad = |reason: String| Error::BadContent {
                what: format!("layer {} at byte {}", self.layer.digest, chunk.offset),
                reason,
            };
            let torn = |error: io::Error| bad(format!("it can't be decompressed: {error}"));
            let same = member
                .take()
                .filter(|(offset, open)| *offset == chunk.offset && open.at <= chunk.inner);
            let (_, mut open) = match same {
                Some(same) => same,
                None => {
                    let skip = usize::try_from(chunk.offset - part.from).unwrap_or(usize::MAX);
                    let rest = bytes.get(skip..).ok_or_else(|| bad("it is cut off".into()))?;
                    (chunk.offset, Member::new(rest, self.place.format).map_err(torn)?)
                }
            };
            open.skip_to(chunk.inner).map_err(torn)?;
            content.resize(usize::try_from(chunk.size).unwrap_or_default(), 0);
            open.read(&mut content).map_err(torn)?;
            if Sha256::digest(&content).as_slice() != chunk.digest.as_slice() {
                return Err(Error::Mismatch {
                    what: format!("layer {} at byte {}", self.layer.digest, chunk.offset),
                    expected: format!("sha256:{}", hex::encode(chunk.digest)),
                    got: digest_of(&content),
                });
            }
            let _held = self.content.read().unwrap_or_else(PoisonError::into_inner);
            if self.whole().is_some() {
                return Ok(());
            }
            let kept = self.file.write_all_at(&content, chunk.at);
            kept.map_err(Error::io("keep a part of", &self.layer.digest))?;
            self.bytes.fetch_add(chunk.size, Ordering::Relaxed);
            self.means.kept.fetch_add(chunk.size, Ordering::Relaxed);
            member = Some((chunk.offset, open));
        }
        self.here[group].store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for LazyLayer {
    fn drop(&mut self) {
        self.means
            .kept
            .fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl std::fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.layer.digest)
    }
}
