//! Calls with any bytes as their message, whose answers are not decoded.

use prost::bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::cri::Answer;

/// Calls `/service/method` and returns the bytes of its answer.
///
/// # Errors
/// As the call's.
pub async fn unary(channel: &Channel, method: &'static str, message: Bytes) -> Answer<Bytes> {
    let mut client = ready(channel).await?;
    let answer = client.unary(Request::new(message), http_path(method), Raw).await?;
    Ok(answer.into_inner())
}

/// Calls `/service/method`, whose answer is a stream, and waits for its beginning.
///
/// # Errors
/// As the call's.
pub async fn stream(channel: &Channel, method: &'static str, message: Bytes) -> Answer<()> {
    let mut client = ready(channel).await?;
    client
        .server_streaming(Request::new(message), http_path(method), Raw)
        .await
        .map(drop)
}

async fn ready(channel: &Channel) -> Answer<Grpc<Channel>> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(client)
}

fn http_path(method: &'static str) -> tonic::codegen::http::uri::PathAndQuery {
    tonic::codegen::http::uri::PathAndQuery::from_static(method)
}

struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(bytes);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
