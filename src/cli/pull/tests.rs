use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::net::UnixListener;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use wharf_proto::api::pull_progress::Event;
use wharf_proto::api::wharf_server::{Wharf, WharfServer};
use wharf_proto::cri::image_service_server::{ImageService, ImageServiceServer};

use super::*;
use crate::cli::Global;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A daemon that knows two images, and refuses whoever is not "me".
struct Daemon;

#[tonic::async_trait]
impl Wharf for Daemon {
    type PullImageStream = Answers<api::PullProgress>;

    async fn pull_image(
        &self,
        request: Request<api::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let message = request.into_inner();
        if message.image == "private" && message.auth.is_none_or(|auth| auth.username != "me") {
            return Err(Status::permission_denied("registry says: unauthorized"));
        }
        let layer = |state, current| api::LayerProgress {
            digest: "sha256:aa".into(),
            state,
            current,
            total: 10,
        };
        let resolved = api::PullResolved {
            reference: format!("docker.io/library/{}:latest", message.image),
            digest: "sha256:bb".into(),
            layers: vec![layer(0, 0)],
        };
        let done = api::PullDone {
            image_id: "sha256:cc".into(),
            up_to_date: false,
            incomplete: None,
        };
        let mut events = vec![Event::Resolved(resolved), Event::Layer(layer(1, 5))];
        if message.image == "torn" {
            let answers = events
                .into_iter()
                .map(|event| Ok(api::PullProgress { event: Some(event) }));
            let answers: Vec<_> = answers
                .chain([Err(Status::data_loss("layer sha256:aa: wrong digest"))])
                .collect();
            return Ok(Response::new(Box::pin(stream::iter(answers))));
        }
        events.extend([Event::Layer(layer(3, 10)), Event::Done(done)]);
        let answers = events
            .into_iter()
            .map(|event| Ok(api::PullProgress { event: Some(event) }));
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn signal_container(
        &self,
        _: Request<wharf_proto::api::SignalContainerRequest>,
    ) -> Result<Response<wharf_proto::api::SignalContainerResponse>, Status> {
        Err(Status::unimplemented("not part of this"))
    }

    async fn pause_container(
        &self,
        _: Request<api::PauseContainerRequest>,
    ) -> Result<Response<api::PauseContainerResponse>, Status> {
        Err(Status::unimplemented("pause_container"))
    }

    async fn unpause_container(
        &self,
        _: Request<api::UnpauseContainerRequest>,
    ) -> Result<Response<api::UnpauseContainerResponse>, Status> {
        Err(Status::unimplemented("unpause_container"))
    }

    async fn list_paused(
        &self,
        _: Request<api::ListPausedRequest>,
    ) -> Result<Response<api::ListPausedResponse>, Status> {
        Err(Status::unimplemented("list_paused"))
    }

    async fn list_incomplete(
        &self,
        _: Request<api::ListIncompleteRequest>,
    ) -> Result<Response<api::ListIncompleteResponse>, Status> {
        Err(Status::unimplemented("list_incomplete"))
    }

    async fn load_images(
        &self,
        _: Request<tonic::Streaming<api::Chunk>>,
    ) -> Result<Response<api::LoadImagesResponse>, Status> {
        Err(Status::unimplemented("load_images"))
    }

    async fn migrate_images(
        &self,
        _: Request<tonic::Streaming<api::Chunk>>,
    ) -> Result<Response<api::LoadImagesResponse>, Status> {
        Err(Status::unimplemented("migrate_images"))
    }

    type SaveImagesStream = Answers<api::Chunk>;

    async fn save_images(
        &self,
        _: Request<api::SaveImagesRequest>,
    ) -> Result<Response<Self::SaveImagesStream>, Status> {
        Err(Status::unimplemented("save_images"))
    }

    type PushImageStream = Answers<api::PushProgress>;

    async fn push_image(&self, _: Request<api::PushImageRequest>) -> Result<Response<Self::PushImageStream>, Status> {
        Err(Status::unimplemented("push_image"))
    }

    async fn import_image(
        &self,
        _: Request<tonic::Streaming<api::ImportImageRequest>>,
    ) -> Result<Response<api::ImportImageResponse>, Status> {
        Err(Status::unimplemented("import_image"))
    }

    type ExportContainerStream = Answers<api::Chunk>;

    async fn export_container(
        &self,
        _: Request<api::ExportContainerRequest>,
    ) -> Result<Response<Self::ExportContainerStream>, Status> {
        Err(Status::unimplemented("export_container"))
    }

    async fn commit_container(
        &self,
        _: Request<api::CommitContainerRequest>,
    ) -> Result<Response<api::CommitContainerResponse>, Status> {
        Err(Status::unimplemented("commit_container"))
    }

    async fn create_network(
        &self,
        _: Request<api::CreateNetworkRequest>,
    ) -> Result<Response<api::CreateNetworkResponse>, Status> {
        Err(Status::unimplemented("create_network"))
    }

    async fn list_networks(
        &self,
        _: Request<api::ListNetworksRequest>,
    ) -> Result<Response<api::ListNetworksResponse>, Status> {
        Err(Status::unimplemented("list_networks"))
    }

    async fn remove_network(
        &self,
        _: Request<api::RemoveNetworkRequest>,
    ) -> Result<Response<api::RemoveNetworkResponse>, Status> {
        Err(Status::unimplemented("remove_network"))
    }

    async fn prune_networks(
        &self,
        _: Request<api::PruneNetworksRequest>,
    ) -> Result<Response<api::PruneNetworksResponse>, Status> {
        Err(Status::unimplemented("prune_networks"))
    }

    async fn connect_network(
        &self,
        _: Request<api::ConnectNetworkRequest>,
    ) -> Result<Response<api::ConnectNetworkResponse>, Status> {
        Err(Status::unimplemented("connect_network"))
    }

    async fn disconnect_network(
        &self,
        _: Request<api::DisconnectNetworkRequest>,
    ) -> Result<Response<api::DisconnectNetworkResponse>, Status> {
        Err(Status::unimplemented("disconnect_network"))
    }

    async fn tag_image(&self, _: Request<api::TagImageRequest>) -> Result<Response<api::TagImageResponse>, Status> {
        Err(Status::unimplemented("tag_image"))
    }

    async fn image_history(
        &self,
        _: Request<api::ImageHistoryRequest>,
    ) -> Result<Response<api::ImageHistoryResponse>, Status> {
        Err(Status::unimplemented("image_history"))
    }

    async fn login(&self, _: Request<api::LoginRequest>) -> Result<Response<api::LoginResponse>, Status> {
        Err(Status::unimplemented("login"))
    }

    type EventsStream = Answers<api::EventsMessage>;

    async fn events(&self, _: Request<api::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        Err(Status::unimplemented("events"))
    }

    async fn disk_usage(&self, _: Request<api::DiskUsageRequest>) -> Result<Response<api::DiskUsageResponse>, Status> {
        Err(Status::unimplemented("disk_usage"))
    }

    async fn list_operations(
        &self,
        _: Request<api::ListOperationsRequest>,
    ) -> Result<Response<api::ListOperationsResponse>, Status> {
        Err(Status::unimplemented("list_operations"))
    }

    async fn debug(&self, _: Request<api::DebugRequest>) -> Result<Response<api::DebugResponse>, Status> {
        Err(Status::unimplemented("debug"))
    }

    async fn fsck(&self, _: Request<api::FsckRequest>) -> Result<Response<api::FsckResponse>, Status> {
        Err(Status::unimplemented("fsck"))
    }

    async fn doctor(&self, _: Request<api::DoctorRequest>) -> Result<Response<api::DoctorResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl ImageService for Daemon {
    type StreamImagesStream = Answers<cri::StreamImagesResponse>;

    async fn pull_image(&self, _: Request<cri::PullImageRequest>) -> Result<Response<cri::PullImageResponse>, Status> {
        Ok(Response::new(cri::PullImageResponse {
            image_ref: "a@sha256:dd".into(),
        }))
    }

    async fn image_status(
        &self,
        _: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let image = Some(cri::Image {
            id: "sha256:ee".into(),
            ..Default::default()
        });
        Ok(Response::new(cri::ImageStatusResponse {
            image,
            ..Default::default()
        }))
    }

    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn stream_images(
        &self,
        _: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn remove_image(
        &self,
        _: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Serves on a socket of its own; the client uses Wharf's service only if `own` is set.
async fn with_daemon<T>(name: &str, own: bool, test: impl AsyncFnOnce(Client) -> T) -> T {
    let path: PathBuf = std::env::temp_dir().join(format!("wharf-pull-{name}-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let incoming = stream::unfold(listener, |listener| async {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = Server::builder()
        .add_service(ImageServiceServer::new(Daemon))
        .add_optional_service(own.then(|| WharfServer::new(Daemon)))
        .serve_with_incoming(incoming);
    let endpoint = Some(path.to_string_lossy().into_owned());
    let global = Global {
        endpoint,
        config: None,
        timeout: Some(Duration::from_secs(10)),
    };
    let client = Client::new(&global).unwrap();
    let result = tokio::select! {
        _ = server => panic!("the server must not end before the test"),
        result = test(client) => result,
    };
    std::fs::remove_file(&path).unwrap();
    result
}

#[tokio::test]
async fn a_pull_tells_the_full_reference_and_the_id() {
    let pulled = with_daemon("full", true, async |client| pull(&client, "busybox", None, true).await)
        .await
        .unwrap();
    assert_eq!(pulled.reference, "docker.io/library/busybox:latest");
    assert_eq!(pulled.image_id, "sha256:cc");
}

#[tokio::test]
async fn a_runtime_without_wharfs_service_is_asked_the_cri_way() {
    let pulled = with_daemon("plain", false, async |client| {
        pull(&client, "busybox", None, true).await
    })
    .await
    .unwrap();
    assert_eq!((pulled.image_id.as_str(), pulled.reference.as_str()), ("sha256:ee", ""));
}

#[tokio::test]
async fn what_the_daemon_says_is_what_the_person_reads() {
    let (private, torn, mine) = with_daemon("errors", true, async |client| {
        let private = pull(&client, "private", None, true).await.map(|_| ());
        let torn = pull(&client, "torn", None, true).await.map(|_| ());
        let mine = pull(&client, "private", Some(credentials("me:secret").unwrap()), true)
            .await
            .map(|_| ());
        (private.unwrap_err().to_string(), torn.unwrap_err().to_string(), mine)
    })
    .await;
    assert_eq!(private, "pull private: registry says: unauthorized");
    assert_eq!(torn, "pull torn: layer sha256:aa: wrong digest");
    mine.unwrap();
}

#[tokio::test]
async fn without_a_daemon_the_error_says_how_to_start_one() {
    let global = Global {
        endpoint: Some("/nowhere/wharf.sock".into()),
        config: None,
        timeout: None,
    };
    let client = Client::new(&global).unwrap();
    let error = pull(&client, "busybox", None, true)
        .await
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("no daemon is running: there is no socket /nowhere/wharf.sock\n"),
        "{error}"
    );
}

#[test]
fn a_password_may_contain_colons() {
    let auth = credentials("me:a:b").unwrap();
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "a:b"));
    assert!(credentials(":x").is_err());
}
