//! From a URL to a WebSocket connection.

use http::{HeaderValue, Uri, header::SEC_WEBSOCKET_PROTOCOL, uri::Authority};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use super::tls;
use crate::cli::error::{Error, Result};

/// Bytes both ways.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// An open connection.
pub struct Socket {
    pub stream: WebSocketStream<Box<dyn Transport>>,
    /// What both sides speak.
    pub protocol: String,
}

impl Socket {
    /// Whether one stream can be ended while the others go on.
    pub fn closes(&self) -> bool {
        self.protocol.starts_with("v5.")
    }
}

/// Opens `url`, which the runtime gave, offering `protocols`.
///
/// # Errors
/// In a sentence that says what failed.
pub async fn connect(url: &str, protocols: &'static str) -> Result<Socket> {
    let wrong = |why: &str| Error::new(format!("the runtime gave a streaming URL that can't be used: {why}"));
    let uri: Uri = url.parse().map_err(|_| wrong("it is none"))?;
    let authority = uri.authority().cloned().ok_or_else(|| wrong("it names no server"))?;
    let secure = match uri.scheme_str() {
        Some("http" | "ws") => false,
        Some("https" | "wss") => true,
        _ => return Err(wrong("it is neither http nor https")),
    };
    let failed = |source: &dyn std::fmt::Display| {
        Error::new(format!(
            "connect to the runtime's streaming server {authority}: {source}"
        ))
    };
    let transport = transport(&authority, secure).await.map_err(|source| failed(&source))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = format!("{}://{authority}{path}", if secure { "wss" } else { "ws" })
        .into_client_request()
        .map_err(|source| failed(&source))?;
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
    let (stream, answer) = client_async_with_config(request, transport, Some(WebSocketConfig::default()))
        .await
        .map_err(|error| match &error {
            tungstenite::Error::Http(answer) => {
                let body = answer.body().as_deref().unwrap_or_default();
                failed(&format!("{} {}", answer.status(), String::from_utf8_lossy(body).trim()))
            }
            _ => failed(&error),
        })?;
    let protocol = answer
        .headers()
        .get(SEC_WEBSOCKET_PROTOCOL)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    Ok(Socket { stream, protocol })
}

async fn transport(authority: &Authority, secure: bool) -> std::io::Result<Box<dyn Transport>> {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    // A server that listens everywhere says so in its URL.
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        host => host,
    };
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    if !secure {
        return Ok(Box::new(stream));
    }
    let config = tls::config().map_err(std::io::Error::other)?;
    let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
    Ok(Box::new(stream))
}
