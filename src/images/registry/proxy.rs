//! Connections through the proxy that the daemon's environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`): by
//! HTTP, by HTTPS, or by SOCKS 5.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{
            Connected, Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

use super::{endpoint::is_loopback, noproxy::NoProxy, settings::Settings, tls};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Raw = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Which hosts are reached how. The environment is read once.
#[derive(Clone)]
pub(super) struct Proxies(Arc<Inner>);

struct Inner {
    matcher: Matcher,
    not: NoProxy,
}

impl Proxies {
    pub fn from_env() -> Self {
        Self(Arc::new(Inner {
            matcher: Matcher::from_env(),
            not: NoProxy::from_env(),
        }))
    }

    #[cfg(test)]
    pub fn all(proxy: &str) -> Self {
        Self(Arc::new(Inner {
            matcher: Matcher::builder().all(proxy.to_owned()).build(),
            not: NoProxy::parse("direct.invalid:5000"),
        }))
    }

    /// What a request on plain HTTP must show to the proxy.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let proxy = self.proxy(uri).filter(|_| uri.scheme_str() == Some("http"))?;
        secret(&proxy)
    }

    /// The proxy for `uri`. This machine is never reached by way of another.
    fn proxy(&self, uri: &Uri) -> Option<Intercept> {
        let near = uri.authority().is_some_and(|authority| is_loopback(authority.as_str()));
        if near || self.0.not.has(uri) {
            return None;
        }
        self.0.matcher.intercept(uri)
    }
}

/// What an HTTP proxy is to be shown.
fn secret(proxy: &Intercept) -> Option<HeaderValue> {
    let mut value = proxy.basic_auth()?.clone();
    value.set_sensitive(true);
    Some(value)
}

/// Connects directly or by way of a proxy.
#[derive(Clone)]
pub(super) struct Connector {
    pub direct: HttpConnector,
    pub proxies: Proxies,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Stream, Failure>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let direct = self.direct.clone();
        let proxy = self.proxies.proxy(&uri);
        Box::pin(async move {
            match proxy {
                None => Stream::direct(direct, uri).await,
                Some(proxy) => Stream::by(&proxy, direct, uri).await,
            }
        })
    }
}

/// A connection; `absolute` ones end at a proxy that wants whole addresses.
pub(super) struct Stream {
    inner: Raw,
    absolute: bool,
}

impl Stream {
    async fn direct(mut direct: HttpConnector, uri: Uri) -> Result<Self, Failure> {
        Ok(Self {
            inner: MaybeHttpsStream::Http(direct.call(uri).await?),
            absolute: false,
        })
    }

    async fn by(proxy: &Intercept, mut direct: HttpConnector, uri: Uri) -> Result<Self, Failure> {
        let usual = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let address = proxy.uri().clone();
        let scheme = address.scheme_str().unwrap_or_default().to_owned();
        let trust = match scheme.as_str() {
            "http" => tls::none()?,
            // Reads the system's authorities.
            "https" => tokio::task::spawn_blocking(|| tls::config(&Settings::default())).await??,
            "socks5" | "socks5h" => {
                // As Go does, the proxy is asked to find the host in either case.
                let mut tunnel = SocksV5::new(with_port(&address, 1080)?, direct);
                if let Some((user, password)) = proxy.raw_auth() {
                    tunnel = tunnel.with_auth(user.to_owned(), password.to_owned());
                }
                return Ok(Self {
                    inner: MaybeHttpsStream::Http(tunnel.call(with_port(&uri, usual)?).await?),
                    absolute: false,
                });
            }
            _ => {
                let known = "http, https and socks5";
                return Err(format!("a proxy with the scheme {scheme:?} is not supported, only {known}").into());
            }
        };
        direct.enforce_http(false);
        let mut carrier = HttpsConnectorBuilder::new()
            .with_tls_config(trust)
            .https_or_http()
            .enable_http1()
            .wrap_connector(direct);
        if uri.scheme_str() != Some("https") {
            return Ok(Self {
                inner: carrier.call(address).await?,
                absolute: true,
            });
        }
        let mut tunnel = Tunnel::new(address, carrier);
        if let Some(secret) = secret(proxy) {
            tunnel = tunnel.with_auth(secret);
        }
        Ok(Self {
            inner: tunnel.call(uri).await?,
            absolute: false,
        })
    }
}

