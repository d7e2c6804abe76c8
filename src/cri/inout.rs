//! Archives that come in and go out as streams of chunks.

use bytes::Bytes;
use futures_util::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use tonic::{Status, Streaming};
use wharf_proto::api::{
    ArchiveFormat, Chunk, ImportImageRequest, LoadImagesResponse, LoadedImage, SaveImagesRequest,
    import_image_request::Part,
};

use super::status::status;
use crate::images::{self, Format, Images, Inflow, Loaded, Order, Outflow};

/// An archive on its way out.
pub(super) type Chunks = BoxStream<'static, Result<Chunk, Status>>;

/// Feeds what [`Images::load`] or [`Images::migrate`] has begun with the archive that `chunks` are.
pub(super) async fn load(
    (inflow, work): (Inflow, impl Future<Output = images::Result<Vec<Loaded>>>),
    chunks: Streaming<Chunk>,
) -> Result<LoadImagesResponse, Status> {
    let data = chunks.map(|chunk| chunk.map(|chunk| chunk.data.into()));
    let loaded = beside(feed(inflow, data), work).await?;
    Ok(LoadImagesResponse {
        images: loaded
            .into_iter()
            .map(|image| LoadedImage {
                image_id: image.id,
                names: image.names,
            })
            .collect(),
    })
}

/// Makes an image of the archive that comes after its options.
pub(super) async fn import(images: Images, mut parts: Streaming<ImportImageRequest>) -> Result<String, Status> {
    let Some(ImportImageRequest {
        part: Some(Part::Options(options)),
    }) = parts.message().await?
    else {
        return Err(Status::invalid_argument("the first message has no options"));
    };
    let (inflow, work) = images.import(Order {
        name: options.name,
        changes: options.changes,
        message: options.message,
        author: String::new(),
    });
    let data = parts.map(|part| match part?.part {
        Some(Part::Data(data)) => Ok(data.into()),
        _ => Err(Status::invalid_argument("a message after the first one has no data")),
    });
    beside(feed(inflow, data), work).await
}

/// The archive that `request` asks for.
pub(super) async fn save(images: Images, request: SaveImagesRequest) -> Result<Chunks, Status> {
    let format = match request.format() {
        ArchiveFormat::ArchiveDocker => Format::Docker,
        ArchiveFormat::ArchiveOci => Format::Oci,
    };
    if request.images.is_empty() {
        return Err(Status::invalid_argument("no image is named"));
    }
    let saved = images.save(&request.images, format).await;
    Ok(chunks(saved.map_err(|error| status(&error.into()))?))
}

/// Feeds an archive with `data`, to its end.
pub(super) async fn feed(
    inflow: Inflow,
    mut data: impl Stream<Item = Result<Bytes, Status>> + Unpin,
) -> Result<(), Status> {
    while let Some(data) = data.next().await {
        if !inflow.send(data?).await {
            // Whoever reads has given up and says why.
            return Ok(());
        }
    }
    inflow.end().await;
    Ok(())
}

/// What `work` makes of that which `feed` brings. The work's failure ends it at once, the feed's is told instead of the
/// cut that it is for the work.
pub(super) async fn beside<T>(
    feed: impl Future<Output = Result<(), Status>>,
    work: impl Future<Output = crate::images::Result<T>>,
) -> Result<T, Status> {
    let (mut feed, mut work) = (Box::pin(feed), Box::pin(work));
    tokio::select! {
        biased;
        done = &mut work => return done.map_err(|error| status(&error.into())),
        fed = &mut feed => fed?,
    }
    work.await.map_err(|error| status(&error.into()))
}

/// What flows out, as messages.
pub(super) fn chunks(outflow: Outflow) -> Chunks {
    stream::unfold(outflow, |mut outflow| async move {
        let piece = outflow.recv().await?;
        let chunk = piece.map(|data| Chunk { data: data.to_vec() });
        Some((chunk.map_err(|error| status(&error.into())), outflow))
    })
    .boxed()
}
