use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    time::timeout,
};

use super::{Channels, Form, Messages, Outlet};
use crate::streaming::{
    Ended,
    inbox::Inbox,
    outgoing::{Activity, Envelope, Outgoing},
    transport::{Source, WriteHalf},
};

const SOON: Duration = Duration::from_secs(5);

fn server() -> (DuplexStream, Messages, Arc<Outgoing>) {
    let (wire, server) = tokio::io::duplex(1 << 20);
    let (read, write) = tokio::io::split(server);
    let outgoing = Outgoing::new(WriteHalf::Other(Box::new(write)), Envelope::None, Activity::new());
    (wire, Messages::new(Source::new(read), outgoing.clone()), outgoing)
}

/// A frame as clients write it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn channels(form: Form, closes: bool) -> (DuplexStream, Channels, Arc<Inbox>, Outlet) {
    let (wire, messages, outgoing) = server();
    let inbox = Arc::new(Inbox::new(Arc::default()));
    let outlet = Outlet::new(outgoing.clone(), form, 1);
    let channels = Channels::new(
        messages,
        form,
        closes,
        vec![Some(inbox.clone())],
        Activity::new(),
        outgoing,
    );
    (wire, channels, inbox, outlet)
}

async fn all(inbox: &Inbox) -> Vec<u8> {
    let mut read = Vec::new();
    while let Ok(Some(piece)) = timeout(SOON, inbox.read()).await.expect("an end") {
        read.extend_from_slice(&piece);
    }
    read
}

#[tokio::test]
async fn a_message_may_come_in_frames_with_a_ping_between_them() {
    let (mut wire, mut channels, inbox, outlet) = channels(Form::Binary, true);
    let served = tokio::spawn(async move {
        let ended = channels.run().await;
        outlet.outgoing.close().await;
        ended
    });
    for bytes in [
        frame(0x02, b""),
        frame(0x00, b"\0hel"),
        frame(0x89, b"still there?"),
        frame(0x80, b"lo"),
        frame(0x82, b"\x07of no stream"),
        frame(0x82, b"\xff\0"),
        frame(0x82, b"\0too late"),
    ] {
        wire.write_all(&bytes).await.unwrap();
    }
    assert_eq!(all(&inbox).await, b"hello", "and v5 has closed the stream");
    let mut pong = [0; 14];
    wire.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x8a\x0cstill there?");
    wire.write_all(&frame(0x88, &1000u16.to_be_bytes())).await.unwrap();
    let mut close = [0; 4];
    wire.read_exact(&mut close).await.unwrap();
    assert_eq!(&close, b"\x88\x02\x03\xe8");
    assert!(matches!(timeout(SOON, served).await.unwrap().unwrap(), Ended::Closed));
}

#[tokio::test]
async fn before_v5_channel_255_is_a_channel_like_others() {
    let (mut wire, mut channels, inbox, _) = channels(Form::Binary, false);
    let served = tokio::spawn(async move { channels.run().await });
    wire.write_all(&frame(0x82, b"\xff\0")).await.unwrap();
    wire.write_all(&frame(0x82, b"\0open")).await.unwrap();
    assert_eq!(timeout(SOON, inbox.read()).await.unwrap().unwrap().unwrap(), "open");
    drop(wire);
    assert!(inbox.read().await.is_err());
    assert!(matches!(served.await.unwrap(), Ended::Closed));
}

#[tokio::test]
async fn base64_is_read_across_frames_and_written_as_text() {
    let (mut wire, mut channels, inbox, outlet) = channels(Form::Base64, false);
    let served = tokio::spawn(async move { channels.run().await });
    for bytes in [frame(0x01, b"0aG"), frame(0x00, b"Vsb"), frame(0x80, b"G8=")] {
        wire.write_all(&bytes).await.unwrap();
    }
    assert_eq!(timeout(SOON, inbox.read()).await.unwrap().unwrap().unwrap(), "hel");
    assert_eq!(timeout(SOON, inbox.read()).await.unwrap().unwrap().unwrap(), "lo");
    outlet.write(b"hello").await.unwrap();
    let mut message = [0; 11];
    wire.read_exact(&mut message).await.unwrap();
    assert_eq!(&message, b"\x81\x091aGVsbG8=");
    wire.write_all(&frame(0x81, b"0aGV")).await.unwrap();
    wire.write_all(&frame(0x81, b"0aGVs?")).await.unwrap();
    assert!(matches!(
        timeout(SOON, served).await.unwrap().unwrap(),
        Ended::WebSocket(_)
    ));
}

#[tokio::test]
async fn heads_have_the_shortest_form() {
    let (mut wire, _messages, outgoing) = server();
    let outlet = Outlet::new(outgoing, Form::Binary, 1);
    for (length, expected) in [
        (0, &b"\x82\x01\x01"[..]),
        (124, b"\x82\x7d\x01"),
        (125, b"\x82\x7e\0\x7e\x01"),
        (65534, b"\x82\x7e\xff\xff\x01"),
        (65535, b"\x82\x7f\0\0\0\0\0\x01\0\0\x01"),
    ] {
        outlet.write(&vec![0; length]).await.unwrap();
        let mut message = vec![0; expected.len() + length];
        wire.read_exact(&mut message).await.unwrap();
        assert!(message.starts_with(expected), "{length}");
    }
}

#[tokio::test]
async fn what_breaks_the_rules_is_told_and_ends_the_connection() {
    let mut long_ping = frame(0x89, &[0; 126]);
    long_ping.truncate(200);
    for (bytes, what) in [
        (b"\x82\x01a".to_vec(), "no mask"),
        (frame(0xc2, b"a"), "a reserved bit"),
        (frame(0x80, b"a"), "a continuation of nothing"),
        (
            [frame(0x02, b"\0"), frame(0x82, b"\0")].concat(),
            "a message inside another",
        ),
        (frame(0x09, b"a"), "a ping in parts"),
        (long_ping, "a long ping"),
        (frame(0x83, b"a"), "an unknown kind"),
        (frame(0x8b, b"a"), "an unknown control frame"),
    ] {
        let (mut wire, mut channels, _inbox, _) = channels(Form::Binary, true);
        wire.write_all(&bytes).await.unwrap();
        let ended = timeout(SOON, channels.run()).await.expect("it ends");
        assert!(matches!(ended, Ended::WebSocket(_)), "{what}: {ended}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_mean_the_same_however_the_network_cuts_them(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..70_000), 1..5),
        cut in 1usize..5000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut wire, mut channels, inbox, _) = channels(Form::Binary, true);
            let mut bytes = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let (first, last) = (index == 0, index + 1 == parts.len());
                let opcode = if first { 0x02 } else { 0x00 } | if last { 0x80 } else { 0 };
                let payload = if first { [b"\0", &part[..]].concat() } else { part.clone() };
                bytes.extend(frame(opcode, &payload));
            }
            bytes.extend(frame(0x82, b"\xff\0"));
            let sent = async {
                for part in bytes.chunks(cut) {
                    wire.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
                wire.shutdown().await.unwrap();
            };
            let (_, (), read) = tokio::join!(channels.run(), sent, all(&inbox));
            assert!(read == parts.concat());
        });
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut wire, mut channels, _inbox, _) = channels(Form::Base64, true);
            wire.write_all(&bytes).await.unwrap();
            wire.shutdown().await.unwrap();
            channels.run().await;
        });
    }
}
