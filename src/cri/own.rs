//! Wharf's own service beside CRI: pulls with progress, and the doctor.

use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming, async_trait};
use wharf_proto::api::{
    Chunk, CommitContainerRequest, CommitContainerResponse, ConnectNetworkRequest, ConnectNetworkResponse,
    CreateNetworkRequest, CreateNetworkResponse, DebugRequest, DebugResponse, DisconnectNetworkRequest,
    DisconnectNetworkResponse, DiskUsageRequest, DiskUsageResponse, DoctorRequest, DoctorResponse, EventsMessage,
    EventsRequest, ExportContainerRequest, FsckRequest, FsckResponse, ImageHistoryRequest, ImageHistoryResponse,
    ImportImageRequest, ImportImageResponse, IncompleteImage, ListIncompleteRequest, ListIncompleteResponse,
    ListNetworksRequest, ListNetworksResponse, ListOperationsRequest, ListOperationsResponse, ListPausedRequest,
    ListPausedResponse, LoadImagesResponse, LoginRequest, LoginResponse, PauseContainerRequest, PauseContainerResponse,
    PruneNetworksRequest, PruneNetworksResponse, PullImageRequest, PullProgress, PullUntil, PushImageRequest,
    PushProgress, RemoveNetworkRequest, RemoveNetworkResponse, SaveImagesRequest, SignalContainerRequest,
    SignalContainerResponse, TagImageRequest, TagImageResponse, UnpauseContainerRequest, UnpauseContainerResponse,
    wharf_server::Wharf,
};

use super::{
    Face, debug, events,
    inout::{self, Chunks},
    owners,
    status::status,
    streams::Stream,
};
use crate::{images::Order, node::doctor};

