//! Sizes of a terminal: JSON objects, one after the other, cut into pieces as the network likes.

use serde::Deserialize;

use super::Reader;

/// What is kept of an object that has not ended; they are about thirty bytes.
const LIMIT: usize = 4096;

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    #[serde(default)]
    pub width: u16,
    #[serde(default)]
    pub height: u16,
}

/// Sizes out of a stream.
pub struct Sizes {
    reader: Option<Reader>,
    text: Vec<u8>,
}

impl Sizes {
    pub fn new(reader: Option<Reader>) -> Self {
        Self {
            reader,
            text: Vec::new(),
        }
    }

    /// The newest size that has come; waits for ever when none comes any more. Cancel-safe.
    pub async fn next(&mut self) -> Size {
        loop {
            // Of several that wait only the last counts.
            if let Some(size) = self.parse() {
                return size;
            }
            let Some(reader) = &self.reader else {
                return std::future::pending().await;
            };
            match reader.read().await {
                Ok(Some(piece)) => self.text.extend_from_slice(&piece),
                Ok(None) | Err(_) => self.reader = None,
            }
        }
    }

    /// Reads until no more come.
    #[cfg(any(fuzzing, test))]
    pub async fn all(mut self) {
        while let Some(reader) = &self.reader {
            let Ok(Some(piece)) = reader.read().await else { return };
            self.text.extend_from_slice(&piece);
            let _ = self.parse();
        }
    }

    /// The last whole size of what has come; zero sizes mean nothing and are left out.
    fn parse(&mut self) -> Option<Size> {
        let mut values = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
        let (mut last, mut broken, mut read) = (None, false, 0);
        while let Some(value) = values.next() {
            match value {
                Ok(size) => {
                    read = values.byte_offset();
                    last = Some(size).filter(|size| size.width > 0 && size.height > 0).or(last);
                }
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        if broken || self.text.len() - read > LIMIT {
            tracing::debug!("what a client sends as its terminal's size is none");
            self.text.clear();
            if let Some(reader) = self.reader.take() {
                reader.discard();
            }
        } else {
            self.text.drain(..read);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::streaming::inbox::Inbox;

    async fn sizes(pieces: &[&'static str]) -> Vec<(u16, u16)> {
        let inbox = Arc::new(Inbox::new(Arc::default()));
        let mut sizes = Sizes::new(Some(Reader::Channel(inbox.clone())));
        let mut all = Vec::new();
        for piece in pieces {
            inbox.push(Bytes::from_static(piece.as_bytes()));
            let wait = std::time::Duration::from_millis(20);
            while let Ok(size) = tokio::time::timeout(wait, sizes.next()).await {
                all.push((size.width, size.height));
            }
        }
        all
    }

    #[tokio::test]
    async fn sizes_are_read_across_pieces_and_zero_sizes_ignored() {
        let all = sizes(&[
            "{\"Width\":80,\"Hei",
            "ght\":24}\n",
            "{\"Width\":0,\"Height\":5}\n{\"Width\":90,\"Height\":0}",
            " {\"Width\":1,\"Height\":2}{\"Width\":100,\"Height\":50}\n",
        ]);
        assert_eq!(all.await, [(80, 24), (100, 50)]);
    }

    #[tokio::test]
    async fn nonsense_ends_the_stream_and_not_the_session() {
        assert_eq!(sizes(&["hello", "{\"Width\":80,\"Height\":24}"]).await, []);
    }
}
