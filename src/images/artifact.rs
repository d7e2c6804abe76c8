//! OCI artifacts: files in a registry that are no image, such as models or configuration (image specification, "Guidelines for
//! Artifact Usage"). They are pulled, listed, removed and mounted as images are; nothing can be run of them.
//!
//! Each file becomes a layer: it is unpacked out of an archive that is put around it as it comes, so that all that holds for
//! layers (sharing, sizes, checks, removal) holds for it. The artifact's id is its manifest's digest, as its configuration is
//! mostly the empty one that thousands share, and its manifest stands where an image has its configuration.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use tokio::{sync::mpsc, task::spawn_blocking};
use wharf_proto::api::LayerState;

use super::{
    Error, Layer, Reference, Result,
    extract::{Channel, Feed, Input, Source, Unpacked, unpack},
    index::Arrival,
    layers::{Layers, Pin},
    manifest::{Artifact, Descriptor},
    progress::{Meter, Progress},
    pull::{admit, blocking},
    registry::{Document, Session},
    room::Room,
    tarball,
    trust::Evidence,
    unpack::BLOCK,
};

/// Pieces of a file that wait to be written.
const WAITING: usize = 16;
/// Bytes of a file that are read at once.
const PIECE: usize = 128 << 10;

/// What a pull has resolved to.
pub(super) struct Resolved {
    pub artifact: Artifact,
    /// Index and manifest; the last describes the artifact.
    pub documents: Vec<Document>,
    pub evidence: Evidence,
}

/// Brings an artifact that is not here yet, and makes it visible.
///
/// # Errors
/// As a pull's.
pub(super) async fn bring(
    room: &Arc<Room>,
    session: &Session,
    reference: &Reference,
    resolved: Resolved,
    progress: &Arc<Progress>,
) -> Result<()> {
    let Resolved {
        artifact,
        mut documents,
        evidence,
    } = resolved;
    let (Some(top), Some(manifest)) = (documents.first().cloned(), documents.last().cloned()) else {
        return Ok(());
    };
    let config = session.document(&artifact.config.digest, artifact.config.size).await?;
    let expected: Vec<Layer> = artifact.files.iter().map(|(_, blob)| layer(blob)).collect();
    progress.resolved(reference.to_string(), manifest.digest.clone(), &expected);
    let brought: Vec<(Layer, Pin)> = stream::iter(artifact.files.clone())
        .map(|(name, blob)| {
            let (room, session, progress) = (room.clone(), session.clone(), progress.clone());
            async move { fetch(&room, &session, &name, &blob, &progress).await }
        })
        .buffered(room.parallel_layers)
        .try_collect()
        .await?;
    let (layers, pins): (Vec<Layer>, Vec<Pin>) = brought.into_iter().unzip();
    // A push needs it, and nothing else has it.
    documents.push(Document {
        digest: artifact.config.digest.clone(),
        bytes: config,
        media_type: String::new(),
    });
    let arrival = Arrival {
        id: manifest.digest.clone(),
        size: artifact.size(),
        layers,
        pins,
        config: manifest.bytes,
        documents: documents
            .into_iter()
            .map(|document| (document.digest, document.bytes))
            .collect(),
        names: vec![(reference.clone(), top.digest)],
        artifact: Some(super::image::Artifact {
            kind: artifact.kind,
            files: artifact.files.into_iter().map(|(name, _)| name).collect(),
        }),
        evidence,
        pinned: false,
        action: "pull",
    };
    admit(room, arrival).await
}

fn layer(blob: &Descriptor) -> Layer {
    Layer {
        digest: blob.digest.clone(),
        diff_id: String::new(),
        size: blob.size,
    }
}

/// The file `name` as a layer: from another artifact that has it under the same name, or from the registry.
async fn fetch(
    room: &Arc<Room>,
    session: &Session,
    name: &str,
    blob: &Descriptor,
    progress: &Arc<Progress>,
) -> Result<(Layer, Pin)> {
    if let Some(known) = known(room, name, &blob.digest) {
        progress.layer(&blob.digest, LayerState::LayerExists, blob.size, blob.size);
        return Ok(known);
    }
    let mut layer = layer(blob);
    let meter = Meter::new(&layer);
    meter.listen(progress);
    let (sender, receiver) = mpsc::channel(WAITING);
    let sum = Arc::new(OnceLock::new());
    let feed = Wrapped::new(name, blob.size, Channel(receiver), sum.clone());
    let (layers, digest) = (room.layers.clone(), blob.digest.clone());
    let unpacking = spawn_blocking(move || unpack(&mut Source::new(feed), &digest, &layers));
    let sent = send(session, blob, &meter, sender).await;
    let unpacked = match unpacking.await {
        Ok(unpacked) => unpacked,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => return Err(Error::ShuttingDown("images")),
    };
    // A transfer that failed has cut the unpacker off; what it says of that is of no interest.
    sent?;
    let (unpacked, layers) = (unpacked?, room.layers.clone());
    let (name, digest) = (name.to_owned(), blob.digest.clone());
    let pin = blocking(move || keep(&layers, &name, &digest, unpacked, &sum)).await?;
    layer.diff_id = pin.diff_id();
    meter.state(LayerState::LayerDone);
    Ok((layer, pin))
}

