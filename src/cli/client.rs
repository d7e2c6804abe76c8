//! The connection to the daemon, and one method per call that commands make.

use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use wharf_proto::api;
use wharf_proto::api::wharf_client::WharfClient;
use wharf_proto::cri;
use wharf_proto::cri::image_service_client::ImageServiceClient;
use wharf_proto::cri::runtime_service_client::RuntimeServiceClient;

use super::Global;
use super::error::{Error, Result};
use crate::config;

/// How long a call that only reads may take unless `--timeout` says otherwise.
const QUICK: Duration = Duration::from_secs(60);
/// Largest answer: ExecSync brings up to 16 MiB for each of two streams, lists of a big node as much.
const LARGEST: usize = 256 << 20;

/// Whose objects a call is about; other runtimes ignore it.
#[derive(Clone, Copy)]
pub enum Owner {
    /// Things that kubelet made, and things that people made.
    All,
    /// A person makes something: kubelet must not see it, for it kills pods that it doesn't know.
    User,
}

/// A client of one endpoint. It connects at the first call.
pub struct Client {
    endpoint: String,
    channel: Channel,
    timeout: Option<Duration>,
}

impl Client {
    /// A client of the endpoint that the options, the environment or the configuration name.
    pub fn new(global: &Global) -> Result<Self> {
        let endpoint = endpoint(global)?;
        let channel = Endpoint::from_shared(endpoint.clone())
            .map_err(|source| Error::new(format!("\"{endpoint}\" is not a socket's address: {source}")))?
            .connect_timeout(Duration::from_secs(5))
            .connect_lazy();
        Ok(Self {
            endpoint,
            channel,
            timeout: global.timeout,
        })
    }

    /// The address in use.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What `--timeout` says.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// CRI's RuntimeService.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// CRI's ImageService.
    pub fn image(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// Wharf's own service.
    pub fn wharf(&self) -> WharfClient<Channel> {
        WharfClient::new(self.channel.clone()).max_decoding_message_size(LARGEST)
    }

    /// A request that reads, with a deadline.
    pub fn quick<T>(&self, message: T) -> Request<T> {
        self.request(message, Owner::All, Some(self.timeout.unwrap_or(QUICK)))
    }

    /// A request that may take as long as it needs, unless `--timeout` says otherwise.
    pub fn patient<T>(&self, message: T, owner: Owner) -> Request<T> {
        self.request(message, owner, self.timeout)
    }

    /// A request with this deadline.
    pub fn request<T>(&self, message: T, owner: Owner, deadline: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        let owner = match owner {
            Owner::All => "all",
            Owner::User => "user",
        };
        request
            .metadata_mut()
            .insert("wharf-owner", MetadataValue::from_static(owner));
        if let Some(deadline) = deadline {
            request.set_timeout(deadline);
        }
        request
    }

    /// The error of a call.
    pub fn error(&self, attempt: &str, status: &Status) -> Error {
        Error::call(attempt, &self.endpoint, status)
    }

    /// Lists containers.
    pub async fn containers(&self, filter: Option<cri::ContainerFilter>) -> Result<cri::ListContainersResponse> {
        let request = self.quick(cri::ListContainersRequest { filter });
        let answer = self.runtime().list_containers(request).await;
        Ok(answer.map_err(|s| self.error("list containers", &s))?.into_inner())
    }

    /// What the daemon is working at; nothing where another runtime is asked.
    pub async fn operations(&self) -> Vec<api::Operation> {
        let request = self.quick(api::ListOperationsRequest {});
        match self.wharf().list_operations(request).await {
            Ok(answer) => answer.into_inner().operations,
            Err(_) => Vec::new(),
        }
    }

    /// Lists pods.
    pub async fn pods(&self, filter: Option<cri::PodSandboxFilter>) -> Result<cri::ListPodSandboxResponse> {
        let request = self.quick(cri::ListPodSandboxRequest { filter });
        let answer = self.runtime().list_pod_sandbox(request).await;
        Ok(answer.map_err(|s| self.error("list pods", &s))?.into_inner())
    }

    /// Lists images.
    pub async fn images(&self) -> Result<cri::ListImagesResponse> {
        let request = self.quick(cri::ListImagesRequest { filter: None });
        let answer = self.image().list_images(request).await;
        Ok(answer.map_err(|s| self.error("list images", &s))?.into_inner())
    }

    /// An image by reference or id; `image` is unset in the answer when there is none.
    pub async fn image_status(&self, image: &str, verbose: bool) -> Result<cri::ImageStatusResponse> {
        let request = self.quick(cri::ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose,
        });
        let answer = self.image().image_status(request).await;
        Ok(answer
            .map_err(|s| self.error(&format!("look up image {image}"), &s))?
            .into_inner())
    }

