//! Doors for the fuzz targets (fuzz/).

use super::frame::{self, Head};
use super::headers::Inflater;

/// What a client sends after the upgrade, as one run of frames.
pub fn frames(mut bytes: &[u8]) {
    let mut zlib = Inflater::new();
    while let Some((first, rest)) = bytes.split_first_chunk() {
        let Ok(head) = frame::head(*first) else { return };
        let (Head::Data { length, .. } | Head::Control { length, .. }) = head;
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        if let Head::Control { kind, flags, .. } = head
            && frame::control(kind, flags, payload, &mut zlib).is_err()
        {
            return;
        }
        bytes = rest;
    }
}
