//! Streams between a client and what runs on the node: exec, attach, and connections into a pod's network.

use tokio::net::TcpStream;

use super::{Error, Node, Result};
pub use crate::containers::session::{AttachOptions, ExecOptions, Input, Output, Session};
use crate::{containers, sandbox};

impl Node {
    /// Checks what can be known before the client has connected, and gives the container's full id.
    ///
    /// # Errors
    /// When it could not work: no such container, not running, no command, no stream.
    pub fn check_exec(&self, id: &str, options: &ExecOptions) -> Result<String> {
        let _ = options;
        Ok(self.container(id)?.id.clone())
    }

    /// As [`Node::check_exec`], for an attach.
    ///
    /// # Errors
    /// When it could not work: no such container, not running, a terminal asked for where none is.
    pub fn check_attach(&self, id: &str, options: &AttachOptions) -> Result<String> {
        let _ = options;
        Ok(self.container(id)?.id.clone())
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
        self.check_exec(id, &options)?;
        Err(containers::Error::Unsupported("exec with streams is not implemented yet".into()).into())
    }

    /// Connects to a container's streams, from now on.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn attach_session(&self, id: &str, options: AttachOptions) -> Result<Session> {
        self.check_attach(id, &options)?;
        Err(containers::Error::Unsupported("attach is not implemented yet".into()).into())
    }

    /// A connection to `port` of localhost in the pod's network, by IPv4 and else by IPv6.
    ///
    /// # Errors
    /// When nobody listens there, or the pod is not ready.
    pub async fn connect_port(&self, pod: &str, port: u16) -> Result<TcpStream> {
        self.check_port_forward(pod)?;
        let _ = port;
        Err(sandbox::Error::Unsupported("port-forward is not implemented yet".into()).into())
    }
}
