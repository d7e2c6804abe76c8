//! What crictl of 2026 sent after the upgrade, byte by byte: client-go's SPDY and WebSocket executors and its
//! port-forward. The files hold the client's side of whole sessions.

use std::{io::Cursor, sync::Arc};

use bytes::BytesMut;

use super::{
    inbox::Inbox,
    outgoing::{Activity, Envelope, Outgoing},
    spdy::{Stream, connection},
    transport::{Source, WriteHalf},
    websocket::{Channels, Feed, Form, Messages},
};

fn bytes(hex: &str) -> Cursor<Vec<u8>> {
    let digits: String = hex.split_whitespace().collect();
    Cursor::new(hex::decode(digits).expect("hexadecimal digits"))
}

fn outgoing(envelope: Envelope) -> Arc<Outgoing> {
    let nowhere = WriteHalf::Other(Box::new(tokio::io::sink()));
    Outgoing::new(nowhere, envelope, Activity::new())
}

/// The streams of a recorded connection, with everything in them.
async fn streams(feed: Feed, outgoing: Arc<Outgoing>) -> Vec<Stream> {
    let (mut connection, mut incoming) = connection(feed, outgoing, Activity::new(), Arc::default());
    connection.run().await;
    let mut streams = Vec::new();
    while let Some(stream) = incoming.recv().await {
        streams.push(stream);
    }
    streams
}

async fn all(stream: &Stream) -> String {
    let mut read = Vec::new();
    while let Ok(Some(piece)) = stream.read().await {
        read.extend_from_slice(&piece);
    }
    String::from_utf8(read).expect("text")
}

fn kinds(streams: &[Stream]) -> Vec<&str> {
    streams
        .iter()
        .map(|stream| stream.header("streamType").unwrap_or("none"))
        .collect()
}

#[tokio::test]
async fn exec_over_spdy() {
    let feed = Feed::Plain(Source::new(bytes(include_str!("exec-spdy.hex"))));
    let streams = streams(feed, outgoing(Envelope::None)).await;
    assert_eq!(kinds(&streams), ["error", "stdin", "stdout", "stderr"]);
    assert_eq!(streams.iter().map(Stream::number).collect::<Vec<_>>(), [1, 3, 5, 7]);
    assert_eq!(all(&streams[1]).await, "hello\n");
}

#[tokio::test]
async fn a_terminal_over_spdy() {
    let feed = Feed::Plain(Source::new(bytes(include_str!("tty-spdy.hex"))));
    let streams = streams(feed, outgoing(Envelope::None)).await;
    assert_eq!(kinds(&streams), ["error", "stdin", "stdout", "resize"]);
    assert_eq!(all(&streams[3]).await, "{\"Width\":99,\"Height\":33}\n");
}

async fn is_a_pair(streams: Vec<Stream>) {
    assert_eq!(kinds(&streams), ["error", "data"]);
    for stream in &streams {
        assert_eq!(
            (stream.header("port"), stream.header("requestID")),
            (Some("8080"), Some("0"))
        );
    }
    assert_eq!(all(&streams[1]).await, "ping\n");
}

#[tokio::test]
async fn port_forward_over_spdy() {
    let feed = Feed::Plain(Source::new(bytes(include_str!("forward-spdy.hex"))));
    is_a_pair(streams(feed, outgoing(Envelope::None)).await).await;
}

#[tokio::test]
async fn port_forward_over_spdy_in_a_websocket() {
    let outgoing = outgoing(Envelope::WebSocket);
    let messages = Messages::new(
        Source::new(bytes(include_str!("forward-websocket.hex"))),
        outgoing.clone(),
    );
    is_a_pair(streams(Feed::Tunnel(messages, BytesMut::new()), outgoing).await).await;
}

#[tokio::test]
async fn exec_over_websocket() {
    let outgoing = outgoing(Envelope::None);
    let messages = Messages::new(Source::new(bytes(include_str!("exec-websocket.hex"))), outgoing.clone());
    let stdin = Arc::new(Inbox::new(Arc::default()));
    let inboxes = vec![Some(stdin.clone())];
    let mut channels = Channels::new(messages, Form::Binary, true, inboxes, Activity::new(), outgoing);
    channels.run().await;
    assert_eq!(stdin.read().await.unwrap().unwrap(), "hello\n");
    assert_eq!(stdin.read().await, Ok(None), "channel 255 has half-closed it");
}
