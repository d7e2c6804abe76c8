//! Doors for the fuzz targets (fuzz/): whole connections, from bytes that have all come.

use std::{future::Future, io::Cursor, net::SocketAddr, sync::Arc, time::Duration};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::{
    Grant, Urls, http,
    inbox::Inbox,
    outgoing::{Activity, Envelope, Outgoing},
    remote, spdy,
    transport::{Source, WriteHalf},
    websocket::{Channels, Feed, Form, Messages},
};

/// No connection whose bytes have all come takes this long, unless it waits for what never comes.
const LIMIT: Duration = Duration::from_secs(8);

/// What a client sends after an upgrade to SPDY.
pub fn spdy(bytes: &[u8]) {
    let feed = Feed::Plain(Source::new(Cursor::new(bytes.to_vec())));
    to_its_end(streams(feed, outgoing(Envelope::None)));
}

/// The same in the messages of a WebSocket.
pub fn tunnel(bytes: &[u8]) {
    let outgoing = outgoing(Envelope::WebSocket);
    let messages = Messages::new(Source::new(Cursor::new(bytes.to_vec())), outgoing.clone());
    to_its_end(streams(Feed::Tunnel(messages, bytes::BytesMut::new()), outgoing));
}

/// What a client sends after an upgrade to a WebSocket with channels. The first byte chooses how they are coded.
pub fn channels(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else {
        return;
    };
    let form = if choice & 1 == 0 { Form::Binary } else { Form::Base64 };
    let outgoing = outgoing(Envelope::None);
    let messages = Messages::new(Source::new(Cursor::new(bytes.to_vec())), outgoing.clone());
    let (stdin, sizes) = (
        Arc::new(Inbox::new(Arc::default())),
        Arc::new(Inbox::new(Arc::default())),
    );
    let inboxes = vec![Some(stdin.clone()), None, None, None, Some(sizes.clone())];
    let mut channels = Channels::new(messages, form, choice & 2 == 0, inboxes, Activity::new(), outgoing);
    let most = bytes.len();
    to_its_end(async move {
        let drain = async {
            let mut read = 0;
            while let Ok(Some(piece)) = stdin.read().await {
                read += piece.len();
            }
            assert!(read <= most, "{read} bytes out of {most}");
        };
        tokio::join!(channels.run(), drain, remote::fuzz_sizes(sizes));
    });
}

/// A whole request. `TOKEN` in it stands for a token that is good for an exec, `OTHER` for a port-forward.
pub fn request(bytes: &[u8]) {
    let urls = Urls::new(SocketAddr::from(([127, 0, 0, 1], 1)), false);
    let token = |grant| {
        let url = urls.url(grant).unwrap_or_default();
        url.rsplit('/').next().unwrap_or_default().to_owned()
    };
    let exec = token(Grant::Exec {
        id: "fuzz".into(),
        options: Default::default(),
    });
    let forward = token(Grant::PortForward {
        id: "fuzz".into(),
        ports: Vec::new(),
    });
    let bytes = replaced(
        &replaced(bytes, b"TOKEN", exec.as_bytes()),
        b"OTHER",
        forward.as_bytes(),
    );
    let connection = TokioIo::new(tokio::io::join(Cursor::new(bytes), tokio::io::sink()));
    to_its_end(async move {
        let service = service_fn(|request| {
            let (answer, _) = http::answer(&urls, request);
            std::future::ready(Ok::<_, std::convert::Infallible>(answer))
        });
        let server = hyper::server::conn::http1::Builder::new();
        let _ = server.serve_connection(connection, service).with_upgrades().await;
    });
}

fn replaced(bytes: &[u8], word: &[u8], with: &[u8]) -> Vec<u8> {
    match bytes.windows(word.len()).position(|window| window == word) {
        Some(at) => [&bytes[..at], with, &bytes[at + word.len()..]].concat(),
        None => bytes.to_vec(),
    }
}

fn outgoing(envelope: Envelope) -> Arc<Outgoing> {
    let nowhere = WriteHalf::Other(Box::new(tokio::io::sink()));
    Outgoing::new(nowhere, envelope, Activity::new())
}

/// Serves a connection, reading what comes on its streams and answering a little on each.
async fn streams(feed: Feed, outgoing: Arc<Outgoing>) {
    let (mut connection, mut incoming) = spdy::connection(feed, outgoing, Activity::new(), Arc::default());
    let serve = async {
        let mut served = tokio::task::JoinSet::new();
        while let Some(stream) = incoming.recv().await {
            served.spawn(async move {
                let _ = (stream.header("streamType").is_some(), stream.write(b"answer").await);
                while let Ok(Some(_)) = stream.read().await {}
                let _ = stream.finish().await;
            });
        }
        while served.join_next().await.is_some() {}
    };
    tokio::join!(connection.run(), serve);
}

/// # Panics
/// When it does not end.
fn to_its_end(connection: impl Future<Output = ()>) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    let ended = RUNTIME.with(|runtime| runtime.block_on(async { tokio::time::timeout(LIMIT, connection).await }));
    assert!(ended.is_ok(), "the connection waits for what never comes");
}
