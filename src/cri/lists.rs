//! The long lists, answered from what was encoded before (contract rules 35 and 36).
//!
//! Making a thousand messages and encoding them takes milliseconds, and next to nothing of them changes between two calls.
//! So an item's bytes are kept with the state that they tell ([`crate::store::Rendering`]), and these calls only put them
//! one after another, whole or as a stream (KEP-5825) of the same items. Their answers are those of the service's own
//! methods, byte for byte.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tonic::{Request, Status, body::Body, server::NamedService};
use tower::Service;
use wharf_proto::cri::ListPodSandboxMetricsRequest;

use super::{Face, elsewhere::Answer, ready, streams};

/// The field of every list's answer that holds the items.
const ITEMS: u32 = 1;
/// About so much is put together at a time: four of the frames that a client takes, and memory that malloc has at hand.
const PIECE: usize = 64 << 10;

/// The runtime service with its long lists before it.
#[derive(Debug, Clone)]
pub(super) struct Lists<S> {
    face: Face,
    rest: S,
}

impl<S> Lists<S> {
    pub(super) fn new(face: Face, rest: S) -> Self {
        Self { face, rest }
    }
}

impl<S: NamedService> NamedService for Lists<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Lists<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some((list, form)) = wanted(request.uri().path()) else {
            return self.rest.call(request);
        };
        let face = self.face.clone();
        Box::pin(async move {
            let answer = list.answer(form, &face, request).await;
            Ok(answer.unwrap_or_else(|status| status.into_http()))
        })
    }
}

/// What is listed.
#[derive(Debug, Clone, Copy)]
enum List {
    Pods,
    Containers,
    ContainerStats,
    PodStats,
    Metrics,
}

/// How it is told.
#[derive(Debug, Clone, Copy)]
enum Form {
    Whole,
    Stream,
}

fn wanted(path: &str) -> Option<(List, Form)> {
    Some(match path.strip_prefix("/runtime.v1.RuntimeService/")? {
        "ListPodSandbox" => (List::Pods, Form::Whole),
        "StreamPodSandboxes" => (List::Pods, Form::Stream),
        "ListContainers" => (List::Containers, Form::Whole),
        "StreamContainers" => (List::Containers, Form::Stream),
        "ListContainerStats" => (List::ContainerStats, Form::Whole),
        "StreamContainerStats" => (List::ContainerStats, Form::Stream),
        "ListPodSandboxStats" => (List::PodStats, Form::Whole),
        "StreamPodSandboxStats" => (List::PodStats, Form::Stream),
        "ListPodSandboxMetrics" => (List::Metrics, Form::Whole),
        "StreamPodSandboxMetrics" => (List::Metrics, Form::Stream),
        _ => return None,
    })
}

impl List {
    /// Those that the request's filter lets through. A stream's request is that of its list by another name.
    async fn answer(
        self,
        form: Form,
        face: &Face,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, Status> {
        match self {
            Self::Pods => form.answer(face.encoded_sandboxes(&ready::request(request).await?)?),
            Self::Containers => form.answer(face.encoded_containers(&ready::request(request).await?)?),
            Self::ContainerStats => form.answer(face.encoded_container_stats(&ready::request(request).await?).await?),
            Self::PodStats => form.answer(face.encoded_sandbox_stats(&ready::request(request).await?).await?),
            Self::Metrics => {
                let request: Request<ListPodSandboxMetricsRequest> = ready::request(request).await?;
                form.answer(face.encoded_metrics(&request).await?)
            }
        }
    }
}

impl Form {
    fn answer<I: Item>(self, items: Vec<I>) -> Result<http::Response<Body>, Status> {
        match self {
            Self::Whole => Ok(ready::answer(Pieces::new(items)?.map(Ok))),
            Self::Stream => {
                let messages = streams::Chunks::new(items, I::len).map(Pieces::new);
                let pieces = messages.flat_map(|message| {
                    let (pieces, error) = match message {
                        Ok(pieces) => (Some(pieces), None),
                        Err(status) => (None, Some(Err(status))),
                    };
                    pieces.into_iter().flatten().map(Ok).chain(error)
                });
                Ok(ready::answer(pieces))
            }
        }
    }
}

/// An encoded message of a list, perhaps of several parts.
pub(super) trait Item: Send + 'static {
    /// How many bytes it takes.
    fn len(&self) -> usize;
    /// Writes them.
    fn put(&self, to: &mut impl BufMut);
}