/// The file `name` as a layer, with the bytes that `content` has. Blocking.
///
/// # Errors
/// When they are not what `blob` promises, or can't be written.
pub(super) fn take(room: &Room, name: &str, blob: &Descriptor, content: impl io::Read) -> Result<(Layer, Pin)> {
    if let Some(known) = known(room, name, &blob.digest) {
        return Ok(known);
    }
    let sum = Arc::new(OnceLock::new());
    let feed = Wrapped::new(name, blob.size, Reading(content), sum.clone());
    let unpacked = unpack(&mut Source::new(feed), &blob.digest, &room.layers)?;
    let pin = keep(&room.layers, name, &blob.digest, unpacked, &sum)?;
    let mut layer = layer(blob);
    layer.diff_id = pin.diff_id();
    Ok((layer, pin))
}

/// Makes the file `name` part of the store, if its digest is the right one. Blocking.
fn keep(layers: &Layers, name: &str, digest: &str, unpacked: Unpacked, sum: &OnceLock<String>) -> Result<Pin> {
    let Unpacked {
        directory,
        size,
        diff_id,
    } = unpacked;
    let got = sum.get().cloned().unwrap_or_default();
    if got != digest {
        return Err(Error::Mismatch {
            what: format!("file {name:?} of an artifact"),
            expected: digest.to_owned(),
            got,
        });
    }
    match layers.pin(&diff_id) {
        Some(pin) => Ok(pin),
        None => layers.add(directory, &diff_id, size),
    }
}

/// Bytes that are read, in pieces.
struct Reading<R>(R);

impl<R: io::Read> Feed for Reading<R> {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        let mut piece = vec![0; PIECE];
        loop {
            match self.0.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(0) => return Ok(None),
                Ok(read) => {
                    piece.truncate(read);
                    return Ok(Some(piece.into()));
                }
            }
        }
    }
}

/// Sends the blob to the unpacker, until that has had enough.
async fn send(session: &Session, blob: &Descriptor, meter: &Meter, sender: mpsc::Sender<Input>) -> Result<()> {
    let mut stream = session.blob_from(&blob.digest, blob.size, 0);
    while let Some(data) = stream.next().await? {
        meter.add(data.len() as u64);
        stream.note(data.len() as u64, sender.capacity() == sender.max_capacity());
        if sender.send(Input::Data(data)).await.is_err() {
            return Ok(());
        }
    }
    meter.state(LayerState::LayerExtracting);
    let _ = sender.send(Input::End).await;
    Ok(())
}

fn known(room: &Room, name: &str, digest: &str) -> Option<(Layer, Pin)> {
    room.index.list().iter().find_map(|image| {
        let names = &image.artifact.as_ref()?.files;
        let found = image
            .layers
            .iter()
            .zip(names)
            .find(|(layer, own)| layer.digest == digest && *own == name);
        let layer = found?.0.clone();
        let pin = room.layers.pin(&layer.diff_id)?;
        Some((layer, pin))
    })
}

/// An archive of one file around the file's bytes.
struct Wrapped<F> {
    head: Option<Bytes>,
    content: F,
    size: u64,
    left: u64,
    digest: Option<Sha256>,
    /// The digest of the content goes here.
    sum: Arc<OnceLock<String>>,
}

impl<F> Wrapped<F> {
    fn new(name: &str, size: u64, content: F, sum: Arc<OnceLock<String>>) -> Self {
        let entry = unpack_entry(name, size);
        Self {
            head: Some(tarball::header(&entry).into()),
            content,
            size,
            left: size,
            digest: Some(Sha256::new()),
            sum,
        }
    }
}

/// With a leading `./`, an archive can't be taken for something compressed.
fn unpack_entry(name: &str, size: u64) -> super::unpack::Entry {
    super::unpack::Entry {
        name: format!("./{name}").into_bytes(),
        mode: 0o644,
        size,
        ..tarball::empty()
    }
}

impl<F: Feed> Feed for Wrapped<F> {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        let Some(digest) = &mut self.digest else {
            return Ok(None);
        };
        match self.content.pull()? {
            Some(data) => {
                // More would be read as further entries of the archive.
                self.left = self
                    .left
                    .checked_sub(data.len() as u64)
                    .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is longer than was promised"))?;
                digest.update(&data);
                Ok(Some(data))
            }
            None if self.left > 0 => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it is shorter than was promised",
            )),
            None => {
                if let Some(digest) = self.digest.take() {
                    let _ = self.sum.set(format!("sha256:{}", hex::encode(digest.finalize())));
                }
                let padding = (self.size.next_multiple_of(BLOCK as u64) - self.size) as usize;
                Ok(Some(vec![0; padding + 2 * BLOCK].into()))
            }
        }
    }
}
