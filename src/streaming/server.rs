//! The listener, and the tasks of all connections.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Ended, Error, Grant, Urls, forward,
    http::{self, Protocol, Upgrade},
    inbox::{Budget, Pool},
    lobby::{Lobby, Place},
    outgoing::{Activity, Envelope, Outgoing},
    remote, spdy,
    tls::Tls,
    transport::Transport,
    websocket::{Feed, Messages},
};
use crate::{config::Streaming as Settings, node::Node};

/// How long a client may take for its request, with TLS and all.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Longest request that is read; they are a few hundred bytes.
const REQUEST_SIZE: usize = 16 << 10;
/// A client that is gone without a word is noticed after about two minutes.
const KEEPALIVE: (u32, u32, u32) = (60, 15, 4);
/// How often certificates are looked after.
const REFRESH: Duration = Duration::from_secs(60);
/// How long sessions may take to say goodbye when the daemon ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// The running server.
#[derive(Debug)]
pub struct Server {
    urls: Arc<Urls>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// What each connection needs.
struct Room {
    node: Node,
    urls: Arc<Urls>,
    settings: Settings,
    tls: Option<Tls>,
    pool: Arc<Pool>,
    stop: CancellationToken,
}

impl Server {
    /// Listens and serves `node`'s containers.
    ///
    /// # Errors
    /// When the address can't be had or TLS not be spoken.
    pub async fn start(settings: &Settings, node: Node) -> Result<Self, Error> {
        let address = SocketAddr::new(settings.address, settings.port);
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let actual = listener.local_addr().map_err(failed)?;
        let tls = match settings.tls {
            false => None,
            true => {
                let settings = settings.clone();
                let tls = tokio::task::spawn_blocking(move || Tls::open(&settings)).await;
                Some(tls.map_err(|error| Error::Tls(error.to_string()))??)
            }
        };
        if tls.is_none() && !actual.ip().is_loopback() {
            tracing::warn!(address = %actual, "streams leave this node without encryption; see [streaming] tls");
        }
        tracing::info!(address = %actual, tls = tls.is_some(), "streams are served");
        let urls = Arc::new(Urls::new(actual, tls.is_some()));
        let stop = CancellationToken::new();
        let room = Arc::new(Room {
            node,
            urls: urls.clone(),
            settings: settings.clone(),
            tls,
            pool: Arc::default(),
            stop: stop.clone(),
        });
        let task = tokio::spawn(serve(listener, room));
        Ok(Self { urls, stop, task })
    }

    /// Who gives out this server's URLs.
    #[must_use]
    pub fn urls(&self) -> Arc<Urls> {
        self.urls.clone()
    }

    /// Ends every session with a word to its client, and the listener.
    pub async fn shut_down(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the streaming server ended badly");
        }
    }
}

