//! gRPC calls whose answers are bytes already: they are sent as they are, without a copy of a megabyte.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::Frame;
use prost::Message;
use tonic::{Request, Status, body::Body, metadata::MetadataMap};

use super::server::MESSAGE_LIMIT;

/// Length of what precedes each message: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// Reads the one message of a call.
pub(super) async fn request<R: Message + Default>(request: http::Request<Body>) -> Result<Request<R>, Status> {
    let (head, body) = request.into_parts();
    let bytes = match Limited::new(body, MESSAGE_LIMIT + PREFIX).collect().await {
        Ok(bytes) => bytes.to_bytes(),
        Err(error) => return Err(Status::out_of_range(format!("the request can't be read: {error}"))),
    };
    let message = message(&bytes)?;
    Ok(Request::from_parts(
        MetadataMap::from_headers(head.headers),
        head.extensions,
        message,
    ))
}

fn message<R: Message + Default>(bytes: &[u8]) -> Result<R, Status> {
    let Some((prefix, message)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(Status::internal("the request has no message"));
    };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::unimplemented("compressed requests are not understood"));
    }
    if u32::from_be_bytes(length) as usize != message.len() {
        return Err(Status::internal("the request is not one whole message"));
    }
    // As tonic's own codec says it.
    R::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// What precedes a message of `length` bytes.
///
/// # Errors
/// When no client would take it.
pub(super) fn prefix(length: usize) -> Result<[u8; PREFIX], Status> {
    match u32::try_from(length) {
        Ok(length_field) if length <= MESSAGE_LIMIT => {
            let [a, b, c, d] = length_field.to_be_bytes();
            Ok([0, a, b, c, d])
        }
        _ => Err(Status::out_of_range(format!(
            "the answer has {length} bytes; more than {MESSAGE_LIMIT} are not sent"
        ))),
    }
}

/// An answer of messages, each after its [`prefix`], in pieces of any length. It ends well unless one can't be made.
pub(super) fn answer(pieces: impl Iterator<Item = Result<Bytes, Status>> + Send + 'static) -> http::Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = pieces
        .map(|piece| piece.map(Frame::data))
        .chain(std::iter::once(Ok(Frame::trailers(trailers))));
    let mut response = http::Response::new(Body::new(StreamBody::new(stream::iter(frames))));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use wharf_proto::cri::{ContainerFilter, ListContainersRequest};

    use super::*;

    fn call(bytes: &[u8]) -> http::Request<Body> {
        http::Request::new(Body::new(http_body_util::Full::new(Bytes::copy_from_slice(bytes))))
    }

    #[tokio::test]
    async fn a_request_is_one_whole_message() {
        let wanted = ListContainersRequest {
            filter: Some(ContainerFilter {
                id: "abc".into(),
                ..Default::default()
            }),
        };
        let mut bytes = prefix(wanted.encoded_len()).unwrap().to_vec();
        wanted.encode(&mut bytes).unwrap();
        let read = request::<ListContainersRequest>(call(&bytes)).await.unwrap();
        assert_eq!(read.into_inner(), wanted);
        let code = async |bytes: &[u8]| request::<ListContainersRequest>(call(bytes)).await.unwrap_err().code();
        for part in [0, 4, bytes.len() - 1] {
            assert_eq!(code(&bytes[..part]).await, Code::Internal, "{part} bytes");
        }
        assert_eq!(
            code(&[bytes.as_slice(), &[0]].concat()).await,
            Code::Internal,
            "one too many"
        );
        assert_eq!(code(&[0, 0, 0, 0, 1, 0xff]).await, Code::Internal, "no such message");
        bytes[0] = 1;
        assert_eq!(code(&bytes).await, Code::Unimplemented, "compressed");
    }

    #[tokio::test]
    async fn an_answer_ends_with_a_status() {
        let pieces = [Bytes::copy_from_slice(&prefix(2).unwrap()), Bytes::from_static(b"ab")];
        let answer = answer(pieces.into_iter().map(Ok));
        let all = answer.into_body().collect().await.unwrap();
        assert_eq!(all.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(all.to_bytes(), [0, 0, 0, 0, 2, b'a', b'b'].as_slice());
        assert_eq!(prefix(MESSAGE_LIMIT + 1).unwrap_err().code(), Code::OutOfRange);
    }
}
