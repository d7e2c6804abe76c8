//! Connections into a pod's network.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use super::{Error, Result, thread};

/// A packet filter in the pod may swallow what comes.
const LIMIT: Duration = Duration::from_secs(10);

/// Connects to `port` of localhost, by IPv4 and else by IPv6, in the pinned network namespace or in the caller's. The
/// stream does not block.
///
/// # Errors
/// [`Error::Connect`] with what IPv4 said when neither works.
pub async fn connect(namespace: Option<PathBuf>, port: u16) -> Result<TcpStream> {
    thread::run("wharf-connect", move || {
        if let Some(namespace) = namespace {
            let file = File::open(&namespace).map_err(|source| Error::io("open namespace", &namespace, source))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::io("enter namespace", &namespace, errno.into()))?;
        }
        localhost(port).map_err(|source| Error::Connect { port, source })
    })
    .await
}

fn localhost(port: u16) -> io::Result<TcpStream> {
    let to = |address: IpAddr| TcpStream::connect_timeout(&SocketAddr::new(address, port), LIMIT);
    let stream = to(Ipv4Addr::LOCALHOST.into()).or_else(|first| to(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
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
