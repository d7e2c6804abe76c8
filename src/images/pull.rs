//! A pull, from a reference to a visible image.

use std::{fs, path::Path, sync::Arc};

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};
use tokio::task::spawn_blocking;
use wharf_proto::{api::LayerState, cri};

use super::{
    Error, ErrorKind, Image, Layer, Reference, Result,
    artifact::{self, Resolved},
    extract::extract,
    index::{Arrival, parse_config},
    layers::Pin,
    lazy::{self, Lower},
    manifest::{self, Manifest, Parsed},
    paused::Progressing,
    platform::Host,
    progress::{Meter, Progress},
    registry::{Document, Session, digest_of},
    room::Room,
};
use crate::failpoint;

/// Indexes in indexes.
pub(super) const MAX_DEPTH: usize = 3;

/// What makes two pulls the same: the reference, who asks, and whether it may end before the image is complete.
pub(super) type PullKey = (Reference, String, bool);
/// How a shared pull ends.
pub(super) type PullResult = std::result::Result<String, Arc<Error>>;
/// How a shared layer ends.
pub(super) type LayerResult = std::result::Result<Pin, Arc<Error>>;

/// The pull of `reference` by `auth` as a future that does it; `lazily`: until the image can be used.
pub(super) fn start(
    room: Arc<Room>,
    reference: Reference,
    auth: Option<cri::AuthConfig>,
    lazily: bool,
) -> (BoxFuture<'static, PullResult>, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let heard = progress.clone();
    let work = async move {
        let (id, up_to_date) = run(&room, &reference, auth.as_ref(), &heard, lazily).await?;
        let image = room.index.get(&id);
        heard.done(&id, up_to_date, image.and_then(|image| image.come()));
        Ok(id)
    };
    (
        work.map(|result: Result<String>| result.map_err(Arc::new)).boxed(),
        progress,
    )
}

/// The key of a pull; credentials are hashed.
pub(super) fn key(reference: &Reference, auth: Option<&cri::AuthConfig>, lazily: bool) -> PullKey {
    let who = auth.map_or_else(String::new, |auth| {
        let parts = [
            &auth.username,
            &auth.password,
            &auth.auth,
            &auth.server_address,
            &auth.identity_token,
            &auth.registry_token,
        ];
        let mut text = String::new();
        for part in parts {
            text.push_str(&format!("{}:{part}", part.len()));
        }
        digest_of(text.as_bytes())
    });
    (reference.clone(), who, lazily)
}

