//! Between a client's streams and a session of the node.

use std::{io, time::Duration};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;

use super::{Reader, Streams, Writer, size::Sizes, status::Outcome};
use crate::{
    node::{Input, Node, Output, Session},
    streaming::{Grant, block::Block},
};

/// How long output is awaited after the command has ended and while none comes: a process that it left behind may hold
/// its pipes for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs `grant` to its end and tells the client how it ended. Dropping it ends the session.
pub async fn run(node: &Node, grant: Grant, streams: &Streams) -> io::Result<()> {
    let (attach, opened) = match grant {
        Grant::Exec { id, options } => (false, node.exec_session(&id, options).await),
        Grant::Attach { id, options } => (true, node.attach_session(&id, options).await),
        Grant::PortForward { .. } => return Ok(()),
    };
    streams.greet().await?;
    let outcome = match opened {
        Ok(session) => {
            // Kubernetes' clients take every status but success for a failure of the attach itself.
            let silent = attach && !session.is_persons();
            match bridge(session, streams).await {
                Ok(_) if silent => Outcome::Detached,
                Ok(code) => Outcome::Exit(code),
                Err(message) => Outcome::Failed(message),
            }
        }
        Err(error) => Outcome::Failed(error.to_string()),
    };
    tell(streams, &outcome).await
}

/// Ends the client's streams with what it is told last.
pub async fn tell(streams: &Streams, outcome: &Outcome) -> io::Result<()> {
    for writer in [&streams.stdout, &streams.stderr].into_iter().flatten() {
        writer.finish().await?;
    }
    let message = outcome.message(streams.json);
    if !message.is_empty() {
        streams.error.write(&message).await?;
    }
    streams.error.finish().await
}

/// Moves bytes until the session has ended and its output is with the client.
async fn bridge(mut session: Session, streams: &Streams) -> Result<i32, String> {
    let (input, stdout, stderr) = (session.stdin.take(), session.stdout.take(), session.stderr.take());
    let ended = CancellationToken::new();
    let mut sizes = Sizes::new(streams.resize.clone());
    let control = async {
        loop {
            tokio::select! {
                code = session.wait() => {
                    ended.cancel();
                    return code.map_err(|error| error.to_string());
                }
                size = sizes.next() => {
                    if let Err(error) = session.resize(size.width, size.height) {
                        tracing::debug!(%error, "resize a terminal");
                    }
                }
            }
        }
    };
    let work = async {
        let (code, (), ()) = tokio::join!(
            control,
            output(stdout, streams.stdout.as_ref(), &ended),
            output(stderr, streams.stderr.as_ref(), &ended),
        );
        code
    };
    tokio::select! {
        code = work => code,
        // Input can end before the session does, and must not hold it up.
        never = feed(input, streams.stdin.as_ref()) => match never {},
    }
}

/// Sends what the container writes until it has ended.
async fn output(from: Option<Output>, to: Option<&Writer>, ended: &CancellationToken) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    let mut block = Block::new();
    loop {
        let drained = async {
            ended.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        let count = tokio::select! {
            biased;
            count = from.read(block.room()) => count,
            () = drained => return,
        };
        match count {
            Ok(0) => break,
            Ok(count) => {
                if to.write(block.filled(count)).await.is_err() {
                    // The client's own end of the stream is gone: what is written is lost, as in a closed terminal.
                    return;
                }
                block.adapt(count);
            }
            Err(error) => {
                tracing::debug!(%error, "read a container's output");
                break;
            }
        }
    }
    let _ = to.finish().await;
}

/// Gives the container what the client sends, then the end of it. Never completes.
async fn feed(to: Option<Input>, from: Option<&Reader>) -> std::convert::Infallible {
    if let (Some(mut to), Some(from)) = (to, from) {
        loop {
            match from.read().await {
                Ok(Some(piece)) => {
                    if to.write_all(&piece).await.is_err() {
                        break;
                    }
                }
                Ok(None) => {
                    let _ = to.shutdown().await;
                    break;
                }
                Err(_) => break,
            }
        }
        // The container reads no more, the client may send for ever.
        from.discard();
    }
    std::future::pending().await
}
