//! The long lists, answered from what was encoded before (contract rules 35 and 36).
//!
//! Making a thousand messages and encoding them takes milliseconds, and next to nothing of them changes between two calls.
//! So an item's bytes are kept with the state that they tell ([`crate::store::Rendering`]), and these calls only put them
//! one after another. Their answers are those of the service's own methods, byte for byte: the streams use the same items.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::NamedService,
};
use tower::Service;
use wharf_proto::cri::{
    ListContainerStatsRequest, ListContainersRequest, ListPodSandboxRequest, ListPodSandboxStatsRequest,
};

use super::{Face, server::MESSAGE_LIMIT};

/// The field of every list's answer that holds the items.
const ITEMS: u32 = 1;

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
    S: Service<
            http::Request<Body>,
            Response = http::Response<Body>,
            Error = Infallible,
            Future = BoxFuture<'static, Result<http::Response<Body>, Infallible>>,
        >,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.rest.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let face = self.face.clone();
        match request.uri().path() {
            "/runtime.v1.RuntimeService/ListPodSandbox" => {
                answer(request, async move |request: Request<ListPodSandboxRequest>| {
                    face.encoded_sandboxes(&request)
                })
            }
            "/runtime.v1.RuntimeService/ListContainers" => {
                answer(request, async move |request: Request<ListContainersRequest>| {
                    face.encoded_containers(&request)
                })
            }
            "/runtime.v1.RuntimeService/ListContainerStats" => {
                answer(request, async move |request: Request<ListContainerStatsRequest>| {
                    face.encoded_container_stats(&request).await
                })
            }
            "/runtime.v1.RuntimeService/ListPodSandboxStats" => {
                answer(request, async move |request: Request<ListPodSandboxStatsRequest>| {
                    face.encoded_sandbox_stats(&request).await
                })
            }
            _ => self.rest.call(request),
        }
    }
}

fn answer<R, F>(
    request: http::Request<Body>,
    list: impl FnOnce(Request<R>) -> F + Send + 'static,
) -> BoxFuture<'static, Result<http::Response<Body>, Infallible>>
where
    R: Message + Default + 'static,
    F: Future<Output = Result<Vec<Bytes>, Status>> + Send + 'static,
{
    Box::pin(async move {
        let mut grpc = tonic::server::Grpc::new(ItemsCodec(std::marker::PhantomData::<R>))
            .apply_max_message_size_config(Some(MESSAGE_LIMIT), Some(MESSAGE_LIMIT));
        // It is called once: the server makes a service for each request.
        let mut list = Some(list);
        let service = tower::service_fn(move |request: Request<R>| {
            let list = list.take();
            async move {
                let list = list.ok_or_else(|| Status::internal("the request came twice"))?;
                list(request).await.map(Response::new)
            }
        });
        Ok(grpc.unary(service, request).await)
    })
}

/// Reads a request, and writes encoded items as the list that a client expects.
struct ItemsCodec<R>(std::marker::PhantomData<R>);

impl<R: Message + Default + 'static> Codec for ItemsCodec<R> {
    type Encode = Vec<Bytes>;
    type Decode = R;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(self.0)
    }

    fn decoder(&mut self) -> Self {
        Self(self.0)
    }
}

impl<R> Encoder for ItemsCodec<R> {
    type Item = Vec<Bytes>;
    type Error = Status;

    fn encode(&mut self, items: Vec<Bytes>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(items.iter().map(|item| field_len(item)).sum());
        for item in &items {
            put_field(ITEMS, item, to);
        }
        Ok(())
    }
}

impl<R: Message + Default> Decoder for ItemsCodec<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        // As tonic's own codec for messages says it.
        R::decode(from)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Length of an encoded message as a field whose number is below 16.
pub(super) fn field_len(message: &[u8]) -> usize {
    1 + encoded_len_varint(message.len() as u64) + message.len()
}

/// Writes an encoded message as field `number`, below 16.
pub(super) fn put_field(number: u32, message: &[u8], to: &mut impl bytes::BufMut) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(message.len() as u64, to);
    to.put_slice(message);
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::{Container, ListContainersResponse};

    use super::*;

    #[test]
    fn items_one_after_another_are_the_list() {
        let containers: Vec<_> = ["", "a", &"b".repeat(300)]
            .map(|id| Container {
                id: id.to_owned(),
                ..Default::default()
            })
            .into();
        let mut bytes = Vec::new();
        for container in &containers {
            let item = container.encode_to_vec();
            put_field(ITEMS, &item, &mut bytes);
        }
        let lengths: usize = containers.iter().map(|item| field_len(&item.encode_to_vec())).sum();
        assert_eq!(bytes.len(), lengths);
        assert_eq!(bytes, ListContainersResponse { containers }.encode_to_vec());
    }
}