async fn run(
    room: &Arc<Room>,
    reference: &Reference,
    auth: Option<&cri::AuthConfig>,
    progress: &Arc<Progress>,
    lazily: bool,
) -> Result<(String, bool)> {
    let session = room.client.session(reference, auth).await?;
    let (documents, content) = resolve(&session, reference).await?;
    reach(room, "pull.resolved").await?;
    let evidence = room.trust.admit(room, &session, reference, &documents).await?;
    let top = documents
        .first()
        .map(|document| document.digest.clone())
        .unwrap_or_default();
    let chosen = documents
        .last()
        .map(|document| document.digest.clone())
        .unwrap_or_default();
    let id = match &content {
        Content::Image(manifest) => manifest.config.digest.clone(),
        Content::Artifact(_) => chosen.clone(),
    };

    if let Some(image) = room.index.get(&id) {
        progress.resolved(reference.to_string(), chosen.clone(), &image.layers);
        for layer in &image.layers {
            progress.layer(&layer.digest, LayerState::LayerExists, layer.size, layer.size);
        }
        let known = image.digests.contains(&format!("{}@{top}", reference.name()));
        let (owner, name, id, top) = (room.clone(), reference.clone(), id.clone(), top.clone());
        let speaks = evidence.clone();
        let named = blocking(move || {
            owner.index.keep_evidence(&id, speaks)?;
            owner.index.name(&id, &name, Some(&top))
        })
        .await?;
        if named {
            if !lazily && !image.is_complete() {
                await_whole(room, &session, &image, &reference.registry, progress).await?;
                return Ok((image.id.clone(), false));
            }
            return Ok((image.id.clone(), known));
        }
        // Removed meanwhile.
    }

    let manifest = match content {
        Content::Image(manifest) => manifest,
        Content::Artifact(artifact) => {
            let resolved = Resolved {
                artifact,
                documents,
                evidence,
            };
            artifact::bring(room, &session, reference, resolved, progress).await?;
            reach(room, "pull.shown").await?;
            return Ok((id, false));
        }
    };
    let config = session.document(&id, manifest.config.size).await?;
    let parsed = parse_config(&config, &id)?;
    if !parsed.is_for_linux() {
        return Err(Error::BadContent {
            what: format!("image {reference}"),
            reason: format!("it is for {:?}, not for Linux", parsed.os),
        });
    }
    let layers = manifest.with_diff_ids(&parsed.diff_ids)?;
    progress.resolved(reference.to_string(), chosen, &layers);
    reach(room, "pull.config").await?;

    let checkpoint = documents
        .iter()
        .any(|document| manifest::is_checkpoint(&document.bytes));
    let found = if checkpoint || !lazily {
        Vec::new()
    } else {
        lazy::find(room, &session, &manifest, &layers, reference).await
    };
    let progressing = Progressing::new(&room.paused);
    let brought = async {
        let coming = |at: usize| found.get(at).cloned().flatten();
        let here = layers.iter().enumerate().filter(|(at, _)| coming(*at).is_none());
        let pins: Vec<Pin> = stream::iter(here.map(|(_, layer)| layer.clone()).collect::<Vec<_>>())
            .map(|layer| {
                let fetched = fetch(
                    room.clone(),
                    session.beside(manifest.elsewhere(&layer.digest)),
                    &reference.registry,
                    layer,
                    progress.clone(),
                );
                let progressing = &progressing;
                async move {
                    let pin = fetched.await?;
                    progressing.has(&pin);
                    Ok::<_, Error>(pin)
                }
            })
            .buffered(room.parallel_layers)
            .try_collect()
            .await?;
        reach(room, "pull.layers").await?;
        let mut arrival = Arrival {
            id: id.clone(),
            size: manifest.size(),
            layers: layers.clone(),
            pins,
            config,
            documents: documents
                .into_iter()
                .map(|document| (document.digest, document.bytes))
                .collect(),
            names: vec![(reference.clone(), top.clone())],
            artifact: None,
            evidence,
            pinned: false,
            action: "pull",
        };
        if !found.iter().any(Option::is_some) {
            return admit(room, arrival).await;
        }
        let mut pins = std::mem::take(&mut arrival.pins).into_iter();
        let lowers = (0..layers.len()).filter_map(|at| match coming(at) {
            Some(layer) => {
                progress.layer(&layer.layer.digest, LayerState::LayerDone, 0, layer.layer.size);
                Some(Lower::Lazy(layer))
            }
            None => pins.next().map(Lower::Whole),
        });
        let (image, token) = lazy::begin(reference, &top, auth, lowers.collect());
        let (owner, shown) = (room.clone(), image.clone());
        blocking(move || owner.index.add_with(arrival, Some(shown))).await?;
        lazy::complete(room, &image, token, session.clone(), Some(id.clone()));
        Ok(())
    }
    .await;
    match &brought {
        Ok(()) => progressing.done(),
        // It may be back soon.
        Err(error) if error.kind() == ErrorKind::RegistryUnavailable => {}
        Err(_) => progressing.give_up(&layers),
    }
    brought?;
    reach(room, "pull.shown").await?;
    Ok((id, false))
}

/// Waits for the rest of `image`, which can be used already, and tells how far its layers are.
async fn await_whole(
    room: &Arc<Room>,
    session: &Session,
    image: &Image,
    registry: &str,
    progress: &Arc<Progress>,
) -> Result<()> {
    let coming = image.lazy.iter().flat_map(|lazy| lazy.coming());
    let coming: Vec<Layer> = coming.map(|lazy| lazy.layer.clone()).collect();
    stream::iter(coming)
        // The transfers that are under way, if they are.
        .map(|layer| fetch(room.clone(), session.clone(), registry, layer, progress.clone()))
        .buffered(room.parallel_layers)
        .try_collect::<Vec<Pin>>()
        .await?;
    lazy::whole(room, image).await.map(drop)
}

