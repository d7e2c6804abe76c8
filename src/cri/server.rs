//! The gRPC server on a unix socket, and its thread.

use std::{
    io,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::socket::{setsockopt, sockopt},
    unistd::{Gid, Group, chown},
};
use tokio::{
    net::{UnixListener, UnixStream},
    runtime::Handle,
    sync::oneshot,
};
use tokio_stream::{StreamExt as _, wrappers::UnixListenerStream};
use tokio_util::sync::CancellationToken;
use wharf_proto::{
    api::wharf_server::WharfServer,
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
    health::health_server::HealthServer,
};

use super::{
    Face,
    audit::Audit,
    authority,
    elsewhere::{Elsewhere, Place},
    gathered::Gathered,
    linger::Lingering,
    lists::Lists,
    watched::{Watched, Watchers},
};
use crate::{config, memory::Work, sys, telemetry::Telemetry};

/// Largest message in either direction: lists of thousands of containers fit (feature row J10).
pub(super) const MESSAGE_LIMIT: usize = 32 << 20;

/// How much the thread that answers CRI is preferred to others: it has little to do, and whoever asks waits for it.
const NICE: i32 = -10;
/// Its turns are short, so that they come soon: the kernel's own are of some milliseconds.
const SLICE_NS: u64 = 100_000;

/// How many bytes may be on their way to a client that does not read yet; the kernel doubles it for its own needs. The list of
/// a thousand containers must fit: a socket has room for 208 KiB otherwise, wakes the writer when three quarters of it are
/// read, and each such turn of the two waits for the scheduler twice. Memory is taken only for what is on its way.
const ON_ITS_WAY: usize = 2 << 20;

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
    /// The file for notes on who asked for what.
    #[error("open audit.file {}: {source}", path.display())]
    Audit {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Serving failed.
    #[error("serve CRI: {0}")]
    Serve(#[from] tonic::transport::Error),
    /// There can't be a thread that serves.
    #[error("start the thread that serves CRI: {0}")]
    Thread(io::Error),
    /// It has ended without a word.
    #[error("the thread that serves CRI has died")]
    Died,
}

/// A bound socket, ready to serve.
#[derive(Debug)]
pub struct Server {
    listener: StdUnixListener,
    path: PathBuf,
    watchers: Watchers,
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
        let listener = StdUnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        if gid.is_some() {
            chown(path, None, gid).map_err(|errno| failed(errno.into()))?;
        }
        Ok(Self {
            listener,
            path: path.to_owned(),
            watchers: Watchers::default(),
        })
    }

    /// Has calls counted, and noted as the settings say.
    ///
    /// # Errors
    /// When the file for notes can't be opened.
    pub fn watched(mut self, telemetry: Telemetry, settings: &config::Audit) -> Result<Self, Error> {
        let open = |path: &PathBuf| {
            Audit::open(path).map_err(|source| Error::Audit {
                path: path.clone(),
                source,
            })
        };
        self.watchers = Watchers {
            telemetry,
            audit: settings.file.as_ref().map(open).transpose()?,
            audit_reads: settings.reads,
        };
        Ok(self)
    }

    /// Serves on a thread of its own until `stop` is cancelled, then lets running calls end and removes the socket. What
    /// takes more than a look at the memory is done by the runtime that this is called on, and counted as `work`.
    ///
    /// # Errors
    /// When there can't be such a thread.
    pub fn start(self, face: Face, work: Work, stop: CancellationToken) -> Result<Serving, Error> {
        let elsewhere = Place {
            runtime: Handle::current(),
            work,
        };
        let reader = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::Thread)?;
        let cut_off = CancellationToken::new();
        let cut = cut_off.clone();
        let audit = self.watchers.audit.clone();
        let (sender, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("wharf-cri".into())
            .spawn(move || {
                if let Err(error) = sys::prefer_this_thread(NICE, SLICE_NS) {
                    tracing::debug!(%error, "the thread that answers CRI is not preferred to others");
                }
                let result = reader.block_on(async {
                    tokio::select! {
                        result = self.serve(face, elsewhere, stop.cancelled_owned()) => result,
                        () = cut.cancelled() => Ok(()),
                    }
                });
                // What was cut off ends here.
                drop(reader);
                // Fails only when nobody waits any more.
                let _ = sender.send(result);
            })
            .map_err(Error::Thread)?;
        Ok(Serving { ended, cut_off, audit })
    }

    /// Clients written in Go may send the URL-encoded socket path as `:authority`: see [`authority`].
    async fn serve(self, face: Face, place: Place, stop: impl Future<Output = ()>) -> Result<(), Error> {
        let cri = RuntimeServiceServer::new(face.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let images = ImageServiceServer::new(face.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        let own = WharfServer::new(face.clone());
        let incoming =
            UnixListenerStream::new(UnixListener::from_std(self.listener).map_err(Error::Thread)?).map(|stream| {
                stream.map(|stream| {
                    widen(&stream);
                    Gathered::new(authority::Lenient::new(Lingering::new(stream)))
                })
            });
        let watchers = self.watchers;
        let result = tonic::transport::Server::builder()
            .http2_max_pending_accept_reset_streams(Some(MOST_GIVEN_UP))
            .add_service(HealthServer::new(face.clone()))
            .add_service(Watched::new(
                watchers.clone(),
                Elsewhere::new(place.clone(), Lists::new(face, cri)),
            ))
            .add_service(Watched::new(watchers.clone(), Elsewhere::new(place.clone(), images)))
            .add_service(Watched::new(watchers, Elsewhere::new(place, own)))
            .serve_with_incoming_shutdown(incoming, stop)
            .await;
        let _ = std::fs::remove_file(&self.path);
        Ok(result?)
    }
}

/// The server while it serves.
#[derive(Debug)]
pub struct Serving {
    ended: oneshot::Receiver<Result<(), Error>>,
    cut_off: CancellationToken,
    audit: Option<Audit>,
}

impl Serving {
    /// Opens the file of who asked for what anew, if there is one: a rotation has moved it away.
    pub fn reopen_audit(&self) {
        if let Some(audit) = &self.audit {
            audit.reopen();
        }
    }

    /// Waits for its end. Cancel-safe; nothing comes after the first answer.
    ///
    /// # Errors
    /// When the transport failed, or the thread has died.
    pub async fn ended(&mut self) -> Result<(), Error> {
        (&mut self.ended).await.unwrap_or(Err(Error::Died))
    }

    /// Ends it with all calls that still run, and waits for that.
    ///
    /// # Errors
    /// As [`Serving::ended`].
    pub async fn cut_off(&mut self) -> Result<(), Error> {
        self.cut_off.cancel();
        self.ended().await
    }
}

/// Gives a connection room for [`ON_ITS_WAY`]. Without the privilege it is as much as the system lets anybody have.
fn widen(stream: &UnixStream) {
    if let Err(errno) = setsockopt(stream, sockopt::SndBufForce, &ON_ITS_WAY)
        && let Err(again) = setsockopt(stream, sockopt::SndBuf, &ON_ITS_WAY)
    {
        tracing::debug!(%errno, %again, "a connection keeps its small buffer");
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
