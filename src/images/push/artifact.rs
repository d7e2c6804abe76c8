//! Artifacts on their way to a registry: their files and manifest as they came.

use std::fs::File;

use wharf_proto::api::PushState;

use super::{Event, Job, PushDone};
use crate::images::{
    Error, Image, Layer, Reference, Result,
    image::Artifact,
    layers::Pin,
    manifest::{self, Parsed},
    platform::Host,
    pull::blocking,
    registry::{Blob, Document},
};

impl Job<'_> {
    /// Sends `image`, which is `artifact`, under `tag`; the manifest is `bytes`.
    ///
    /// # Errors
    /// When a file is damaged, or the registry does not take it.
    pub(super) async fn artifact(
        &self,
        image: &Image,
        artifact: &Artifact,
        target: &Reference,
        tag: &str,
    ) -> Result<()> {
        let (room, id) = (self.room.clone(), image.id.clone());
        let document = blocking(move || {
            let bytes = room.index.config(&id)?;
            Ok(Document {
                media_type: manifest::media_type(&bytes),
                bytes: bytes.into(),
                digest: id,
            })
        })
        .await?;
        let Parsed::Artifact(parsed) = manifest::parse(&document, &Host::current())? else {
            return Err(Error::BadContent {
                what: format!("artifact {}", image.id),
                reason: "its manifest is none of an artifact".into(),
            });
        };
        for ((layer, pin), name) in image.layers.iter().zip(&image.pins).zip(&artifact.files) {
            self.file(layer, pin, name).await?;
        }
        let (room, id, digest) = (self.room.clone(), image.id.clone(), parsed.config.digest.clone());
        let config = blocking(move || room.index.document(&id, &digest)).await?;
        let config = config.ok_or_else(|| Error::BadContent {
            what: format!("artifact {}", image.id),
            reason: "its configuration is not here; pull it again".into(),
        })?;
        self.blob(&parsed.config.digest, config.bytes).await?;
        let size = document.bytes.len() as u64;
        let refers = self
            .session
            .put_manifest(
                self.endpoint,
                tag,
                &document.media_type,
                document.bytes.clone(),
                &document.digest,
            )
            .await?;
        if let Some(subject) = &parsed.subject
            && !refers
        {
            self.session
                .add_referrer(self.endpoint, subject, &parsed.kind, &document)
                .await?;
        }
        let (room, id, target, known) = (
            self.room.clone(),
            image.id.clone(),
            target.clone(),
            document.digest.clone(),
        );
        blocking(move || room.index.add_digest(&id, &target, &known)).await?;
        self.tell(Event::Done(PushDone {
            digest: document.digest,
            size,
        }));
        Ok(())
    }

    async fn file(&self, layer: &Layer, pin: &Pin, name: &str) -> Result<()> {
        let (digest, size) = (&layer.digest, layer.size);
        if self.session.has_blob(self.endpoint, digest).await? {
            self.state(layer, PushState::PushExists, size, size);
            return Ok(());
        }
        let path = pin.path().join(name);
        let file = blocking(move || File::open(&path).map_err(Error::io("open", path))).await?;
        let blob = Blob::File(std::sync::Arc::new(file), size);
        let tell = |current| self.state(layer, PushState::PushUploading, current, size);
        // The registry checks the digest, so that a file that was damaged here is not passed on.
        self.session.upload(self.endpoint, digest, &blob, None, tell).await?;
        self.state(layer, PushState::PushDone, size, size);
        Ok(())
    }
}
