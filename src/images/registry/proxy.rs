//! Connections through the proxy that the daemon's environment names (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

use super::endpoint::is_loopback;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Which hosts are reached how. The environment is read once.
#[derive(Clone)]
pub(super) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub fn from_env() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    #[cfg(test)]
    pub fn all(proxy: &str) -> Self {
        Self(Arc::new(Matcher::builder().all(proxy.to_owned()).build()))
    }

    /// What a request on plain HTTP must show to the proxy.
    pub fn authorization(&self, uri: &Uri) -> Option<HeaderValue> {
        let (_, secret) = self.proxy(uri).filter(|_| uri.scheme_str() == Some("http"))?;
        secret
    }

    /// The proxy for `uri` and what to show to it. This machine is never reached by way of another.
    fn proxy(&self, uri: &Uri) -> Option<(Uri, Option<HeaderValue>)> {
        if uri.authority().is_some_and(|authority| is_loopback(authority.as_str())) {
            return None;
        }
        let found = self.0.intercept(uri)?;
        let secret = found.basic_auth().cloned().map(|mut value| {
            value.set_sensitive(true);
            value
        });
        Some((found.uri().clone(), secret))
    }
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
        let mut direct = self.direct.clone();
        let Some((proxy, secret)) = self.proxies.proxy(&uri) else {
            return Box::pin(async move {
                Ok(Stream {
                    inner: direct.call(uri).await?,
                    absolute: false,
                })
            });
        };
        Box::pin(async move {
            if proxy.scheme_str() != Some("http") {
                let scheme = proxy.scheme_str().unwrap_or_default();
                return Err(format!("a proxy with the scheme {scheme:?} is not supported, only http").into());
            }
            if uri.scheme_str() != Some("https") {
                return Ok(Stream {
                    inner: direct.call(proxy).await?,
                    absolute: true,
                });
            }
            let mut tunnel = Tunnel::new(proxy, direct);
            if let Some(secret) = secret {
                tunnel = tunnel.with_auth(secret);
            }
            Ok(Stream {
                inner: tunnel.call(uri).await?,
                absolute: false,
            })
        })
    }
}

/// A connection; `absolute` ones end at a proxy that wants whole addresses.
pub(super) struct Stream {
    inner: TokioIo<TcpStream>,
    absolute: bool,
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
        // This machine is reached directly.
        let near = Server::start(|_| Reply::ok("near")).await;
        http.send(get(&format!("http://{}/", near.host)))
            .await
            .map_err(|error| format!("{error:?}"))
            .unwrap();
        assert_eq!(near.seen("/").len(), 1);
        assert!(near.seen("/")[0].header("proxy-authorization").is_empty());
    }
}
