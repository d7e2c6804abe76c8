//! Asking the name servers outside.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::HEADER;

/// For so long one server is waited for. C libraries wait five seconds in all.
const LIMIT: Duration = Duration::from_secs(2);
/// How many servers are asked at most, as C libraries do.
const MOST: usize = 3;
/// Longest answer over UDP that is taken: more than anybody asks for (EDNS).
const DATAGRAM: usize = 4096;
const PORT: u16 = 53;
const NODE: &str = "/etc/resolv.conf";

/// How a question came, and how it is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Udp,
    Tcp,
}

/// The answer of the first of `servers` that gives one; of the node's own if there are none. `end` is where the question
/// in `asked` ends.
pub(super) async fn ask(asked: &[u8], end: usize, servers: Vec<IpAddr>, way: Way) -> Option<Vec<u8>> {
    // Read each time: it changes with the node's networks.
    let servers = match servers.is_empty() {
        true => of_node(&tokio::fs::read_to_string(NODE).await.unwrap_or_default()),
        false => servers.into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect(),
    };
    for server in servers.into_iter().take(MOST) {
        match timeout(LIMIT, one(asked, end, server, way)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "a name server does not answer"),
            Err(_) => tracing::debug!(%server, "a name server does not answer in time"),
        }
    }
    None
}

/// The name servers in a resolv.conf(5).
fn of_node(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| server(rest.split_whitespace().next()?))
        .collect()
}

/// An address, of a link with its device or the device's number: routers of IPv6 networks tell such ones.
fn server(text: &str) -> Option<SocketAddr> {
    let Some((address, device)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let scope = device.parse().or_else(|_| nix::net::if_::if_nametoindex(device)).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

async fn one(asked: &[u8], end: usize, server: SocketAddr, way: Way) -> io::Result<Vec<u8>> {
    // A number of our own: that of the pod may be known to others.
    let id = RandomState::new().build_hasher().finish() as u16;
    let mut request = asked.to_vec();
    request[..2].copy_from_slice(&id.to_be_bytes());
    let question = &request[HEADER..end];
    let fits = |answer: &[u8]| {
        answer.len() >= end
            && answer[..2] == id.to_be_bytes()
            && answer[2] & 0x80 != 0
            && answer[HEADER..end].eq_ignore_ascii_case(question)
    };
    let mut answer = match way {
        Way::Udp => {
            let own: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((own, 0)).await?;
            socket.connect(server).await?;
            socket.send(&request).await?;
            let mut buffer = vec![0; DATAGRAM];
            loop {
                let length = socket.recv(&mut buffer).await?;
                // What does not fit may be forged: the right one may still come.
                if fits(&buffer[..length]) {
                    buffer.truncate(length);
                    break buffer;
                }
            }
        }
        Way::Tcp => {
            let mut stream = TcpStream::connect(server).await?;
            write(&mut stream, &request).await?;
            let answer = read(&mut stream).await?;
            if !fits(&answer) {
                return Err(io::Error::other("the answer is to another question"));
            }
            answer
        }
    };
    answer[..2].copy_from_slice(&asked[..2]);
    Ok(answer)
}

/// Writes a message with its length before it (RFC 1035, 4.2.2).
pub(super) async fn write(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut all = length.to_be_bytes().to_vec();
    all.extend(message);
    stream.write_all(&all).await
}

/// Reads a message with its length before it.
pub(super) async fn read(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_servers_are_read() {
        let text = "# nameserver 1.1.1.1\nsearch a b\nnameserver 127.0.0.53\n nameserver\tfd00::1 # x\nnameservers 2.2.2.2\n\
             nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%nowhere-\n";
        let seen: Vec<String> = of_node(text).iter().map(SocketAddr::to_string).collect();
        assert_eq!(
            seen,
            ["127.0.0.53:53", "[fd00::1]:53", "[fe80::1%1]:53", "[fe80::2%7]:53"]
        );
    }
}
