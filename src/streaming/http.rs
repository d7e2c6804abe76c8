//! Requests: whether their token is good, and which protocol client and server agree on.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, upgrade::OnUpgrade};

use super::{
    Grant, Urls,
    websocket::{self, Form},
};

const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_PROTOCOLS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// Subprotocols over SPDY, by the age of Kubernetes that they came with.
const REMOTE: [(&str, Remote); 4] = [
    ("v4.channel.k8s.io", Remote::V4),
    ("v3.channel.k8s.io", Remote::V3),
    ("v2.channel.k8s.io", Remote::V2),
    ("channel.k8s.io", Remote::V1),
];
const FORWARD: &str = "portforward.k8s.io";
/// SPDY in the messages of a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What changed in the versions of exec's and attach's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub enum Remote {
    /// The server half-closes standard input's stream at once.
    V1,
    /// It does not.
    V2,
    /// Terminals have a stream for their size.
    V3,
    /// The outcome is a status in JSON instead of a text for errors.
    V4,
    /// WebSocket streams can be half-closed.
    V5,
}

/// What client and server speak after the upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Spdy(Remote),
    /// SPDY in the messages of a WebSocket.
    Tunnel,
    Channels(Form, Remote),
}

/// A connection that changes its protocol.
pub struct Upgrade {
    pub grant: Grant,
    pub protocol: Protocol,
    /// The ports of a port-forward over channels, which must be known before its first byte.
    pub ports: Vec<u16>,
    pub connection: OnUpgrade,
}

type Answer = Response<Full<Bytes>>;

/// Answers a request; with an upgrade if client and server agree.
pub fn answer(urls: &Urls, mut request: Request<Incoming>) -> (Answer, Option<Upgrade>) {
    if request.method() != Method::GET && request.method() != Method::POST {
        return (
            refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST lead to a stream\n"),
            None,
        );
    }
    // Before anything else is said: who has no token learns nothing.
    let Some(grant) = urls.redeem(request.uri().path()) else {
        let text = "this URL was used, is older than a minute, or was never given\n";
        return (refusal(StatusCode::NOT_FOUND, text), None);
    };
    let forwards = matches!(grant, Grant::PortForward { .. });
    let headers = request.headers();
    let agreed = if !names(headers, &header::CONNECTION, "upgrade") {
        Err(refusal(StatusCode::BAD_REQUEST, "the request must upgrade its connection\n").into())
    } else if names(headers, &header::UPGRADE, "websocket") {
        websocket(headers, forwards)
    } else if names(headers, &header::UPGRADE, SPDY) {
        spdy(headers, forwards)
    } else {
        Err(refusal(
            StatusCode::BAD_REQUEST,
            "the upgrade must be to SPDY/3.1 or to websocket\n",
        )
        .into())
    };
    let (protocol, answer) = match agreed {
        Ok(agreed) => agreed,
        Err(refusal) => return (*refusal, None),
    };
    let ports = match (protocol, &grant) {
        (Protocol::Channels(..), Grant::PortForward { ports, .. }) => {
            match channel_ports(request.uri().query().unwrap_or_default(), ports) {
                Ok(ports) => ports,
                Err(text) => return (refusal(StatusCode::BAD_REQUEST, &text), None),
            }
        }
        _ => Vec::new(),
    };
    let upgrade = Upgrade {
        grant,
        protocol,
        ports,
        connection: hyper::upgrade::on(&mut request),
    };
    (answer, Some(upgrade))
}

fn refusal(code: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::from(text.to_owned()));
    *answer.status_mut() = code;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, text);
    // One connection, one stream.
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn switching(upgrade: &'static str, more: &[(HeaderName, String)]) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(upgrade));
    for (name, value) in more {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    answer
}

/// Whether a header that is a list has `word`, in any case.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    list(headers, name).any(|value| value.eq_ignore_ascii_case(word))
}

fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// The client's favourite among what we speak. Clients older than the negotiation send no list, and speak the first
/// version.
fn spdy(headers: &HeaderMap, forwards: bool) -> Result<(Protocol, Answer), Box<Answer>> {
    let offered: Vec<_> = list(headers, &STREAM_PROTOCOL).collect();
    let spoken: Vec<(&str, Remote)> = if forwards {
        vec![(FORWARD, Remote::V4)]
    } else {
        REMOTE.to_vec()
    };
    if offered.is_empty() {
        return Ok((Protocol::Spdy(Remote::V1), switching(SPDY, &[])));
    }
    let found = offered
        .iter()
        .find_map(|offer| spoken.iter().find(|(name, _)| name == offer));
    if let Some((name, version)) = found {
        let answer = switching(SPDY, &[(STREAM_PROTOCOL, (*name).to_owned())]);
        return Ok((Protocol::Spdy(*version), answer));
    }
    let names: Vec<_> = spoken.iter().map(|(name, _)| *name).collect();
    let text = format!(
        "no common stream protocol: the client speaks {}; the server speaks {}\n",
        offered.join(", "),
        names.join(", ")
    );
    let mut answer = refusal(StatusCode::FORBIDDEN, &text);
    for name in names {
        answer
            .headers_mut()
            .append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(name));
    }
    Err(answer.into())
}

fn websocket(headers: &HeaderMap, forwards: bool) -> Result<(Protocol, Answer), Box<Answer>> {
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(refusal(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing\n").into());
    };
    if !names(headers, &header::SEC_WEBSOCKET_VERSION, "13") {
        let mut answer = refusal(StatusCode::UPGRADE_REQUIRED, "only version 13 of WebSocket is spoken\n");
        let version = HeaderValue::from_static("13");
        answer.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
        return Err(answer.into());
    }
    let mut more = vec![(header::SEC_WEBSOCKET_ACCEPT, websocket::accept_key(key.as_bytes()))];
    let offered: Vec<_> = websocket::offered(headers).collect();
    if offered.is_empty() {
        return Ok((
            Protocol::Channels(Form::Binary, Remote::V1),
            switching("websocket", &more),
        ));
    }
    let found = offered
        .iter()
        .find_map(|offer| channels(offer, forwards).map(|protocol| (protocol, *offer)));
    let Some((protocol, name)) = found else {
        let text = format!("no common subprotocol: the client speaks {}\n", offered.join(", "));
        return Err(refusal(StatusCode::FORBIDDEN, &text).into());
    };
    more.push((header::SEC_WEBSOCKET_PROTOCOL, name.to_owned()));
    Ok((protocol, switching("websocket", &more)))
}

fn channels(name: &str, forwards: bool) -> Option<Protocol> {
    use Form::{Base64, Binary};
    Some(match (name, forwards) {
        (TUNNEL, true) => Protocol::Tunnel,
        ("v5.channel.k8s.io", false) => Protocol::Channels(Binary, Remote::V5),
        ("v4.channel.k8s.io", _) => Protocol::Channels(Binary, Remote::V4),
        ("v4.base64.channel.k8s.io", _) => Protocol::Channels(Base64, Remote::V4),
        ("channel.k8s.io", false) => Protocol::Channels(Binary, Remote::V1),
        ("base64.channel.k8s.io", false) => Protocol::Channels(Base64, Remote::V1),
        _ => return None,
    })
}

/// Most ports of one connection over channels: their numbers have one character in Base64.
const CHANNEL_PORTS: usize = 32;

/// The ports of a port-forward over channels: those of the query, of which each must be among the granted ones if there
/// are any; without a query, the granted ones.
fn channel_ports(query: &str, granted: &[u16]) -> Result<Vec<u16>, String> {
    let mut ports = query_ports(query)?;
    if ports.is_empty() {
        ports = granted.to_vec();
    }
    if let Some(port) = ports.iter().find(|port| !is_granted(granted, **port)) {
        return Err(format!("port {port} is not among those that this URL was given for\n"));
    }
    match ports.len() {
        0 => Err("over this protocol the query must name the ports: ?port=80&port=443\n".to_owned()),
        1..=CHANNEL_PORTS => Ok(ports),
        count => Err(format!(
            "{count} ports; over this protocol there can be {CHANNEL_PORTS}\n"
        )),
    }
}

/// Whether a port may be reached with a URL that was given for certain ports, or for any.
pub fn is_granted(granted: &[u16], port: u16) -> bool {
    granted.is_empty() || granted.contains(&port)
}

/// Ports as `port=80&port=443` or `port=80,443`.
fn query_ports(query: &str) -> Result<Vec<u16>, String> {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("port="))
        .flat_map(|value| value.split("%2C").flat_map(|value| value.split(',')))
        .map(port)
        .collect()
}

