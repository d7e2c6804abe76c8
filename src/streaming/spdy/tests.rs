use std::{sync::Arc, time::Duration};

use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    task::JoinHandle,
    time::timeout,
};

use super::{
    Incoming, connection,
    frame::{self, Control, Head, Reset},
    headers::{Deflater, Headers, Inflater},
};
use crate::streaming::{
    Ended,
    inbox::{Broken, STREAM_LIMIT},
    outgoing::{Activity, Envelope, Outgoing},
    transport::{Source, WriteHalf},
    websocket::Feed,
};

const SOON: Duration = Duration::from_secs(5);
const NEVER: Duration = Duration::from_millis(100);

/// A client of a connection in this process.
struct Client {
    wire: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
    incoming: Incoming,
    served: JoinHandle<Ended>,
}

#[derive(Debug, PartialEq)]
enum Got {
    Control(Control),
    Data(u32, bool, Vec<u8>),
}

impl Client {
    fn new(pipe: usize) -> Self {
        let (wire, server) = tokio::io::duplex(pipe);
        let (read, write) = tokio::io::split(server);
        let activity = Activity::new();
        let outgoing = Outgoing::new(WriteHalf::Other(Box::new(write)), Envelope::None, Arc::clone(&activity));
        let (mut server, incoming) = connection(Feed::Plain(Source::new(read)), outgoing, activity, Arc::default());
        Self {
            wire,
            deflater: Deflater::new(),
            inflater: Inflater::new(),
            incoming,
            served: tokio::spawn(async move { server.run().await }),
        }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let headers = Headers(vec![("streamtype".into(), kind.into())]);
        let mut frame = Vec::new();
        frame::syn_stream(&mut frame, stream, &headers, &mut self.deflater);
        self.send(&frame).await;
    }

    async fn data(&mut self, stream: u32, fin: bool, data: &[u8]) {
        self.send(&frame::data(stream, fin, data.len())).await;
        self.send(data).await;
    }

    async fn control(&mut self, fill: impl FnOnce(&mut Vec<u8>)) {
        let mut frame = Vec::new();
        fill(&mut frame);
        self.send(&frame).await;
    }

    async fn next(&mut self) -> Got {
        timeout(SOON, async {
            let mut head = [0; frame::HEADER];
            self.wire.read_exact(&mut head).await.unwrap();
            match frame::head(head).unwrap() {
                Head::Data { stream, fin, length } => {
                    let mut data = vec![0; length];
                    self.wire.read_exact(&mut data).await.unwrap();
                    Got::Data(stream, fin, data)
                }
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.wire.read_exact(&mut payload).await.unwrap();
                    let control = frame::control(kind, flags, &payload, &mut self.inflater);
                    Got::Control(control.unwrap().expect("a known frame"))
                }
            }
        })
        .await
        .expect("a frame soon")
    }

    /// The next frame that is not about windows.
    async fn answer(&mut self) -> Got {
        loop {
            match self.next().await {
                Got::Control(Control::Settings { .. } | Control::WindowUpdate { .. }) => {}
                other => return other,
            }
        }
    }

    async fn stream(&mut self) -> super::Stream {
        timeout(SOON, self.incoming.recv()).await.unwrap().unwrap()
    }

    async fn ended(self) -> Ended {
        timeout(SOON, self.served).await.expect("it ends").unwrap()
    }
}

fn reply(stream: u32) -> Got {
    Got::Control(Control::SynReply {
        stream,
        fin: false,
        headers: Headers::default(),
    })
}

fn reset(stream: u32, why: Reset) -> Got {
    Got::Control(Control::Reset {
        stream,
        status: why as u32,
    })
}

