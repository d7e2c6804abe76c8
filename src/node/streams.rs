//! What a client has with something that runs on the node: exec, attach, signals, and connections into a pod's network.

use tokio::net::TcpStream;

use super::{Error, Node, Result};
pub use crate::containers::session::{AttachOptions, ExecOptions, Input, Output, Session};
use crate::{containers::session, netns, sandbox};

impl Node {
    /// Checks what can be known before the client has connected, and gives the container's full id.
    ///
    /// # Errors
    /// When it could not work: no such container, not running, no command.
    pub fn check_exec(&self, id: &str, options: &ExecOptions) -> Result<String> {
        let container = self.container(id)?;
        options.check(&container)?;
        Ok(container.id.clone())
    }

    /// As [`Node::check_exec`], for an attach.
    ///
    /// # Errors
    /// When it could not work: no such container, not running.
    pub fn check_attach(&self, id: &str, options: &AttachOptions) -> Result<String> {
        let container = self.container(id)?;
        options.check(&container)?;
        Ok(container.id.clone())
    }

    /// Checks that connections into a pod can be made, and gives its full id.
    ///
    /// # Errors
    /// When there is no such pod, or it is not ready.
    pub fn check_port_forward(&self, pod: &str) -> Result<String> {
        let pod = self.pod(pod)?;
        if pod.is_ready() {
            Ok(pod.id.clone())
        } else {
            Err(Error::State(format!("pod sandbox {} is not ready", pod.id)))
        }
    }

    /// Runs a command in a container with the client's streams.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn exec_session(&self, id: &str, options: ExecOptions) -> Result<Session> {
        Ok(session::exec(&self.container(id)?, options).await?)
    }

    /// Connects to a container's streams, from now on.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn attach_session(&self, id: &str, options: AttachOptions) -> Result<Session> {
        Ok(session::attach(&self.container(id)?, options).await?)
    }

    /// Sends signal `number` to the first process of a container.
    ///
    /// # Errors
    /// When there is no such signal or container, or it does not run.
    pub async fn signal_container(&self, id: &str, number: i32) -> Result<()> {
        let container = self.container(id)?;
        if !(1..=64).contains(&number) {
            return Err(Error::Invalid(format!("{number} is no signal; there are 1 to 64")));
        }
        Ok(session::signal(&container, number).await?)
    }

    /// A connection to `port` of localhost in the pod's network, by IPv4 and else by IPv6.
    ///
    /// # Errors
    /// When nobody listens there, or the pod is not ready.
    pub async fn connect_port(&self, pod: &str, port: u16) -> Result<TcpStream> {
        let id = self.check_port_forward(pod)?;
        let pod = self.pod(&id)?;
        let config = pod.record.get().config.clone().unwrap_or_default();
        let namespace = (!sandbox::host_network(&config)).then(|| pod.paths.namespaces().join("net"));
        netns::connect(namespace, port)
            .await
            .map_err(|error| Error::State(format!("pod sandbox {id}: {error}")))
    }
}