async fn serve(listener: TcpListener, room: Arc<Room>) {
    let mut connections = JoinSet::new();
    let lobby = Arc::<Lobby>::default();
    let mut refresh = tokio::time::interval(REFRESH);
    loop {
        tokio::select! {
            () = room.stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            _ = refresh.tick() => {
                if room.tls.is_some() {
                    let room = room.clone();
                    connections.spawn_blocking(move || room.tls.as_ref().inspect(|tls| tls.refresh()).is_some());
                }
            }
            accepted = accept(&listener) => match accepted {
                Ok(stream) => {
                    let (room, place) = (room.clone(), lobby.enter());
                    connections.spawn(async move {
                        connection(&room, stream, place).await;
                        true
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a stream's client");
                    // Without descriptors, accept fails again at once; sessions that end give some back.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(GOODBYE, all).await.is_err() {
        tracing::warn!(count = connections.len(), "streams were cut off");
        connections.shutdown().await;
    }
}

/// The next client. Cancel-safe.
async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let (idle, interval, count) = KEEPALIVE;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &count)?;
    Ok(stream)
}

async fn connection(room: &Room, stream: TcpStream, place: Place) {
    let decided = tokio::select! {
        decided = timeout(REQUEST_LIMIT, request(room, stream)) => decided,
        () = place.turned_out() => return,
        () = room.stop.cancelled() => return,
    };
    drop(place);
    let Ok(Some((transport, early, upgrade))) = decided else {
        return;
    };
    let purpose = format!("{:?} by {:?}", upgrade.grant, upgrade.protocol);
    match session(room, transport, early, upgrade).await {
        Ok(()) => tracing::debug!(purpose, "stream ended"),
        Err(ended) => tracing::debug!(purpose, reason = %ended, "stream ended"),
    }
}

/// Serves one request; its connection if it is upgraded.
async fn request(room: &Room, stream: TcpStream) -> Option<(Transport, bytes::Bytes, Upgrade)> {
    let transport = match &room.tls {
        None => Transport::Plain(stream),
        Some(tls) => match tls.acceptor().accept(stream).await {
            Ok(stream) => Transport::Tls(Box::new(stream)),
            Err(error) => {
                tracing::debug!(%error, "TLS with a stream's client");
                return None;
            }
        },
    };
    let agreed = Mutex::new(None);
    let service = service_fn(|request| {
        let (answer, upgrade) = http::answer(&room.urls, request);
        if upgrade.is_some() {
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = upgrade;
        }
        std::future::ready(Ok::<_, std::convert::Infallible>(answer))
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(REQUEST_SIZE)
        .serve_connection(TokioIo::new(transport), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "request for a stream");
        return None;
    }
    let mut upgrade: Upgrade = agreed.into_inner().unwrap_or_else(PoisonError::into_inner)?;
    let upgraded = (&mut upgrade.connection).await.ok()?;
    let parts = upgraded.downcast::<TokioIo<Transport>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf, upgrade))
}

/// Everything after the upgrade.
async fn session(room: &Room, transport: Transport, early: bytes::Bytes, upgrade: Upgrade) -> Result<(), Ended> {
    let (source, write) = transport.split(early)?;
    let activity = Activity::new();
    let envelope = match upgrade.protocol {
        Protocol::Tunnel => Envelope::WebSocket,
        _ => Envelope::None,
    };
    let outgoing = Outgoing::new(write, envelope, activity.clone());
    let client = Client {
        node: &room.node,
        settings: &room.settings,
        stop: &room.stop,
        activity,
        outgoing: outgoing.clone(),
        budget: Budget::of(room.pool.clone()),
    };
    let result = match (upgrade.protocol, upgrade.grant) {
        (Protocol::Channels(form, version), Grant::PortForward { id, .. }) => {
            let messages = Messages::new(source, outgoing.clone());
            forward::channels(&client, messages, form, version, &id, &upgrade.ports).await
        }
        (Protocol::Channels(form, version), grant) => {
            let messages = Messages::new(source, outgoing.clone());
            remote::channels(&client, messages, form, version, grant).await
        }
        (protocol, grant) => {
            let feed = match protocol {
                Protocol::Tunnel => Feed::Tunnel(Messages::new(source, outgoing.clone()), bytes::BytesMut::new()),
                _ => Feed::Plain(source),
            };
            let (mut connection, incoming) =
                spdy::connection(feed, outgoing.clone(), client.activity.clone(), client.budget.clone());
            match (grant, protocol) {
                (Grant::PortForward { id, ports }, _) => {
                    forward::spdy(&client, &mut connection, incoming, &id, &ports).await
                }
                (grant, Protocol::Spdy(version)) => {
                    remote::spdy(&client, &mut connection, incoming, version, grant).await
                }
                _ => Ok(()),
            }
        }
    };
    // A client that reads nothing any more is not waited for.
    let _ = timeout(GOODBYE, outgoing.close()).await;
    result
}

/// What a session has around it.
pub struct Client<'a> {
    pub node: &'a Node,
    pub settings: &'a Settings,
    pub stop: &'a CancellationToken,
    pub activity: Arc<Activity>,
    pub outgoing: Arc<Outgoing>,
    pub budget: Arc<Budget>,
}

impl Client<'_> {
    /// How long the client may take to open its streams.
    pub fn creation_timeout(&self) -> Duration {
        Duration::from_secs(self.settings.creation_timeout_secs)
    }

    /// Completes when the session must end for a reason that is not the client's nor the container's.
    pub async fn outside(&self) -> Ended {
        tokio::select! {
            () = self.stop.cancelled() => Ended::Stopping,
            () = self.activity.idle(Duration::from_secs(self.settings.idle_timeout_secs)) => Ended::Idle,
        }
    }
}