/// `uri`, with a port in any case.
fn with_port(uri: &Uri, usual: u16) -> Result<Uri, http::Error> {
    let (host, scheme) = (uri.host().unwrap_or_default(), uri.scheme_str().unwrap_or_default());
    let port = uri.port_u16().unwrap_or(usual);
    let authority = format!("{host}:{port}");
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query("/")
        .build()
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.inner.connected().proxy(self.absolute)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Patience,
            settings::Settings,
            transport::{Http, Message},
        },
        *,
    };
    use crate::images::testing::{Reply, Server};

    #[tokio::test]
    async fn a_proxy_sees_whole_addresses_or_a_tunnel_and_its_own_password() {
        let proxy = Server::start(|seen| match seen.method.as_str() {
            "CONNECT" => Reply::status(403),
            _ => Reply::ok("by proxy"),
        })
        .await;
        let patience = Patience {
            stall: std::time::Duration::from_secs(20),
            back_off: std::time::Duration::from_millis(1),
            attempts: 1,
        };
        let http = Http::with_proxies(patience, Proxies::all(&format!("http://u:p@{}", proxy.host)));
        let get = |address: &str| Message::get(address.parse().unwrap(), Arc::new(Settings::default()));
        http.send(get("http://far.invalid/v2/"))
            .await
            .map_err(|error| format!("{error:?}"))
            .unwrap();
        let seen = proxy.seen("http://far.invalid/v2/");
        assert_eq!(seen[0].header("proxy-authorization"), "Basic dTpw");
        assert!(http.send(get("https://far.invalid/v2/")).await.is_err());
        let seen = proxy.seen("far.invalid:443");
        assert_eq!(
            (seen[0].method.as_str(), seen[0].header("proxy-authorization")),
            ("CONNECT", "Basic dTpw")
        );
        // What NO_PROXY names is not the proxy's.
        assert!(http.send(get("http://direct.invalid:5000/v2/")).await.is_err());
        assert!(proxy.seen("direct.invalid").is_empty());
        // This machine is reached directly.
        let near = Server::start(|_| Reply::ok("near")).await;
        http.send(get(&format!("http://{}/", near.host)))
            .await
            .map_err(|error| format!("{error:?}"))
            .unwrap();
        assert_eq!(near.seen("/").len(), 1);
        assert!(near.seen("/")[0].header("proxy-authorization").is_empty());
    }

    /// A SOCKS server (RFC 1928, 1929) that wants a password and takes each request to `to`; tells what it was asked for.
    async fn socks(to: String) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (sender, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 64];
            let read = client.read(&mut bytes).await.unwrap();
            assert_eq!(&bytes[..read], [5, 1, 2]);
            client.write_all(&[5, 2]).await.unwrap();
            let read = client.read(&mut bytes).await.unwrap();
            assert_eq!(&bytes[..read], [&[1, 1][..], b"u", &[1], b"p"].concat());
            client.write_all(&[1, 0]).await.unwrap();
            let read = client.read(&mut bytes).await.unwrap();
            assert_eq!(bytes[..4], [5, 1, 0, 3]);
            let (name, port) = (
                String::from_utf8_lossy(&bytes[5..read - 2]),
                u16::from_be_bytes([bytes[read - 2], bytes[read - 1]]),
            );
            sender.send(format!("{name}:{port}")).unwrap();
            client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 1]).await.unwrap();
            let mut upstream = TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
        });
        (address, told)
    }

    #[tokio::test]
    async fn a_socks_proxy_finds_the_host_and_gets_its_password() {
        let registry = Server::start(|_| Reply::ok("by socks")).await;
        let (proxy, mut told) = socks(registry.host.clone()).await;
        let patience = Patience {
            stall: std::time::Duration::from_secs(20),
            back_off: std::time::Duration::from_millis(1),
            attempts: 1,
        };
        let http = Http::with_proxies(patience, Proxies::all(&format!("socks5h://u:p@{proxy}")));
        let message = Message::get("http://far.invalid/v2/".parse().unwrap(), Arc::new(Settings::default()));
        http.send(message).await.map_err(|error| format!("{error:?}")).unwrap();
        assert_eq!(told.recv().await.unwrap(), "far.invalid:80");
        let seen = registry.seen("/v2/");
        assert_eq!(
            (seen[0].header("host"), seen[0].header("proxy-authorization")),
            ("far.invalid", "")
        );
    }
}