#[async_trait]
impl Wharf for Face {
    type PullImageStream = BoxStream<'static, Result<PullProgress, Status>>;

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let node = self.node()?.clone();
        let (sender, events) = mpsc::unbounded_channel();
        let lazily = request.until.map(|_| request.until() == PullUntil::PullUsable);
        let work = async move { node.pull(&request.image, request.auth, Some(sender), lazily).await };
        Ok(Response::new(told(events, work)))
    }

    async fn signal_container(
        &self,
        request: Request<SignalContainerRequest>,
    ) -> Result<Response<SignalContainerResponse>, Status> {
        let request = request.into_inner();
        self.node()?
            .signal_container(&request.container_id, request.signal)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(SignalContainerResponse {}))
    }

    async fn pause_container(
        &self,
        request: Request<PauseContainerRequest>,
    ) -> Result<Response<PauseContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let paused = self.node()?.pause_container(&id).await;
        paused.map_err(|error| status(&error))?;
        Ok(Response::new(PauseContainerResponse {}))
    }

    async fn unpause_container(
        &self,
        request: Request<UnpauseContainerRequest>,
    ) -> Result<Response<UnpauseContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let resumed = self.node()?.unpause_container(&id).await;
        resumed.map_err(|error| status(&error))?;
        Ok(Response::new(UnpauseContainerResponse {}))
    }

    async fn list_paused(&self, request: Request<ListPausedRequest>) -> Result<Response<ListPausedResponse>, Status> {
        let containers = self.node()?.containers(owners(&request));
        let paused = containers.iter().filter(|container| container.is_paused());
        let container_ids = paused.map(|container| container.id.clone()).collect();
        Ok(Response::new(ListPausedResponse { container_ids }))
    }

    async fn list_incomplete(
        &self,
        _: Request<ListIncompleteRequest>,
    ) -> Result<Response<ListIncompleteResponse>, Status> {
        let list = self.node()?.images().list();
        let incomplete = list.iter().filter_map(|image| {
            let (current, total) = image.come()?;
            Some(IncompleteImage {
                id: image.id.clone(),
                current,
                total,
            })
        });
        Ok(Response::new(ListIncompleteResponse {
            images: incomplete.collect(),
        }))
    }

    async fn tag_image(&self, request: Request<TagImageRequest>) -> Result<Response<TagImageResponse>, Status> {
        let request = request.into_inner();
        let images = self.node()?.images();
        let tagged = images.tag(&request.image, &request.name).await;
        let name = tagged.map_err(|error| status(&error.into()))?;
        Ok(Response::new(TagImageResponse { name }))
    }

    async fn image_history(
        &self,
        request: Request<ImageHistoryRequest>,
    ) -> Result<Response<ImageHistoryResponse>, Status> {
        let history = self.node()?.images().history(&request.into_inner().image).await;
        let steps = history.map_err(|error| status(&error.into()))?;
        Ok(Response::new(ImageHistoryResponse { steps }))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let request = request.into_inner();
        let images = self.node()?.images();
        let auth = request.auth.unwrap_or_default();
        images
            .login(&request.registry, auth)
            .await
            .map_err(|error| status(&error.into()))?;
        Ok(Response::new(LoginResponse {}))
    }

    async fn load_images(&self, request: Request<Streaming<Chunk>>) -> Result<Response<LoadImagesResponse>, Status> {
        let loaded = inout::load(self.node()?.images().load(), request.into_inner()).await?;
        Ok(Response::new(loaded))
    }

    async fn migrate_images(&self, request: Request<Streaming<Chunk>>) -> Result<Response<LoadImagesResponse>, Status> {
        let loaded = inout::load(self.node()?.images().migrate(), request.into_inner()).await?;
        Ok(Response::new(loaded))
    }

    type SaveImagesStream = Chunks;

    async fn save_images(&self, request: Request<SaveImagesRequest>) -> Result<Response<Chunks>, Status> {
        let saved = inout::save(self.node()?.images().clone(), request.into_inner()).await?;
        Ok(Response::new(saved))
    }

    type PushImageStream = BoxStream<'static, Result<PushProgress, Status>>;

    async fn push_image(&self, request: Request<PushImageRequest>) -> Result<Response<Self::PushImageStream>, Status> {
        let request = request.into_inner();
        let images = self.node()?.images().clone();
        let (sender, events) = mpsc::unbounded_channel();
        let work = async move { images.push(&request.image, &request.name, request.auth, sender).await };
        Ok(Response::new(told(events, work)))
    }

    async fn import_image(
        &self,
        request: Request<Streaming<ImportImageRequest>>,
    ) -> Result<Response<ImportImageResponse>, Status> {
        let image_id = inout::import(self.node()?.images().clone(), request.into_inner()).await?;
        Ok(Response::new(ImportImageResponse { image_id }))
    }

    type ExportContainerStream = Chunks;

    async fn export_container(&self, request: Request<ExportContainerRequest>) -> Result<Response<Chunks>, Status> {
        let exported = self.node()?.export_container(&request.into_inner().container_id).await;
        Ok(Response::new(inout::chunks(exported.map_err(|error| status(&error))?)))
    }

    async fn commit_container(
        &self,
        request: Request<CommitContainerRequest>,
    ) -> Result<Response<CommitContainerResponse>, Status> {
        let request = request.into_inner();
        let order = Order {
            name: request.name,
            changes: request.changes,
            author: request.author,
            message: request.message,
        };
        let committed = self
            .node()?
            .commit_container(&request.container_id, order, !request.no_pause)
            .await;
        let image_id = committed.map_err(|error| status(&error))?;
        Ok(Response::new(CommitContainerResponse { image_id }))
    }

    async fn create_network(
        &self,
        request: Request<CreateNetworkRequest>,
    ) -> Result<Response<CreateNetworkResponse>, Status> {
        let network = Some(self.make_network(request.into_inner()).await?);
        Ok(Response::new(CreateNetworkResponse { network }))
    }

    async fn list_networks(&self, _: Request<ListNetworksRequest>) -> Result<Response<ListNetworksResponse>, Status> {
        let networks = self.known_networks()?;
        Ok(Response::new(ListNetworksResponse { networks }))
    }

    async fn remove_network(
        &self,
        request: Request<RemoveNetworkRequest>,
    ) -> Result<Response<RemoveNetworkResponse>, Status> {
        let removed = self.node()?.remove_network(&request.into_inner().name).await;
        removed.map_err(|error| status(&error))?;
        Ok(Response::new(RemoveNetworkResponse {}))
    }

    async fn prune_networks(
        &self,
        _: Request<PruneNetworksRequest>,
    ) -> Result<Response<PruneNetworksResponse>, Status> {
        let names = self.node()?.prune_networks().await.map_err(|error| status(&error))?;
        Ok(Response::new(PruneNetworksResponse { names }))
    }

    async fn connect_network(
        &self,
        request: Request<ConnectNetworkRequest>,
    ) -> Result<Response<ConnectNetworkResponse>, Status> {
        self.join_network(request.into_inner()).await?;
        Ok(Response::new(ConnectNetworkResponse {}))
    }

    async fn disconnect_network(
        &self,
        request: Request<DisconnectNetworkRequest>,
    ) -> Result<Response<DisconnectNetworkResponse>, Status> {
        let request = request.into_inner();
        let node = self.node()?;
        let left = node.disconnect_network(&request.pod_sandbox_id, &request.name).await;
        left.map_err(|error| status(&error))?;
        Ok(Response::new(DisconnectNetworkResponse {}))
    }

    type EventsStream = Stream<EventsMessage>;

    async fn events(&self, request: Request<EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let owners = owners(&request);
        events::history(self.node()?, request.into_inner(), owners).map(Response::new)
    }

    async fn disk_usage(&self, _: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        Ok(Response::new(self.node()?.disk_usage().await))
    }

    async fn list_operations(
        &self,
        _: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let operations = self.node()?.operations();
        Ok(Response::new(ListOperationsResponse {
            operations: operations.into_iter().map(debug::operation).collect(),
        }))
    }

    async fn debug(&self, _: Request<DebugRequest>) -> Result<Response<DebugResponse>, Status> {
        debug::response(self.node()?).await.map(Response::new)
    }

    async fn fsck(&self, request: Request<FsckRequest>) -> Result<Response<FsckResponse>, Status> {
        let found = self.node()?.fsck(request.into_inner().repair).await;
        Ok(Response::new(found.map_err(|error| status(&error))?))
    }

    async fn doctor(&self, _: Request<DoctorRequest>) -> Result<Response<DoctorResponse>, Status> {
        let node = self.node()?;
        let config = node.config();
        let look = tokio::task::spawn_blocking(move || doctor::findings(&config));
        let (findings, monitors) = tokio::join!(look, node.ask_monitors());
        let mut findings = findings.map_err(|error| Status::internal(format!("look at the machine: {error}")))?;
        findings.push(monitors);
        Ok(Response::new(DoctorResponse { findings }))
    }
}

/// A stream of the `events` of `work` and, if it fails, its error. The last event tells of its success. The work ends
/// with the stream.
fn told<E: Send + 'static, T: Send>(
    mut events: mpsc::UnboundedReceiver<E>,
    work: impl Future<Output = crate::images::Result<T>> + Send + 'static,
) -> BoxStream<'static, Result<E, Status>> {
    async_stream(move |out: mpsc::Sender<Result<E, Status>>| async move {
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                Some(event) = events.recv() => {
                    if out.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                result = &mut work => break result,
            }
        };
        while let Ok(event) = events.try_recv() {
            if out.send(Ok(event)).await.is_err() {
                return;
            }
        }
        // The client may have gone, which concerns nobody.
        if let Err(error) = result {
            let _ = out.send(Err(status(&error.into()))).await;
        }
    })
}

/// A stream of what `produce` sends, which runs only while the stream is read and ends when it is dropped.
fn async_stream<T, F, Fut>(produce: F) -> BoxStream<'static, T>
where
    T: Send + 'static,
    F: FnOnce(mpsc::Sender<T>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    let (sender, receiver) = mpsc::channel(16);
    let producer = produce(sender).into_stream().filter_map(|()| async { None });
    let items = stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    });
    stream::select(producer, items).boxed()
}
