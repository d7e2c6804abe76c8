//! Images on their way to a registry.
//!
//! A layer that the registry has, in this repository or in another that the image is known from, is not sent: neither as
//! the blob that it came as, nor as the one that an earlier push made of it. Any other is given back, compressed to a
//! temporary file and uploaded from there, unless its blob was kept (`keep_blobs`). If every layer goes by the blob that it came as, the manifest does too.

mod artifact;
mod manifest;
mod pack;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::mpsc::UnboundedSender;
use wharf_proto::{
    api::{PushDone, PushLayerProgress, PushProgress, PushResolved, PushState, push_progress::Event},
    cri,
};

use super::{
    Error, ErrorKind, Image, Layer, Reference, Result,
    layers::Pin,
    pull::blocking,
    registry::{Blob, Endpoint, Mounted, Session, Upload, digest_of},
    room::Room,
};

/// Repositories of the same registry that are asked for a layer.
const MAX_SOURCES: usize = 3;

/// A blob in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sent {
    digest: String,
    size: u64,
}

/// Who wants to know how far the push is.
pub(super) type Listener = UnboundedSender<PushProgress>;

/// Sends `image` to `target`, which has a tag.
///
/// # Errors
/// When a layer can't be given back, or the registry does not take the image.
pub(super) async fn push(
    room: &Arc<Room>,
    image: &Image,
    target: &Reference,
    auth: Option<&cri::AuthConfig>,
    listener: Listener,
) -> Result<()> {
    let (Some(tag), Some(name)) = (&target.tag, target.tagged()) else {
        return Err(Error::InvalidReference {
            reference: target.to_string(),
            reason: "an image is pushed to a tag, not to a digest",
        });
    };
    let (index, id) = (room.clone(), image.id.clone());
    let (config, original) = blocking(move || Ok((index.index.config(&id)?, index.index.manifest(&id)?))).await?;
    let session = room.client.session(target, auth).await?;
    let endpoint = destination(&session, target, &image.id).await?;
    let job = Job {
        room,
        session: &session,
        endpoint: &endpoint,
        sources: sources(image, target),
        listener,
    };
    if let Some(artifact) = &image.artifact {
        job.resolved(name, image);
        return job.artifact(image, artifact, target, tag).await;
    }
    // A layer that an image has twice is sent once.
    let mut layers: BTreeMap<&str, (Layer, Pin)> = BTreeMap::new();
    for (layer, pin) in image.layers.iter().zip(&image.pins) {
        layers.entry(&layer.diff_id).or_insert((layer.clone(), pin.clone()));
    }
    job.resolved(name, image);
    let layers: Vec<(Layer, Pin)> = layers.into_values().collect();
    let job = &job;
    let sent: BTreeMap<String, Sent> = stream::iter(layers)
        .map(|(layer, pin)| async move { job.layer(&layer, &pin).await })
        .buffer_unordered(room.parallel_layers)
        .try_collect()
        .await?;
    let sent: Vec<Sent> = image
        .layers
        .iter()
        .filter_map(|layer| sent.get(&layer.diff_id).cloned())
        .collect();
    job.blob(&image.id, config.clone().into()).await?;
    let (media_type, bytes) = manifest::compose(original.as_ref(), image, config.len() as u64, &sent);
    let (digest, size) = (digest_of(&bytes), bytes.len() as u64);
    session
        .put_manifest(&endpoint, tag, &media_type, bytes.into(), &digest)
        .await?;
    let (index, id, target, known) = (room.clone(), image.id.clone(), target.clone(), digest.clone());
    blocking(move || index.index.add_digest(&id, &target, &known)).await?;
    job.tell(Event::Done(PushDone { digest, size }));
    Ok(())
}

/// The first place that takes images and answers.
async fn destination(session: &Session, target: &Reference, id: &str) -> Result<Endpoint> {
    let mut last = None;
    for endpoint in session.destinations() {
        match session.has_blob(&endpoint, id).await {
            Err(error) if error.kind() == ErrorKind::RegistryUnavailable => last = Some(error),
            Err(error) => return Err(error),
            Ok(_) => return Ok(endpoint),
        }
    }
    Err(last.unwrap_or_else(|| Error::Registry {
        what: format!("image {target}"),
        host: target.registry.clone(),
        reason: "the node's configuration lets images be pushed to no host of it".into(),
    }))
}

/// Other repositories of the target's registry in which the image was seen.
fn sources(image: &Image, target: &Reference) -> Vec<String> {
    let mut found = Vec::new();
    for name in &image.digests {
        if let Ok(name) = Reference::parse(name)
            && name.registry == target.registry
            && name.repository != target.repository
            && !found.contains(&name.repository)
            && found.len() < MAX_SOURCES
        {
            found.push(name.repository);
        }
    }
    found
}