/// A TCP port as a client writes it.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn port(text: &str) -> Result<u16, String> {
    let (number, protocol) = text.split_once(['/', '%']).unwrap_or((text, ""));
    if protocol.to_ascii_lowercase().ends_with("udp") {
        return Err(format!("port {text}: UDP can't be forwarded, only TCP\n"));
    }
    match number.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port from 1 to 65535\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect::<Vec<_>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            })
    }

    #[test]
    fn the_clients_favourite_is_taken() {
        let offers = headers(&[
            (STREAM_PROTOCOL, "v5.channel.k8s.io"),
            (STREAM_PROTOCOL, "v3.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        let (protocol, answer) = spdy(&offers, false).unwrap();
        assert_eq!(protocol, Protocol::Spdy(Remote::V3));
        assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
        assert_eq!(answer.headers()[STREAM_PROTOCOL], "v3.channel.k8s.io");
        assert_eq!(answer.headers()[header::UPGRADE], "SPDY/3.1");
    }

    #[test]
    fn a_client_that_offers_nothing_is_old_and_one_that_offers_the_unknown_is_told_what_there_is() {
        assert_eq!(spdy(&headers(&[]), false).unwrap().0, Protocol::Spdy(Remote::V1));
        let answer = spdy(&headers(&[(STREAM_PROTOCOL, "v9.channel.k8s.io")]), false).unwrap_err();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.headers().get_all(ACCEPTED_PROTOCOLS).iter().count(), 4);
        assert!(spdy(&headers(&[(STREAM_PROTOCOL, "v4.channel.k8s.io")]), true).is_err());
    }

    #[test]
    fn websocket_subprotocols_depend_on_what_is_asked_for() {
        let request = |protocols: &'static str, forwards| {
            let headers = headers(&[
                (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
                (header::SEC_WEBSOCKET_VERSION, "13"),
                (header::SEC_WEBSOCKET_PROTOCOL, protocols),
            ]);
            websocket(&headers, forwards)
        };
        let (protocol, answer) = request("v5.channel.k8s.io, v4.channel.k8s.io", false).unwrap();
        assert_eq!(protocol, Protocol::Channels(Form::Binary, Remote::V5));
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            answer.headers()[header::SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(request(TUNNEL, true).unwrap().0, Protocol::Tunnel);
        assert!(request(TUNNEL, false).is_err());
        assert_eq!(request("chat", false).unwrap_err().status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn ports_are_read_from_the_query_and_udp_is_refused() {
        assert_eq!(query_ports("port=80&x=1&port=1,65535").unwrap(), [80, 1, 65535]);
        assert!(query_ports("").unwrap().is_empty());
        for wrong in ["port=", "port=0", "port=65536", "port=a", "port=-1"] {
            assert!(query_ports(wrong).is_err(), "{wrong}");
        }
        assert!(query_ports("port=53/udp").unwrap_err().contains("only TCP"));
    }

    #[test]
    fn channels_reach_ports_that_were_granted_and_no_others() {
        assert_eq!(channel_ports("port=80&port=443", &[]).unwrap(), [80, 443]);
        assert_eq!(channel_ports("port=443", &[80, 443]).unwrap(), [443]);
        assert_eq!(channel_ports("", &[80, 443]).unwrap(), [80, 443]);
        assert!(channel_ports("port=80&port=22", &[80]).unwrap_err().contains("port 22"));
        assert!(channel_ports("", &[]).unwrap_err().contains("?port="));
        let many: Vec<u16> = (1..=33).collect();
        assert!(channel_ports("", &many).unwrap_err().starts_with("33 ports"));
    }
}
