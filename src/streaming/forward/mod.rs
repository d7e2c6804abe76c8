//! Port-forward: connections to ports of a pod, for a client's pairs of streams: one for data, one for errors.
//!
//! `spdy.rs` and `channels.rs` get the pairs out of their protocols; the bytes move here.

mod channels;
mod spdy;

use std::{convert::Infallible, future::Future, io, time::Duration};

use bytes::Bytes;
pub use channels::channels;
pub use spdy::spdy;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{block::Block, inbox::Broken};

/// How long the client may go on sending to a pod that has said everything. Its own clients often wait for us to end.
const DRAIN: Duration = Duration::from_secs(1);

/// One side's words on a stream.
trait Data {
    fn read(&self) -> impl Future<Output = Result<Option<Bytes>, Broken>> + Send;
    fn write(&self, data: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
    /// The pod has said everything.
    fn finish(&self) -> impl Future<Output = io::Result<()>> + Send;
}

/// Moves bytes both ways until the pod has said everything, or the client broke off.
async fn bridge(pod: TcpStream, client: &impl Data) -> io::Result<()> {
    let _ = pod.set_nodelay(true);
    let (mut from_pod, mut to_pod) = pod.into_split();
    let down = async {
        let mut block = Block::new();
        loop {
            match from_pod.read(block.room()).await? {
                0 => return client.finish().await,
                count => {
                    client.write(block.filled(count)).await?;
                    block.adapt(count);
                }
            }
        }
    };
    // Completes only when the client broke off; after its half-close the pod may still have much to say.
    let up = async {
        loop {
            match client.read().await {
                Ok(Some(piece)) => to_pod.write_all(&piece).await?,
                Ok(None) => break,
                Err(Broken) => return Ok(()),
            }
        }
        to_pod.shutdown().await?;
        std::future::pending::<io::Result<Infallible>>().await.map(|_| ())
    };
    tokio::pin!(up);
    tokio::select! {
        down = down => down?,
        up = &mut up => return up,
    }
    // A pod that has closed only its own side may still listen.
    let _ = tokio::time::timeout(DRAIN, up).await;
    Ok(())
}

fn failure(port: u16, pod: &str, reason: impl std::fmt::Display) -> String {
    format!("forward TCP port {port} of pod {pod}: {reason}")
}