impl Item for Bytes {
    fn len(&self) -> usize {
        Self::len(self)
    }

    fn put(&self, to: &mut impl BufMut) {
        to.put_slice(self);
    }
}

/// An encoded message that holds others.
#[derive(Debug)]
pub(super) struct Holder {
    /// Its own fields.
    head: Vec<u8>,
    /// The number of the field that holds the others, below 16.
    number: u32,
    parts: Vec<Bytes>,
}

impl Holder {
    pub(super) fn new(head: Vec<u8>, number: u32, parts: Vec<Bytes>) -> Self {
        Self { head, number, parts }
    }
}

impl Item for Holder {
    fn len(&self) -> usize {
        self.head.len() + self.parts.iter().map(|part| field_len(part.len())).sum::<usize>()
    }

    fn put(&self, to: &mut impl BufMut) {
        to.put_slice(&self.head);
        for part in &self.parts {
            put_field(self.number, part, to);
        }
    }
}

/// A list as one message, put together while it is sent.
struct Pieces<I> {
    prefix: Option<[u8; ready::PREFIX]>,
    items: std::iter::Peekable<std::vec::IntoIter<I>>,
}

impl<I: Item> Pieces<I> {
    fn new(items: Vec<I>) -> Result<Self, Status> {
        let length = items.iter().map(|item| field_len(item.len())).sum();
        Ok(Self {
            prefix: Some(ready::prefix(length)?),
            items: items.into_iter().peekable(),
        })
    }
}

impl<I: Item> Iterator for Pieces<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let (prefix, first) = (self.prefix.take(), self.items.peek());
        if prefix.is_none() && first.is_none() {
            return None;
        }
        let length = ready::PREFIX + first.map_or(0, |item| field_len(item.len()));
        let mut piece = BytesMut::with_capacity(if self.items.len() == 1 {
            length
        } else {
            length.max(PIECE)
        });
        piece.extend_from_slice(prefix.as_ref().map_or(&[], |prefix| prefix));
        while let Some(item) = self
            .items
            .next_if(|item| piece.len() + field_len(item.len()) <= piece.capacity())
        {
            put_head(ITEMS, item.len(), &mut piece);
            item.put(&mut piece);
        }
        Some(piece.freeze())
    }
}

/// Length of a field whose number is below 16 and whose content has `length` bytes.
pub(super) fn field_len(length: usize) -> usize {
    1 + encoded_len_varint(length as u64) + length
}

/// Writes what precedes the content of field `number`, below 16.
pub(super) fn put_head(number: u32, length: usize, to: &mut impl BufMut) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(length as u64, to);
}

/// Writes field `number`, below 16.
pub(super) fn put_field(number: u32, content: &[u8], to: &mut impl BufMut) {
    put_head(number, content.len(), to);
    to.put_slice(content);
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use wharf_proto::cri::{Container, ListContainersResponse};

    use super::*;

    fn containers(lengths: &[usize]) -> Vec<Container> {
        let container = |length: &usize| Container {
            id: "x".repeat(*length),
            ..Default::default()
        };
        lengths.iter().map(container).collect()
    }

    #[test]
    fn items_one_after_another_are_the_list() {
        for lengths in [
            vec![],
            vec![0, 1, 300],
            vec![PIECE],
            vec![40_000; 7],
            vec![10, 3 * PIECE, 10, PIECE - 10, 1],
        ] {
            let containers = containers(&lengths);
            let items: Vec<Bytes> = containers.iter().map(|item| item.encode_to_vec().into()).collect();
            let pieces: Vec<_> = Pieces::new(items).unwrap().collect();
            let bytes = pieces.concat();
            let (prefix, bytes) = bytes.split_at(ready::PREFIX);
            assert_eq!(prefix[1..], u32::try_from(bytes.len()).unwrap().to_be_bytes());
            assert_eq!(
                bytes,
                ListContainersResponse { containers }.encode_to_vec(),
                "{lengths:?}"
            );
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
        }
    }
}
