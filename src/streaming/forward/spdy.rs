//! Port-forward over SPDY: streams with the same `requestID` are a pair.

use std::{collections::HashMap, io};

use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{Data, bridge, failure};
use crate::{
    node::Node,
    streaming::{
        Ended, http,
        inbox::Broken,
        server::Client,
        spdy::{Connection, Incoming, Stream},
    },
};

impl Data for Stream {
    async fn read(&self) -> Result<Option<Bytes>, Broken> {
        Self::read(self).await
    }

    async fn write(&self, data: &[u8]) -> io::Result<()> {
        Self::write(self, data).await
    }

    async fn finish(&self) -> io::Result<()> {
        Self::finish(self).await
    }
}

/// Serves a client until it closes.
pub async fn spdy(
    client: &Client<'_>,
    connection: &mut Connection,
    mut incoming: Incoming,
    pod: &str,
    ports: &[u16],
) -> Result<(), Ended> {
    // Dropped with this future, and every forwarded connection with it.
    let mut forwards = JoinSet::new();
    let mut pairs = Pairs::default();
    let ended = {
        let run = connection.run();
        tokio::pin!(run);
        loop {
            tokio::select! {
                ended = &mut run => break ended,
                ended = client.outside() => break ended,
                Some(_) = forwards.join_next() => {}
                () = pairs.overdue() => pairs.drop_overdue(),
                Some(stream) = incoming.recv() => {
                    if let Some(pair) = pairs.add(stream, ports, client.creation_timeout()) {
                        forwards.spawn(forward(client.node.clone(), pod.to_owned(), pair));
                    }
                }
            }
        }
    };
    forwards.shutdown().await;
    connection.go_away();
    match ended {
        Ended::Closed => Ok(()),
        other => Err(other),
    }
}

struct Pair {
    /// Or why it can't be forwarded.
    port: Result<u16, String>,
    data: Stream,
    error: Stream,
}

async fn forward(node: Node, pod: String, pair: Pair) {
    let result = match pair.port {
        Ok(port) => match node.connect_port(&pod, port).await {
            Ok(connection) => bridge(connection, &pair.data).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|reason| failure(port, &pod, reason)),
        Err(reason) => Err(reason),
    };
    if let Err(message) = result {
        tracing::debug!(message, "port-forward");
        let _ = pair.error.write(message.as_bytes()).await;
    }
    let _ = pair.error.finish().await;
    // The data stream is reset by being dropped, if the client has not ended it: nobody reads it any more.
}

/// Streams that wait for their other half.
#[derive(Default)]
struct Pairs(HashMap<String, Half>);

struct Half {
    data: Option<Stream>,
    error: Option<Stream>,
    end: Instant,
}

impl Pairs {
    /// Takes a stream; a pair when it was the second. What can't be forwarded is still a pair, to be told on its error
    /// stream. What makes no sense is reset by being dropped.
    fn add(&mut self, stream: Stream, ports: &[u16], limit: std::time::Duration) -> Option<Pair> {
        let is_data = match stream.header("streamType") {
            Some("data") => true,
            Some("error") => false,
            other => {
                tracing::debug!(kind = other, "a client opened a stream of no known kind");
                return None;
            }
        };
        let port = stream.header("port").unwrap_or_default();
        let port = match http::port(port) {
            Ok(port) if http::is_granted(ports, port) => Ok(port),
            Ok(port) => Err(format!("port {port} is not among those that were asked for")),
            Err(reason) => Err(reason),
        };
        // Clients of Kubernetes 1.0 and 1.1 send no id, but open the error stream and then the data stream.
        let id = stream.header("requestID").map_or_else(
            || {
                let number = stream.number() - if is_data { 2.min(stream.number()) } else { 0 };
                format!("stream {number}")
            },
            str::to_owned,
        );
        let half = self.0.entry(id.clone()).or_insert_with(|| Half {
            data: None,
            error: None,
            end: Instant::now() + limit,
        });
        let slot = if is_data { &mut half.data } else { &mut half.error };
        if slot.is_some() {
            return None;
        }
        *slot = Some(stream);
        let half = self.0.remove(&id)?;
        match (half.data, half.error) {
            (Some(data), Some(error)) => Some(Pair { port, data, error }),
            (data, error) => {
                let end = half.end;
                self.0.insert(id, Half { data, error, end });
                None
            }
        }
    }

    /// Completes when a stream has waited for too long.
    async fn overdue(&self) {
        match self.0.values().map(|half| half.end).min() {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    fn drop_overdue(&mut self) {
        let now = Instant::now();
        self.0.retain(|id, half| {
            let waits = half.end > now;
            if !waits {
                tracing::debug!(id, "a client did not open the second stream in time");
            }
            waits
        });
    }
}
