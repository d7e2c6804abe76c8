//! A CRI client with the few words that tests need, over any unix socket.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use wharf_proto::cri as pb;
use wharf_proto::cri::image_service_client::ImageServiceClient;
use wharf_proto::cri::runtime_service_client::RuntimeServiceClient;

use crate::Result;

/// What a call returns: tests look at the status code.
pub type Answer<T> = std::result::Result<T, Status>;

/// Both CRI services of one endpoint.
#[derive(Clone)]
pub struct Cri {
    /// The raw client, for calls that have no short form here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The raw client.
    pub images: ImageServiceClient<Channel>,
}

impl Cri {
    /// Name and version of the runtime.
    ///
    /// # Errors
    /// What the server answers.
    pub async fn version(&self) -> Answer<pb::VersionResponse> {
        let request = pb::VersionRequest::default();
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let channel = channel(socket).await?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20),
            images: ImageServiceClient::new(channel).max_decoding_message_size(64 << 20),
        })
    }

    pub async fn run_pod(&self, config: &pb::PodSandboxConfig, handler: &str) -> Answer<String> {
        let request = pb::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.into(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = pb::StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = pb::RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> Answer<pb::PodSandboxStatus> {
        let request = pb::PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("answer without status"))
    }

    pub async fn pods(&self, filter: Option<pb::PodSandboxFilter>) -> Answer<Vec<pb::PodSandbox>> {
        let request = pb::ListPodSandboxRequest { filter };
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    pub async fn create(
        &self,
        pod: &str,
        config: &pb::ContainerConfig,
        sandbox: &pb::PodSandboxConfig,
    ) -> Answer<String> {
        let request = pb::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    pub async fn start(&self, id: &str) -> Answer<()> {
        let request = pb::StartContainerRequest {
            container_id: id.into(),
        };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    pub async fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        let request = pb::StopContainerRequest {
            container_id: id.into(),
            timeout,
        };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Answer<()> {
        let request = pb::RemoveContainerRequest {
            container_id: id.into(),
        };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    pub async fn status(&self, id: &str) -> Answer<pb::ContainerStatus> {
        let request = pb::ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("answer without status"))
    }

    pub async fn containers(&self, filter: Option<pb::ContainerFilter>) -> Answer<Vec<pb::Container>> {
        let request = pb::ListContainersRequest { filter };
        Ok(self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    pub async fn exec(&self, id: &str, command: &[&str], timeout: i64) -> Answer<pb::ExecSyncResponse> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = pb::ExecSyncRequest {
            container_id: id.into(),
            cmd,
            timeout,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// Runs a shell line in a container and returns its standard output.
    ///
    /// # Errors
    /// When it ends with another status than 0; the message holds what it wrote.
    pub async fn shell(&self, id: &str, line: &str) -> Result<String> {
        let answer = self.exec(id, &["/bin/sh", "-c", line], 30).await?;
        let stdout = String::from_utf8_lossy(&answer.stdout).into_owned();
        match answer.exit_code {
            0 => Ok(stdout),
            code => Err(format!(
                "{line}: code {code}: {stdout}{}",
                String::from_utf8_lossy(&answer.stderr)
            )
            .into()),
        }
    }

    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = pb::ReopenContainerLogRequest {
            container_id: id.into(),
        };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// The container's status once it has exited.
    ///
    /// # Errors
    /// When the call fails or it does not exit in time.
    pub async fn exited(&self, id: &str) -> Answer<pb::ContainerStatus> {
        let end = std::time::Instant::now() + crate::PATIENCE;
        loop {
            let status = self.status(id).await?;
            if status.state() == pb::ContainerState::ContainerExited {
                return Ok(status);
            }
            if std::time::Instant::now() > end {
                return Err(Status::deadline_exceeded(format!(
                    "container {id} is still {:?}",
                    status.state()
                )));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn pull(&self, reference: &str) -> Answer<String> {
        self.pull_as(reference, None).await
    }

    pub async fn pull_as(&self, reference: &str, auth: Option<pb::AuthConfig>) -> Answer<String> {
        let request = pb::PullImageRequest {
            image: Some(image_spec(reference)),
            auth,
            sandbox_config: None,
        };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn image(&self, reference: &str) -> Answer<Option<pb::Image>> {
        let request = pb::ImageStatusRequest {
            image: Some(image_spec(reference)),
            verbose: false,
        };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn image_list(&self) -> Answer<Vec<pb::Image>> {
        Ok(self
            .images
            .clone()
            .list_images(pb::ListImagesRequest { filter: None })
            .await?
            .into_inner()
            .images)
    }

    pub async fn remove_image(&self, reference: &str) -> Answer<()> {
        let request = pb::RemoveImageRequest {
            image: Some(image_spec(reference)),
        };
        self.images.clone().remove_image(request).await.map(drop)
    }
}

/// A connection to a socket. As with clients in Go, what may be on its way grows with what comes.
///
/// # Errors
/// When nobody listens.
pub async fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Ok(Endpoint::from_static("http://localhost")
        .http2_adaptive_window(true)
        .connect_with_connector(connector)
        .await?)
}

/// A reference as CRI carries it.
pub fn image_spec(reference: &str) -> pb::ImageSpec {
    pb::ImageSpec {
        image: reference.into(),
        user_specified_image: reference.into(),
        ..Default::default()
    }
}

/// The code of a failed call; a successful one fails the test.
///
/// # Panics
/// When the call succeeded.
#[track_caller]
pub fn code<T: std::fmt::Debug>(answer: Answer<T>) -> Code {
    match answer {
        Err(status) => status.code(),
        Ok(value) => panic!("the call was expected to fail, but returned {value:?}"),
    }
}
