//! Exec and attach over SPDY: each of the client's streams says in a header what it is.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::FusedFuture as _};
use tokio::time::timeout;

use super::{LINGER, Reader, Streams, Writer, session, status::Outcome};
use crate::streaming::{
    Ended, Grant,
    http::Remote,
    server::Client,
    spdy::{Connection, Incoming, Stream},
};

/// Serves a client that speaks SPDY.
pub async fn spdy(
    client: &Client<'_>,
    connection: &mut Connection,
    mut incoming: Incoming,
    version: Remote,
    grant: Grant,
) -> Result<(), Ended> {
    let mut all = Slots::default();
    let result = {
        // Polled again after its end, it would panic; fused, it waits.
        let run = connection.run().fuse();
        tokio::pin!(run);
        let gathered = tokio::select! {
            ended = &mut run => Err(ended),
            ended = client.outside() => Err(ended),
            gathered = timeout(client.creation_timeout(), gather(&mut incoming, &mut all, version, &grant)) =>
                gathered.unwrap_or(Err(Ended::NoStreams)),
        };
        match gathered {
            Ok(streams) => {
                // Late or unknown streams are reset by being dropped.
                let refuse = async {
                    while incoming.recv().await.is_some() {}
                    std::future::pending::<()>().await
                };
                let told = tokio::select! {
                    ended = &mut run => Err(ended),
                    ended = client.outside() => Err(ended),
                    told = session::run(client.node, grant, &streams) => told.map_err(Ended::from),
                    () = refuse => Ok(()),
                };
                if let Err(reason @ (Ended::Stopping | Ended::Idle)) = &told {
                    let outcome = Outcome::Failed(reason.to_string());
                    tokio::select! {
                        _ = &mut run => {}
                        _ = timeout(LINGER, session::tell(&streams, &outcome)) => {}
                    }
                }
                // The client has read everything when it closes.
                if !run.is_terminated() && !matches!(told, Err(Ended::Io(_))) {
                    for reader in [&streams.stdin, &streams.resize].into_iter().flatten() {
                        reader.discard();
                    }
                    let linger = async {
                        tokio::select! {
                            _ = &mut run => {}
                            () = client.stop.cancelled() => {}
                        }
                    };
                    let _ = timeout(LINGER, linger).await;
                }
                told
            }
            Err(ended) => Err(ended),
        }
    };
    connection.go_away();
    result
}

/// The client's streams by what they are.
#[derive(Default)]
struct Slots {
    stdin: Option<Arc<Stream>>,
    stdout: Option<Arc<Stream>>,
    stderr: Option<Arc<Stream>>,
    resize: Option<Arc<Stream>>,
    error: Option<Arc<Stream>>,
}

/// Waits until the client has opened every stream that it announced.
async fn gather(incoming: &mut Incoming, slots: &mut Slots, version: Remote, grant: &Grant) -> Result<Streams, Ended> {
    let (stdin, stdout, stderr, tty) = match grant {
        Grant::Exec { options: o, .. } => (o.stdin, o.stdout, o.stderr, o.tty),
        Grant::Attach { options: o, .. } => (o.stdin, o.stdout, o.stderr, o.tty),
        Grant::PortForward { .. } => return Err(Ended::NoStreams),
    };
    let resize = tty && version >= Remote::V3;
    loop {
        let missing = slots.error.is_none()
            || (stdin && slots.stdin.is_none())
            || (stdout && slots.stdout.is_none())
            || (stderr && slots.stderr.is_none())
            || (resize && slots.resize.is_none());
        if !missing && let Some(error) = slots.error.take() {
            if let (Remote::V1, Some(stdin)) = (version, &slots.stdin) {
                stdin.finish().await?;
            }
            return Ok(Streams {
                stdin: slots.stdin.take().filter(|_| stdin).map(Reader::Spdy),
                stdout: slots.stdout.take().filter(|_| stdout).map(Writer::Spdy),
                stderr: slots.stderr.take().filter(|_| stderr).map(Writer::Spdy),
                resize: slots.resize.take().filter(|_| resize).map(Reader::Spdy),
                error: Writer::Spdy(error),
                json: version >= Remote::V4,
            });
        }
        let stream = incoming.recv().await.ok_or(Ended::Closed)?;
        let slot = match stream.header("streamType") {
            Some("stdin") => &mut slots.stdin,
            Some("stdout") => &mut slots.stdout,
            Some("stderr") => &mut slots.stderr,
            Some("resize") => &mut slots.resize,
            Some("error") => &mut slots.error,
            other => {
                tracing::debug!(kind = other, "a client opened a stream of no known kind");
                continue;
            }
        };
        // A second one of a kind is reset by being dropped.
        slot.get_or_insert(Arc::new(stream));
    }
}
