//! A door for the fuzz target (fuzz/).

use prost::Message as _;
use wharf_proto::{
    nri::{Container, CreateContainerResponse, RegisterPluginRequest, UpdateContainersRequest},
    ttrpc,
};

use super::{
    frame::{Decoder, RUNTIME},
    merge::Merge,
    plugin::Identity,
};

/// What comes from a plugin's socket, the first byte says in which pieces.
pub fn socket(bytes: &[u8]) {
    let (size, bytes) = bytes.split_first().unwrap_or((&1, b""));
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        decoder.buffer().extend_from_slice(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) if frame.connection == RUNTIME => asked(&frame.content),
                Ok(Some(frame)) => answered(&frame.content),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fn asked(content: &[u8]) {
    let Ok(request) = ttrpc::Request::decode(content) else {
        return;
    };
    if let Ok(register) = RegisterPluginRequest::decode(request.payload.as_slice()) {
        let _ = Identity::new(&register.plugin_idx, &register.plugin_name);
    }
    let _ = UpdateContainersRequest::decode(request.payload.as_slice());
}

/// Two plugins give the same answer.
fn answered(content: &[u8]) {
    let Ok(response) = ttrpc::Response::decode(content) else {
        return;
    };
    let Ok(answer) = CreateContainerResponse::decode(response.payload.as_slice()) else {
        return;
    };
    let mut merge = Merge::create(Container::default());
    if merge.created("10-a", answer.clone()).is_ok() {
        let _ = merge.created("20-b", answer);
    }
    let _ = merge.finish();
}
