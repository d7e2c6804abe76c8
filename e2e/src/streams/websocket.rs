//! A WebSocket, and SPDY through it.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Message, protocol::WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::connect_url;
use crate::{Result, lab::Lab};

/// Opens a WebSocket; an empty `protocol` offers none.
///
/// # Errors
/// When the server refuses.
pub async fn open(lab: &Lab, url: &str, protocol: &str) -> Result<WebSocketStream<TcpStream>> {
    let stream = connect_url(lab, url).await?;
    let mut request = url.replacen("http", "ws", 1).into_client_request()?;
    if !protocol.is_empty() {
        request
            .headers_mut()
            .insert("sec-websocket-protocol", HeaderValue::from_str(protocol)?);
    }
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let (socket, answer) = client_async_with_config(request, stream, Some(config)).await?;
    let agreed = answer.headers().get("sec-websocket-protocol");
    assert_eq!(
        agreed.map_or("", |value| value.to_str().unwrap_or("?")),
        protocol,
        "the subprotocol agreed on"
    );
    Ok(socket)
}

/// A stream of bytes through the binary messages of a WebSocket.
///
/// # Errors
/// When the server refuses.
pub async fn tunnel(lab: &Lab, url: &str) -> Result<DuplexStream> {
    let socket = open(lab, url, "SPDY/3.1+portforward.k8s.io").await?;
    let (inner, outer) = tokio::io::duplex(256 << 10);
    let (mut sink, mut messages) = socket.split();
    let (mut read, mut write) = tokio::io::split(inner);
    tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            if let Message::Binary(data) = message
                && write.write_all(&data).await.is_err()
            {
                break;
            }
        }
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut block = vec![0; 64 << 10];
        while let Ok(count @ 1..) = read.read(&mut block).await {
            if sink.send(Message::binary(block[..count].to_vec())).await.is_err() {
                break;
            }
        }
        let _ = sink.close().await;
    });
    Ok(outer)
}