#[tokio::test]
async fn a_stream_carries_data_both_ways_and_is_half_closed_from_both_sides() {
    let mut client = Client::new(1 << 20);
    assert!(
        timeout(NEVER, client.wire.read_u8()).await.is_err(),
        "nothing is said before the client has spoken"
    );
    client.open(1, "stdin").await;
    let stream = client.stream().await;
    assert_eq!((stream.number(), stream.header("streamType")), (1, Some("stdin")));
    assert_eq!(client.answer().await, reply(1));
    client.data(1, false, b"hello").await;
    client.data(1, true, b"").await;
    assert_eq!(stream.read().await.unwrap().unwrap(), "hello");
    assert_eq!(stream.read().await, Ok(None));
    stream.write(b"world").await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(client.answer().await, Got::Data(1, false, b"world".to_vec()));
    assert_eq!(client.answer().await, Got::Data(1, true, Vec::new()));
    drop(stream);
    client.control(|out| frame::ping(out, 7)).await;
    assert_eq!(client.answer().await, Got::Control(Control::Ping(7)), "no reset came");
}

#[tokio::test]
async fn a_dropped_stream_is_reset_and_a_reset_stream_is_broken() {
    let mut client = Client::new(1 << 20);
    client.open(1, "stdin").await;
    drop(client.stream().await);
    assert_eq!(client.answer().await, reply(1));
    assert_eq!(client.answer().await, reset(1, Reset::Cancel));
    client.open(3, "stdin").await;
    let stream = client.stream().await;
    client.control(|out| frame::reset(out, 3, Reset::Cancel)).await;
    assert_eq!(stream.read().await, Err(Broken));
    assert!(stream.write(b"x").await.is_err());
}

#[tokio::test]
async fn a_client_that_goes_breaks_every_stream_off() {
    let mut client = Client::new(1 << 20);
    client.open(1, "stdin").await;
    client.open(3, "stdout").await;
    let (first, second) = (client.stream().await, client.stream().await);
    client.control(|out| frame::go_away(out, 0)).await;
    client.data(1, false, b"last").await;
    assert_eq!(
        first.read().await.unwrap().unwrap(),
        "last",
        "streams that are open go on"
    );
    drop(client.wire);
    assert_eq!(first.read().await, Err(Broken));
    assert_eq!(second.read().await, Err(Broken));
    assert!(matches!(
        timeout(SOON, client.served).await.unwrap().unwrap(),
        Ended::Closed
    ));
}

#[tokio::test]
async fn windows_bind_once_the_client_has_shown_that_it_knows_them() {
    let mut client = Client::new(8 << 20);
    client.open(1, "stdout").await;
    let stream = client.stream().await;
    assert_eq!(client.answer().await, reply(1));
    // As Go's clients: not a word about windows.
    timeout(SOON, stream.write(&[1; 1 << 20])).await.unwrap().unwrap();
    // From now on: both windows are far overdrawn.
    client.control(|out| frame::window_update(out, 1, 1 << 20)).await;
    client.control(|out| frame::ping(out, 1)).await;
    while client.answer().await != Got::Control(Control::Ping(1)) {}
    let (write, opened) = tokio::join!(timeout(SOON, stream.write(&[2; 1000])), async {
        assert!(
            timeout(NEVER, client.next()).await.is_err(),
            "the connection's window is shut"
        );
        client.control(|out| frame::window_update(out, 0, 1 << 20)).await;
        client.answer().await
    });
    write.unwrap().unwrap();
    assert_eq!(opened, Got::Data(1, false, vec![2; 1000]));
}

