//! Lists as streams (KEP-5825): the same items as the unary call gives, of one snapshot, in as many messages as they
//! need. None for an empty list; the stream ends after the last item.

use futures_util::{StreamExt as _, stream, stream::BoxStream};
use prost::Message;
use tonic::Status;

/// Items of one message at most.
const ITEMS: usize = 1000;
/// Bytes of one message, unless a single item is larger: clients refuse messages of more than 4 or 16 MiB, and one pod's
/// metrics may have 100 KiB.
const BYTES: usize = 1 << 20;

/// What the methods of the services return.
pub(super) type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// Streams `items`, each once, in messages that `wrap` makes.
pub(super) fn chunks<I, R>(items: Vec<I>, wrap: fn(Vec<I>) -> R) -> Stream<R>
where
    I: Message + 'static,
    R: Send + 'static,
{
    stream::iter(Chunks::new(items, Message::encoded_len).map(move |chunk| Ok(wrap(chunk)))).boxed()
}

/// Items in groups that are a message each.
pub(super) struct Chunks<I> {
    rest: std::iter::Peekable<std::vec::IntoIter<I>>,
    length: fn(&I) -> usize,
}

impl<I> Chunks<I> {
    /// `length` tells how many bytes an item takes.
    pub(super) fn new(items: Vec<I>, length: fn(&I) -> usize) -> Self {
        Self {
            rest: items.into_iter().peekable(),
            length,
        }
    }
}

impl<I> Iterator for Chunks<I> {
    type Item = Vec<I>;

    fn next(&mut self) -> Option<Vec<I>> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        let length = self.length;
        while let Some(item) = self
            .rest
            .next_if(|item| chunk.is_empty() || (chunk.len() < ITEMS && bytes + length(item) <= BYTES))
        {
            bytes += length(&item);
            chunk.push(item);
        }
        (!chunk.is_empty()).then_some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::Container;

    use super::*;

    async fn lengths(items: Vec<Container>) -> Vec<usize> {
        let stream = chunks(items, |chunk| chunk);
        stream.map(|chunk| chunk.unwrap().len()).collect().await
    }

    fn item(id: usize, bytes: usize) -> Container {
        Container {
            id: id.to_string(),
            image_ref: "x".repeat(bytes),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn an_empty_list_is_an_empty_stream() {
        assert!(lengths(Vec::new()).await.is_empty());
    }

    #[tokio::test]
    async fn each_item_comes_once_and_in_order() {
        let items: Vec<_> = (0..2500).map(|id| item(id, 10)).collect();
        assert_eq!(lengths(items.clone()).await, [1000, 1000, 500]);
        let all: Vec<Vec<Container>> = chunks(items.clone(), |chunk| chunk).map(Result::unwrap).collect().await;
        assert_eq!(all.concat(), items);
    }

    #[tokio::test]
    async fn large_items_go_in_smaller_messages_and_a_huge_one_alone() {
        let items = vec![
            item(0, BYTES / 2),
            item(1, BYTES / 3),
            item(2, BYTES / 3),
            item(3, 2 * BYTES),
            item(4, 1),
        ];
        assert_eq!(lengths(items).await, [2, 1, 1, 1]);
    }
}