/// What a manifest describes.
enum Content {
    Image(Manifest),
    Artifact(manifest::Artifact),
}

/// Follows indexes to the manifest for this machine. The first document is what the reference names.
async fn resolve(session: &Session, reference: &Reference) -> Result<(Vec<Document>, Content)> {
    let host = Host::current();
    let mut selector = reference.selector().to_owned();
    let mut documents = Vec::new();
    for _ in 0..MAX_DEPTH {
        let document = session.manifest(&selector).await?;
        let parsed = manifest::parse(&document, &host)?;
        session.hold(&document);
        documents.push(document);
        match parsed {
            Parsed::Manifest(manifest) => return Ok((documents, Content::Image(manifest))),
            Parsed::Artifact(artifact) => return Ok((documents, Content::Artifact(artifact))),
            Parsed::Index { chosen } => selector = chosen,
        }
    }
    Err(Error::BadContent {
        what: format!("image {reference}"),
        reason: "its indexes are nested too deep".into(),
    })
}

/// The layer, from disk, from a transfer under way, or from a transfer of our own.
pub(super) async fn fetch(
    room: Arc<Room>,
    session: Session,
    registry: &str,
    layer: Layer,
    progress: Arc<Progress>,
) -> Result<Pin> {
    loop {
        if let Some(pin) = room.layers.pin(&layer.diff_id) {
            progress.layer(&layer.digest, LayerState::LayerExists, layer.size, layer.size);
            return Ok(pin);
        }
        // Two blobs with one diff ID are one layer, but a transfer is of a blob, and from where it is asked for: another
        // registry may be slow.
        let key = (format!("{registry}/{}", layer.digest), layer.diff_id.clone());
        let (transfer, meter, ours) = room.transfers.join(key, || {
            let meter = Arc::new(Meter::new(&layer));
            (
                transfer(room.clone(), session.clone(), layer.clone(), meter.clone()),
                meter,
            )
        });
        meter.listen(&progress);
        match transfer.await {
            Ok(pin) => return Ok(pin),
            Err(error) if ours => return Err(Error::Shared(error)),
            // Another pull's registry or credentials failed; ours may do better.
            Err(error) => tracing::debug!(%error, layer = layer.digest, "a transfer that was shared has failed"),
        }
    }
}

fn transfer(room: Arc<Room>, session: Session, layer: Layer, meter: Arc<Meter>) -> BoxFuture<'static, LayerResult> {
    async move {
        reach(&room, "pull.transfer").await.map_err(Arc::new)?;
        let pin = extract(&session, &layer, &room, &meter).await.map_err(Arc::new)?;
        reach(&room, "pull.unpacked").await.map_err(Arc::new)?;
        meter.state(LayerState::LayerDone);
        Ok(pin)
    }
    .boxed()
}

/// Where a test can make a pull fail; see [`failpoint`].
async fn reach(room: &Room, name: &str) -> Result<()> {
    failpoint::reach(name).await.map_err(Error::io("go on in", &room.root))
}

/// Makes all that was written below `root` durable. Blocking.
pub(super) fn sync_file_system(root: &Path) -> Result<()> {
    let directory = fs::File::open(root).map_err(Error::io("open", root))?;
    nix::unistd::syncfs(&directory).map_err(|errno| Error::io("sync the file system of", root)(errno.into()))
}

/// Makes an image visible whose layers are all here.
pub(super) async fn admit(room: &Arc<Room>, arrival: Arrival) -> Result<()> {
    let room = room.clone();
    blocking(move || {
        // The layers must be durable before a record says that they are there; what else the image has becomes so with them.
        let prepared = room.index.prepare(&arrival)?;
        sync_file_system(&room.root)?;
        room.index.add_prepared(arrival, prepared, None)
    })
    .await
}

/// Runs `work` where it may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::ShuttingDown("images")),
    }
}