#[tokio::test]
async fn a_client_that_obeys_windows_is_told_what_was_read() {
    let mut client = Client::new(8 << 20);
    client.open(1, "stdin").await;
    let stream = client.stream().await;
    let Got::Control(Control::Settings { window: Some(window) }) = client.next().await else {
        panic!("the initial window comes first")
    };
    assert_eq!(window as usize, STREAM_LIMIT);
    let Got::Control(Control::WindowUpdate { stream: 0, .. }) = client.next().await else {
        panic!("and the connection's window")
    };
    assert_eq!(client.next().await, reply(1));
    client.data(1, false, &vec![0; STREAM_LIMIT]).await;
    let mut read = 0;
    while read < STREAM_LIMIT {
        read += stream.read().await.unwrap().unwrap().len();
    }
    let mut told = 0;
    while told < STREAM_LIMIT / 2 {
        match client.next().await {
            Got::Control(Control::WindowUpdate { stream: 1, delta }) => told += delta as usize,
            Got::Control(Control::WindowUpdate { stream: 0, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_full_stream_stops_a_client_without_windows_and_goes_on_when_it_is_read() {
    let mut client = Client::new(4096);
    client.open(1, "stdin").await;
    let stream = client.stream().await;
    let (mut wire, sum) = (client.wire, 4 * STREAM_LIMIT);
    let writer = tokio::spawn(async move {
        wire.write_all(&frame::data(1, true, sum)).await.unwrap();
        wire.write_all(&vec![7; sum]).await.unwrap();
        wire
    });
    tokio::time::sleep(NEVER).await;
    assert!(!writer.is_finished(), "the daemon does not take everything");
    let mut read = 0;
    while let Some(piece) = timeout(SOON, stream.read()).await.unwrap().unwrap() {
        assert!(piece.iter().all(|byte| *byte == 7));
        read += piece.len();
    }
    assert_eq!(read, sum);
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn streams_with_wrong_numbers_or_too_many_are_refused() {
    let mut client = Client::new(1 << 20);
    client.open(5, "a").await;
    let _kept = client.stream().await;
    assert_eq!(client.answer().await, reply(5));
    for (number, why) in [
        (2, Reset::Protocol),
        (5, Reset::InUse),
        (3, Reset::Protocol),
        (0, Reset::Protocol),
    ] {
        client.open(number, "b").await;
        assert_eq!(client.answer().await, reset(number, why));
    }
    let mut kept = Vec::new();
    for number in (7..).step_by(2).take(511) {
        client.open(number, "c").await;
        assert_eq!(client.answer().await, reply(number));
        kept.push(client.stream().await);
    }
    client.open(9001, "d").await;
    assert_eq!(client.answer().await, reset(9001, Reset::Refused));
    kept.clear();
    while !matches!(client.answer().await, Got::Control(Control::Reset { stream: 1027, .. })) {}
    client.open(9003, "e").await;
    assert_eq!(client.answer().await, reply(9003));
}

#[tokio::test]
async fn streams_that_are_reset_count_until_nobody_is_occupied_with_them() {
    let mut client = Client::new(1 << 20);
    for number in (1..).step_by(2).take(600) {
        client.open(number, "a").await;
        client.control(|out| frame::reset(out, number, Reset::Cancel)).await;
    }
    client.control(|out| frame::ping(out, 1)).await;
    let mut refused = 0;
    loop {
        match client.answer().await {
            Got::Control(Control::Reset { status, .. }) if status == Reset::Refused as u32 => refused += 1,
            Got::Control(Control::Ping(1)) => break,
            _ => {}
        }
    }
    assert_eq!(refused, 600 - 512);
    while client.incoming.try_recv().is_ok() {}
    client.open(9001, "b").await;
    assert_eq!(client.answer().await, reply(9001));
}

#[tokio::test]
async fn windows_that_overflow_or_shut_harm_only_their_client() {
    let mut client = Client::new(8 << 20);
    client.open(1, "stdout").await;
    let stream = client.stream().await;
    assert_eq!(client.answer().await, reply(1));
    for delta in [u32::MAX, i32::MAX as u32, 0] {
        for number in [0, 1, 99] {
            client.control(|out| frame::window_update(out, number, delta)).await;
        }
    }
    for window in [u32::MAX, 0, i32::MAX as u32] {
        client.control(|out| frame::initial_window(out, window)).await;
    }
    client.control(|out| frame::ping(out, 1)).await;
    assert_eq!(client.answer().await, Got::Control(Control::Ping(1)));
    timeout(SOON, stream.write(&[1; 1000])).await.unwrap().unwrap();
    assert_eq!(client.answer().await, Got::Data(1, false, vec![1; 1000]));
}

#[tokio::test]
async fn an_initial_window_that_is_taken_back_holds_the_stream_up() {
    let mut client = Client::new(8 << 20);
    client.open(1, "stdout").await;
    let stream = client.stream().await;
    client.control(|out| frame::initial_window(out, 0)).await;
    client.control(|out| frame::ping(out, 1)).await;
    while client.answer().await != Got::Control(Control::Ping(1)) {}
    assert!(timeout(NEVER, stream.write(b"x")).await.is_err());
}

#[tokio::test]
async fn a_client_that_asks_without_reading_is_cut_off() {
    let mut client = Client::new(1024);
    let mut pings = Vec::new();
    (0..20_000).for_each(|_| frame::ping(&mut pings, 1));
    // It stops reading us as soon as it gives up.
    let _ = timeout(SOON, client.wire.write_all(&pings)).await;
    assert!(matches!(client.ended().await, Ended::Io(_)));
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection() {
    let mut bomb = Vec::new();
    let zeros = Headers(vec![("a".into(), "\0".repeat(4 << 20))]);
    frame::syn_stream(&mut bomb, 1, &zeros, &mut Deflater::new());
    for (bytes, what) in [
        (bomb.as_slice(), "a header bomb"),
        (b"\x80\x03\x00\x01\x00\xff\xff\xff", "a control frame of 16 MiB"),
        (b"\x80\x02\x00\x01\x00\x00\x00\x0a", "SPDY/2"),
        (b"\x80\x03\x00\x06\x00\x00\x00\x02\x00\x01", "a short ping"),
        (b"\x00\x00\x00\x00\x00\x00\x00\x01a", "data of stream 0"),
        (
            b"\x80\x03\x00\x01\x00\x00\x00\x0e\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00abcd",
            "no zlib",
        ),
    ] {
        let mut client = Client::new(1 << 20);
        client.send(bytes).await;
        assert!(matches!(client.ended().await, Ended::Spdy(_)), "{what}");
    }
}

#[tokio::test]
async fn unknown_frames_and_data_of_streams_that_are_gone_are_ignored() {
    let mut client = Client::new(1 << 20);
    client.send(b"\x80\x03\x00\x0b\x00\x00\x00\x02ab").await;
    client.data(99, true, b"late").await;
    client.control(|out| frame::ping(out, 1)).await;
    assert_eq!(client.answer().await, Got::Control(Control::Ping(1)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_mean_the_same_however_the_network_cuts_them(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 1..8),
        cut in 1usize..97,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut client = Client::new(1 << 20);
            let mut bytes = Vec::new();
            let headers = Headers(vec![("streamtype".into(), "stdin".into())]);
            frame::syn_stream(&mut bytes, 1, &headers, &mut client.deflater);
            for piece in &pieces {
                bytes.extend_from_slice(&frame::data(1, false, piece.len()));
                bytes.extend_from_slice(piece);
                frame::ping(&mut bytes, 1);
            }
            bytes.extend_from_slice(&frame::data(1, true, 0));
            for part in bytes.chunks(cut) {
                client.send(part).await;
                tokio::task::yield_now().await;
            }
            let stream = client.stream().await;
            let mut read = Vec::new();
            while let Some(piece) = stream.read().await.unwrap() {
                read.extend_from_slice(&piece);
            }
            assert_eq!(read, pieces.concat());
        });
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut inflater = Inflater::new();
        if let Some((head, payload)) = bytes.split_first_chunk::<8>() {
            let mut head = *head;
            let _ = frame::head(head);
            // And as a control frame of a known kind.
            head[0] = 0x80;
            head[1] = 3;
            head[2] = 0;
            head[3] %= 12;
            if let Ok(Head::Control { kind, flags, .. }) = frame::head(head) {
                let _ = frame::control(kind, flags, payload, &mut inflater);
            }
        }
    }
}
