//! Connections into a pod's network.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::PathBuf,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Error, Result, thread};

/// A packet filter in the pod may swallow what comes.
const LIMIT: Duration = Duration::from_secs(10);

/// Connects to `port` of localhost, by IPv4 and else by IPv6, in the pinned network namespace or in the caller's.
///
/// # Errors
/// [`Error::Connect`] with what IPv4 said when neither works.
pub async fn connect(namespace: Option<PathBuf>, port: u16) -> Result<TcpStream> {
    // A socket belongs to the namespace in which it was made: the thread is gone before the connecting begins.
    let (v4, v6) = thread::run("wharf-connect", move || {
        if let Some(namespace) = namespace {
            let file = File::open(&namespace).map_err(|source| Error::io("open namespace", &namespace, source))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io("enter namespace", &namespace, errno.into()))?;
        }
        Ok((made(AddressFamily::Inet), made(AddressFamily::Inet6)))
    })
    .await?;
    let failed = |source| Error::Connect { port, source };
    let first = match to(v4, Ipv4Addr::LOCALHOST.into(), port).await {
        Ok(stream) => return Ok(stream),
        Err(first) => first,
    };
    to(v6, Ipv6Addr::LOCALHOST.into(), port)
        .await
        .map_err(|_| failed(first))
}

fn made(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

async fn to(socket: io::Result<OwnedFd>, address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = TcpSocket::from_std_stream(socket?.into());
    let stream = timeout(LIMIT, socket.connect(SocketAddr::new(address, port)))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn localhost_is_found_by_both_families_and_a_refusal_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        connect(None, port).await.unwrap();
        drop(listener);
        let error = connect(None, port).await.unwrap_err().to_string();
        assert!(
            error.contains(&port.to_string()) && error.contains("refused"),
            "{error}"
        );
        if let Ok(listener) = TcpListener::bind("[::1]:0") {
            connect(None, listener.local_addr().unwrap().port()).await.unwrap();
        }
    }
}
