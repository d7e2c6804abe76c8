//! The gRPC server on a unix socket.

use std::{
    io,
    os::unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group, chown};
use tokio::net::UnixListener;
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use wharf_proto::{
    api::wharf_server::WharfServer,
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};

use super::{Face, authority, lists::Lists};

/// Largest message in either direction: lists of thousands of containers fit (feature row J10).
pub(super) const MESSAGE_LIMIT: usize = 32 << 20;

/// Why the server could not listen or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket file could not be made.
    #[error("listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The group in the configuration does not exist.
    #[error("socket_group: no group named {0:?}")]
    NoGroup(String),
    /// Serving failed.
    #[error("serve CRI: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A bound socket, ready to serve.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

/// Calls of one client that it may have given up before they were looked at. Beyond that its connection is closed, with all
/// its other calls: meant against floods from the network, the usual 20 are reached by a kubelet whose deadlines pass on
/// a busy node. Only root and the socket's group can connect.
const MOST_GIVEN_UP: usize = 4096;

impl Server {
    /// Binds the socket at `path` with mode 0660 and the given group. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// When another process listens there, the group is unknown, or the system refuses.
    pub fn bind(path: &Path, group: Option<&str>) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            path: path.to_owned(),
            source,
        };
        if StdUnixStream::connect(path).is_ok() {
            return Err(failed(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process serves this socket",
            )));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let gid = match group {
            Some(name) => Some(group_id(name)?),
            None => None,
        };
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        if gid.is_some() {
            chown(path, None, gid).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until `stop` completes, then lets running calls end and removes the socket.
    ///
    /// Clients written in Go may send the URL-encoded socket path as `:authority`: see [`authority`].
    ///
    /// # Errors
    /// When the transport fails.
    pub async fn serve(self, face: Face, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let runtime = RuntimeServiceServer::new(face.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let images = ImageServiceServer::new(face.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let incoming = UnixListenerStream::new(self.listener).map(|stream| stream.map(authority::Lenient::new));
        let result = tonic::transport::Server::builder()
            .http2_max_pending_accept_reset_streams(Some(MOST_GIVEN_UP))
            .add_service(Lists::new(face.clone(), runtime))
            .add_service(images)
            .add_service(WharfServer::new(face))
            .serve_with_incoming_shutdown(incoming, stop)
            .await;
        let _ = std::fs::remove_file(&self.path);
        Ok(result?)
    }
}

fn group_id(name: &str) -> Result<Gid, Error> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(Error::NoGroup(name.to_owned())),
    }
}