    /// A container's status.
    pub async fn container_status(&self, id: &str, verbose: bool) -> Result<cri::ContainerStatusResponse> {
        let request = self.quick(cri::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose,
        });
        let answer = self.runtime().container_status(request).await;
        Ok(answer
            .map_err(|s| self.error(&format!("ask for container {id}"), &s))?
            .into_inner())
    }

    /// A pod's status.
    pub async fn pod_status(&self, id: &str, verbose: bool) -> Result<cri::PodSandboxStatusResponse> {
        let request = self.quick(cri::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose,
        });
        let answer = self.runtime().pod_sandbox_status(request).await;
        Ok(answer
            .map_err(|s| self.error(&format!("ask for pod {id}"), &s))?
            .into_inner())
    }

    /// Writes a checkpoint of a container to a file of the daemon's machine. A `limit` of zero is the daemon's own.
    pub async fn checkpoint_container(&self, id: &str, name: &str, location: &str, limit: Duration) -> Result<()> {
        let message = cri::CheckpointContainerRequest {
            container_id: id.to_owned(),
            location: location.to_owned(),
            timeout: i64::try_from(limit.as_millis().div_ceil(1000)).unwrap_or(i64::MAX),
        };
        let answer = self
            .runtime()
            .checkpoint_container(self.patient(message, Owner::All))
            .await;
        answer
            .map(drop)
            .map_err(|s| self.error(&format!("checkpoint container {name}"), &s))
    }

    /// Stops a container; `grace` is how long it may take to end by itself before it is killed.
    pub async fn stop_container(&self, id: &str, name: &str, grace: Duration) -> Result<()> {
        // CRI counts whole seconds; a fraction must not become "kill at once".
        let timeout = i64::try_from(grace.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let message = cri::StopContainerRequest {
            container_id: id.to_owned(),
            timeout,
        };
        let answer = self.runtime().stop_container(self.patient(message, Owner::All)).await;
        answer
            .map(|_| ())
            .map_err(|s| self.error(&format!("stop container {name}"), &s))
    }

    /// Changes a container's limits.
    pub async fn update_container(&self, id: &str, name: &str, limits: cri::LinuxContainerResources) -> Result<()> {
        let message = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..Default::default()
        };
        let answer = self
            .runtime()
            .update_container_resources(self.patient(message, Owner::All))
            .await;
        answer
            .map(|_| ())
            .map_err(|s| self.error(&format!("update container {name}"), &s))
    }

    /// Removes a container, killing it if it runs.
    pub async fn remove_container(&self, id: &str, name: &str) -> Result<()> {
        let message = cri::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let answer = self.runtime().remove_container(self.patient(message, Owner::All)).await;
        answer
            .map(|_| ())
            .map_err(|s| self.error(&format!("remove container {name}"), &s))
    }

    /// Stops a pod and all its containers.
    pub async fn stop_pod(&self, id: &str, name: &str) -> Result<()> {
        let message = cri::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self.runtime().stop_pod_sandbox(self.patient(message, Owner::All)).await;
        answer
            .map(|_| ())
            .map_err(|s| self.error(&format!("stop pod {name}"), &s))
    }

    /// Removes a pod and all its containers.
    pub async fn remove_pod(&self, id: &str, name: &str) -> Result<()> {
        let message = cri::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let answer = self
            .runtime()
            .remove_pod_sandbox(self.patient(message, Owner::All))
            .await;
        answer
            .map(|_| ())
            .map_err(|s| self.error(&format!("remove pod {name}"), &s))
    }
}

/// An operation as a state: "StopContainer: stop signal, 12 s".
pub fn at_work(operation: &api::Operation) -> String {
    format!("{}: {}, {:.0} s", operation.call, operation.stage, operation.seconds)
}

/// CRI's way of naming an image.
pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

fn endpoint(global: &Global) -> Result<String> {
    let given = global
        .endpoint
        .clone()
        .or_else(|| std::env::var("WHARF_ENDPOINT").ok().filter(|text| !text.is_empty()));
    if let Some(text) = given {
        return normalise(&text);
    }
    let socket = match (config::load(global.config.as_deref()), &global.config) {
        (Ok(config), _) => config.socket,
        (Err(problem), Some(_)) => return Err(Error::new(problem.to_string())),
        // The daemon's own file may be unreadable to this person, or wrong; the daemon may run all the same.
        (Err(_), None) => config::Config::default().socket,
    };
    Ok(format!("unix://{}", socket.display()))
}

fn normalise(text: &str) -> Result<String> {
    let path = text
        .strip_prefix("unix://")
        .or_else(|| text.strip_prefix("unix:"))
        .unwrap_or(text);
    if path.starts_with('/') {
        return Ok(format!("unix://{path}"));
    }
    Err(Error::new(format!("the endpoint \"{text}\" is not a socket's address"))
        .hint("An example: --endpoint unix:///run/wharf/wharf.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_the_absolute_path_of_a_socket() {
        for text in ["unix:///run/a.sock", "unix:/run/a.sock", "/run/a.sock"] {
            assert_eq!(normalise(text).unwrap(), "unix:///run/a.sock");
        }
        for text in ["http://localhost:1", "a.sock", "unix://a.sock", ""] {
            assert!(normalise(text).is_err(), "{text}");
        }
    }
}