struct Job<'a> {
    room: &'a Arc<Room>,
    session: &'a Session,
    endpoint: &'a Endpoint,
    sources: Vec<String>,
    listener: Listener,
}

impl Job<'_> {
    fn tell(&self, event: Event) {
        // A client that has gone is no reason to stop: its call's end is.
        let _ = self.listener.send(PushProgress { event: Some(event) });
    }

    fn resolved(&self, name: String, image: &Image) {
        let waiting = |layer: &Layer| progress(&layer.diff_id, PushState::PushWaiting, 0, 0);
        self.tell(Event::Resolved(PushResolved {
            reference: name,
            layers: image.layers.iter().map(waiting).collect(),
        }));
    }

    fn state(&self, layer: &Layer, state: PushState, current: u64, total: u64) {
        self.tell(Event::Layer(progress(&layer.diff_id, state, current, total)));
    }

    /// Brings a layer to the registry, in whatever way is cheapest.
    async fn layer(&self, layer: &Layer, pin: &Pin) -> Result<(String, Sent)> {
        let mut begun = None;
        let packed = pack::known(pin).await;
        let original = Sent {
            digest: layer.digest.clone(),
            size: layer.size,
        };
        let known = packed.clone().filter(|packed| *packed != original);
        for candidate in [Some(original), known].into_iter().flatten() {
            let (digest, size) = (&candidate.digest, candidate.size);
            if self.session.has_blob(self.endpoint, digest).await? {
                self.state(layer, PushState::PushExists, size, size);
                return Ok((layer.diff_id.clone(), candidate));
            }
            for source in &self.sources {
                match self.session.mount(self.endpoint, digest, source).await? {
                    Mounted::Yes => {
                        self.state(layer, PushState::PushMounted, size, size);
                        self.drop_upload(begun).await;
                        return Ok((layer.diff_id.clone(), candidate));
                    }
                    Mounted::Begun(upload) => self.drop_upload(begun.replace(upload)).await,
                    Mounted::No => {}
                }
            }
        }
        if let Some(sent) = self.kept(layer, pin, &mut begun).await? {
            return Ok((layer.diff_id.clone(), sent));
        }
        let (directory, file, sent) = {
            let (room, pin, layer, listener) = (self.room.clone(), pin.clone(), layer.clone(), self.listener.clone());
            blocking(move || pack::pack(&room.layers, &pin, &layer, &listener)).await?
        };
        let (digest, size) = (&sent.digest, sent.size);
        if packed.as_ref() != Some(&sent) && self.session.has_blob(self.endpoint, digest).await? {
            self.drop_upload(begun).await;
            self.state(layer, PushState::PushExists, size, size);
        } else {
            let blob = Blob::File(Arc::new(file), size);
            let tell = |current| self.state(layer, PushState::PushUploading, current, size);
            self.session.upload(self.endpoint, digest, &blob, begun, tell).await?;
            self.state(layer, PushState::PushDone, size, size);
        }
        // Removing it blocks.
        let _ = tokio::task::spawn_blocking(move || drop(directory)).await;
        Ok((layer.diff_id.clone(), sent))
    }

    /// Sends the blob that the layer came as, if it was kept. One that was damaged here the registry refuses; then what is made
    /// of the files goes in its place.
    async fn kept(&self, layer: &Layer, pin: &Pin, begun: &mut Option<Upload>) -> Result<Option<Sent>> {
        let (holder, digest, size) = (pin.clone(), layer.digest.clone(), layer.size);
        let Some(file) = blocking(move || Ok(holder.blob(&digest, size))).await? else {
            return Ok(None);
        };
        let blob = Blob::File(Arc::new(file), size);
        let tell = |current| self.state(layer, PushState::PushUploading, current, size);
        match self
            .session
            .upload(self.endpoint, &layer.digest, &blob, begun.take(), tell)
            .await
        {
            Ok(()) => {
                self.state(layer, PushState::PushDone, size, size);
                Ok(Some(Sent {
                    digest: layer.digest.clone(),
                    size,
                }))
            }
            Err(error) if error.kind() == ErrorKind::Other => {
                tracing::warn!(%error, layer = layer.digest, "a blob that was kept is not taken");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn drop_upload(&self, upload: Option<Upload>) {
        if let Some(upload) = upload {
            self.session.cancel(self.endpoint, upload).await;
        }
    }

    /// Brings the configuration to the registry.
    async fn blob(&self, digest: &str, bytes: bytes::Bytes) -> Result<()> {
        if self.session.has_blob(self.endpoint, digest).await? {
            return Ok(());
        }
        self.session
            .upload(self.endpoint, digest, &Blob::Bytes(bytes), None, |_| {})
            .await
    }
}

fn progress(diff_id: &str, state: PushState, current: u64, total: u64) -> PushLayerProgress {
    PushLayerProgress {
        diff_id: diff_id.to_owned(),
        state: state.into(),
        current,
        total,
    }
}
