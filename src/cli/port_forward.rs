//! `wharf port-forward`: ports of this machine that lead to localhost in a pod.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Duration, Instant, sleep_until},
};
use tokio_tungstenite::tungstenite::Message;
use wharf_proto::cri;

use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::exec::PROTOCOLS;
use super::resolve::{self, Object};
use super::{output, stream};

/// Channels of the one port of a connection, and how a stream is ended since v5.
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// Before v5 the pod can't be told that our side sends nothing more: the connection is closed when nothing has come from
/// the pod for so long after that.
const QUIET: Duration = Duration::from_secs(10);

/// Arguments of `wharf port-forward`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Name, id, or the beginning of an id of a pod or of one of its containers
    pod: String,
    /// Port here and port in the pod; one number for both; ":PORT" for any free port here
    #[arg(required = true, value_name = "[LOCAL:]REMOTE", value_parser = ports)]
    ports: Vec<(u16, u16)>,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let pair = match text.split_once(':') {
        None => number(text).map(|port| (port, port)),
        Some(("" | "0", remote)) => number(remote).map(|remote| (0, remote)),
        Some((local, remote)) => number(local).zip(number(remote)),
    };
    pair.ok_or_else(|| format!("\"{text}\" has not the form [LOCAL:]REMOTE, for example 8080:80"))
}

/// Forwards until it is interrupted.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let pod = match resolve::object(client, &arguments.pod).await? {
        Some(Object::Pod(pod)) => pod.id,
        Some(Object::Container(container)) => container.pod_sandbox_id,
        None => return Err(resolve::absent("pod", &arguments.pod, "wharf pods")),
    };
    let mut listeners = Vec::new();
    for &(local, remote) in &arguments.ports {
        let listener = TcpListener::bind((arguments.address, local))
            .await
            .map_err(|source| Error::new(format!("listen on {}:{local}: {source}", arguments.address)))?;
        let address = listener.local_addr()?;
        output::line(&format!("Forwarding from {address} -> {remote}"))?;
        listeners.push((listener, remote));
    }
    let serve = listeners
        .iter()
        .map(|(listener, remote)| accept(client, &pod, listener, *remote));
    match futures_util::future::try_join_all(serve).await {
        Ok(_) => Ok(0),
        Err(problem) => Err(problem),
    }
}

/// Serves one port for ever.
async fn accept(client: &Client, pod: &str, listener: &TcpListener, port: u16) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (local, _) = accepted.map_err(|source| Error::new(format!("accept a connection: {source}")))?;
                // A URL is good for one connection.
                match url(client, pod, port).await {
                    Ok(url) => {
                        connections.spawn(async move { forward(&url, local, port).await });
                    }
                    Err(problem) => {
                        let _ = problem.report();
                    }
                }
            }
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Ok(Err(problem)) = ended {
                    let _ = problem.report();
                }
            }
        }
    }
}

async fn url(client: &Client, pod: &str, port: u16) -> Result<String> {
    let message = cri::PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: vec![i32::from(port)],
    };
    let answer = client.runtime().port_forward(client.patient(message, Owner::All)).await;
    answer
        .map(|answer| answer.into_inner().url)
        .map_err(|status| client.error(&format!("forward port {port} of pod {pod}"), &status))
}

async fn forward(url: &str, mut local: TcpStream, port: u16) -> Result<()> {
    local.set_nodelay(true)?;
    let socket = stream::connect(url, PROTOCOLS).await?;
    let closes = socket.closes();
    let (mut sending, mut receiving) = socket.stream.split();
    let (mut from, mut to) = local.split();
    let heard = Mutex::new(Instant::now());
    let up = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let message = match buffer.get(..count).unwrap_or_default() {
                [] if closes => vec![stream::CLOSE, DATA],
                [] => {
                    let mut until = Instant::now() + QUIET;
                    while until > Instant::now() {
                        sleep_until(until).await;
                        until = *heard.lock().unwrap_or_else(PoisonError::into_inner) + QUIET;
                    }
                    return;
                }
                bytes => [&[DATA], bytes].concat(),
            };
            if sending.send(Message::binary(message)).await.is_err() || count == 0 {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let down = async {
        // The first message of each channel is the port's number.
        let mut begun = [false; 2];
        while let Some(Ok(message)) = receiving.next().await {
            let Message::Binary(data) = message else { continue };
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let Some((&channel, mut content)) = data.split_first() else {
                continue;
            };
            if let Some(begun) = begun.get_mut(usize::from(channel))
                && !std::mem::replace(begun, true)
            {
                content = content.get(2..).unwrap_or_default();
            }
            match channel {
                DATA if to.write_all(content).await.is_err() => break,
                ERROR if !content.is_empty() => {
                    let text = String::from_utf8_lossy(content);
                    return Err(Error::new(format!("forward port {port}: {}", text.trim())));
                }
                stream::CLOSE if content == [DATA] => {
                    let _ = to.shutdown().await;
                }
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        () = up => Ok(()),
        result = down => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_number_or_two() {
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!(ports(":80"), Ok((0, 80)));
        for wrong in ["", "0", "a:1", "1:0", "1:2:3", "70000:1"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }
}
