//! Clients of the streaming server, written for these tests alone: SPDY by hand, WebSocket by tungstenite.

mod forward;
mod http;
mod session;
pub mod spdy;
pub mod tls;
pub mod websocket;

pub use forward::Forward;
pub use http::{Answer, upgrade};
pub use session::{Finished, Protocol, Session, Want};
use tokio::net::TcpStream;
use wharf_proto::cri as pb;

use crate::{Daemon, Result, cri, lab::Lab};

/// Every way in which a client can run a command, newest first.
pub const REMOTE: [Protocol; 10] = [
    Protocol::WebSocket("v5.channel.k8s.io"),
    Protocol::WebSocket("v4.channel.k8s.io"),
    Protocol::WebSocket("v4.base64.channel.k8s.io"),
    Protocol::WebSocket("channel.k8s.io"),
    Protocol::WebSocket("base64.channel.k8s.io"),
    Protocol::WebSocket(""),
    Protocol::Spdy("v4.channel.k8s.io"),
    Protocol::Spdy("v3.channel.k8s.io"),
    Protocol::Spdy("v2.channel.k8s.io"),
    Protocol::Spdy("channel.k8s.io"),
];

/// A connection from inside the lab.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(lab: &Lab, address: &str) -> Result<TcpStream> {
    let (init, address) = (lab.init, address.to_owned());
    // A socket belongs to the namespace of the thread that makes it; the thread is not used again.
    let made = std::thread::spawn(move || -> Result<std::net::TcpStream> {
        let namespace = std::fs::File::open(format!("/proc/{init}/ns/net"))?;
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    let stream = tokio::task::spawn_blocking(|| made.join())
        .await?
        .map_err(|_| "the thread panicked")??;
    Ok(TcpStream::from_std(stream)?)
}

/// A connection to a URL's server; with TLS when it says so.
///
/// # Errors
/// When nobody listens there, or the server does not like the client.
pub async fn connect_url(lab: &Lab, url: &str) -> Result<TcpStream> {
    let stream = connect(lab, split(url).0).await?;
    if url.starts_with("https:") {
        return tls::wrap(stream).await;
    }
    Ok(stream)
}

/// Host and path of a URL.
///
/// # Panics
/// When it is not an absolute one.
pub fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").expect("an absolute URL").1;
    rest.split_at(rest.find('/').expect("a path"))
}

impl Daemon {
    /// Asks for the URL of an exec.
    ///
    /// # Errors
    /// As the call.
    pub async fn exec_url(&self, id: &str, command: &[&str], want: Want) -> cri::Answer<String> {
        let request = pb::ExecRequest {
            container_id: id.into(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            tty: want.tty,
            stdin: want.stdin,
            stdout: want.stdout,
            stderr: want.stderr,
        };
        Ok(self.cri.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// Asks for the URL of an attach.
    ///
    /// # Errors
    /// As the call.
    pub async fn attach_url(&self, id: &str, want: Want) -> cri::Answer<String> {
        let request = pb::AttachRequest {
            container_id: id.into(),
            stdin: want.stdin,
            tty: want.tty,
            stdout: want.stdout,
            stderr: want.stderr,
        };
        Ok(self.cri.runtime.clone().attach(request).await?.into_inner().url)
    }

    /// Asks for the URL of a port-forward.
    ///
    /// # Errors
    /// As the call.
    pub async fn forward_url(&self, pod: &str, ports: &[i32]) -> cri::Answer<String> {
        let request = pb::PortForwardRequest {
            pod_sandbox_id: pod.into(),
            port: ports.to_vec(),
        };
        Ok(self.cri.runtime.clone().port_forward(request).await?.into_inner().url)
    }

    /// A command whose streams are open.
    ///
    /// # Panics
    /// When a step fails.
    pub async fn exec_session(&self, protocol: Protocol, id: &str, command: &[&str], want: Want) -> Session {
        let url = self.exec_url(id, command, want).await.expect("Exec");
        self.session(protocol, &url, want).await
    }

    /// Streams of a container's main process.
    ///
    /// # Panics
    /// When a step fails.
    pub async fn attach_session(&self, protocol: Protocol, id: &str, want: Want) -> Session {
        let url = self.attach_url(id, want).await.expect("Attach");
        self.session(protocol, &url, want).await
    }

    async fn session(&self, protocol: Protocol, url: &str, want: Want) -> Session {
        Session::open(&self.lab, protocol, url, want)
            .await
            .unwrap_or_else(|error| panic!("{protocol:?} to {url}: {error}"))
    }
}
