//! Where a SPDY connection reads from: the socket itself, or the binary messages of a WebSocket, whose borders mean
//! nothing (`SPDY/3.1+portforward.k8s.io`).

use bytes::BytesMut;

use super::Messages;
use crate::streaming::{Ended, transport::Source};

/// A client's bytes.
pub enum Feed {
    Plain(Source),
    Tunnel(Messages, BytesMut),
}

impl Feed {
    /// What has come and was not taken.
    pub fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Plain(source) => &mut source.buffer,
            Self::Tunnel(_, buffer) => buffer,
        }
    }

    /// Waits for more; false at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn fill(&mut self) -> Result<bool, Ended> {
        match self {
            Self::Plain(source) => Ok(source.fill().await?),
            Self::Tunnel(messages, buffer) => {
                let piece = messages.next().await?;
                if piece.text {
                    return Err(Ended::WebSocket("text where SPDY was agreed on"));
                }
                if buffer.is_empty() {
                    *buffer = piece.data;
                } else {
                    buffer.extend_from_slice(&piece.data);
                }
                Ok(true)
            }
        }
    }

    /// As [`Source::hung_up`].
    pub async fn hung_up(&self) {
        match self {
            Self::Plain(source) => source.hung_up().await,
            Self::Tunnel(messages, _) => messages.hung_up().await,
        }
    }
}
