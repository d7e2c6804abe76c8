//! Records of pods, containers and images, as a disk that went wrong may hold them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use wharf_proto::record::{Container, Exit, Image, Pod};

fuzz_target!(|bytes: &[u8]| {
    same::<Pod>(bytes);
    same::<Container>(bytes);
    same::<Image>(bytes);
    same::<Exit>(bytes);
});

/// What can be read is the same when it is written and read again.
fn same<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(record) = M::decode(bytes) {
        let again = M::decode(record.encode_to_vec().as_slice());
        // A number that is none is not equal to itself.
        assert!(again.is_ok_and(|again| again == record || format!("{again:?}") == format!("{record:?}")));
    }
}
