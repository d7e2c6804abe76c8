//! A connection: reads frames, hands new streams out, answers what needs an answer.
//!
//! Clients written in Go (kubectl, kubelet, crictl) know no flow control: they neither obey windows nor ever open them.
//! So a window binds us only once the client has named or opened one; and a client that ignores ours is slowed down by
//! not reading, when a stream's inbox is full.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::Buf as _;
use tokio::sync::{Notify, mpsc};

use super::{
    frame::{self, Control, Head, Reset},
    headers::{Deflater, Headers, Inflater},
    stream::{Entry, Stream},
};
use crate::streaming::{
    Ended,
    inbox::{Budget, CONNECTION_LIMIT, STREAM_LIMIT},
    outgoing::{Activity, Outgoing},
    websocket::Feed,
};

/// Streams of one connection at a time, those that the client has reset but that still occupy somebody among them. A
/// port-forward uses two for each forwarded connection.
const STREAMS_LIMIT: usize = 512;
/// Window of a stream and of a connection until somebody says otherwise.
const DEFAULT_WINDOW: i64 = 64 << 10;
/// The client sends no more than this before we have read it, if it obeys windows.
const STREAM_WINDOW: u32 = STREAM_LIMIT as u32;
const CONNECTION_WINDOW: u32 = (CONNECTION_LIMIT / 2) as u32;

/// New streams, in the order in which the client opened them.
pub type Incoming = mpsc::UnboundedReceiver<Stream>;

/// What a connection and its streams share.
pub struct Shared {
    pub outgoing: Arc<Outgoing>,
    streams: Mutex<HashMap<u32, Arc<Entry>>>,
    /// [`Stream`]s that exist.
    pub alive: AtomicUsize,
    /// The client obeys and opens windows.
    windows: AtomicBool,
    /// What we may still send on the whole connection; changed only with `streams` locked.
    window: AtomicI64,
    /// Somebody's window was opened, or a stream has ended.
    pub opened: Notify,
    /// Bytes that were read and not yet told to the client.
    unacknowledged: AtomicU32,
}

impl Shared {
    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Arc<Entry>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up to `want` bytes from the stream's and the connection's window; 0 when one of them is shut.
    pub fn take(&self, entry: &Entry, want: usize) -> usize {
        let _lock = self.streams();
        let (stream, whole) = (
            entry.window.load(Ordering::Relaxed),
            self.window.load(Ordering::Relaxed),
        );
        let granted = if self.windows.load(Ordering::Relaxed) {
            (want as i64).min(stream).min(whole).max(0)
        } else {
            want as i64
        };
        entry.window.store(stream - granted, Ordering::Relaxed);
        self.window.store(whole - granted, Ordering::Relaxed);
        granted as usize
    }

    /// Tells the client, now and then, that `count` bytes of a stream (or of none) were read.
    pub fn acknowledge(&self, entry: Option<&Entry>, count: usize) {
        let mut frames = Vec::new();
        let mut add = |total: &AtomicU32, stream: u32, window: u32| {
            let sum = total.load(Ordering::Relaxed).saturating_add(count as u32);
            let due = sum >= window / 2;
            total.store(if due { 0 } else { sum }, Ordering::Relaxed);
            if due {
                frame::window_update(&mut frames, stream, sum);
            }
        };
        add(&self.unacknowledged, 0, CONNECTION_WINDOW);
        if let Some(entry) = entry.filter(|entry| !entry.inbox.has_ended()) {
            add(&entry.unacknowledged, entry.number, STREAM_WINDOW);
        }
        if !frames.is_empty() {
            // A full queue means that the client does not read: it will not miss this.
            let _ = self.outgoing.urgent(&frames);
        }
    }

    /// Forgets a stream.
    pub fn forget(&self, number: u32) {
        self.streams().remove(&number);
        self.opened.notify_waiters();
    }
}

/// One client's connection; [`Connection::run`] must be polled for its streams to live.
pub struct Connection {
    feed: Feed,
    shared: Arc<Shared>,
    activity: Arc<Activity>,
    budget: Arc<Budget>,
    inflater: Inflater,
    deflater: Deflater,
    incoming: Option<mpsc::UnboundedSender<Stream>>,
    last: u32,
    /// Where the initial window that the client named ends up.
    initial_window: i64,
    /// The rest of a data frame that has not come yet.
    rest: Option<(u32, bool, usize)>,
}

/// A connection that reads from `feed` and writes to `outgoing`, and its streams.
pub fn connection(
    feed: Feed,
    outgoing: Arc<Outgoing>,
    activity: Arc<Activity>,
    budget: Arc<Budget>,
) -> (Connection, Incoming) {
    let (sender, incoming) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        outgoing,
        streams: Mutex::default(),
        alive: AtomicUsize::new(0),
        windows: AtomicBool::new(false),
        window: AtomicI64::new(DEFAULT_WINDOW),
        opened: Notify::new(),
        unacknowledged: AtomicU32::new(0),
    });
    let connection = Connection {
        feed,
        shared,
        activity,
        budget,
        inflater: Inflater::new(),
        deflater: Deflater::new(),
        incoming: Some(sender),
        last: 0,
        initial_window: DEFAULT_WINDOW,
        rest: None,
    };
    (connection, incoming)
}

impl Connection {
    /// Serves until the client has gone. Then every stream is broken off.
    pub async fn run(&mut self) -> Ended {
        let outgoing = self.shared.outgoing.clone();
        let ended = tokio::select! {
            ended = self.read() => ended,
            written = outgoing.run() => written.map_or_else(Into::into, |()| Ended::Closed),
        };
        self.break_off();
        ended
    }

    /// Tells the client that no new stream is served.
    pub fn go_away(&mut self) {
        self.incoming = None;
        let mut frames = Vec::new();
        frame::go_away(&mut frames, self.last);
        let _ = self.shared.outgoing.urgent(&frames);
    }

    fn break_off(&mut self) {
        self.incoming = None;
        let streams: Vec<_> = self.shared.streams().drain().map(|(_, entry)| entry).collect();
        for entry in streams {
            entry.is_reset.store(true, Ordering::Relaxed);
            entry.inbox.break_off();
        }
        self.shared.opened.notify_waiters();
    }

    async fn read(&mut self) -> Ended {
        loop {
            match self.frames().await {
                Ok(()) => {}
                Err(ended) => return ended,
            }
            match self.feed.fill().await {
                Ok(true) => self.activity.touch(),
                Ok(false) => return Ended::Closed,
                Err(ended) => return ended,
            }
        }
    }

    /// Handles every frame that has come.
    async fn frames(&mut self) -> Result<(), Ended> {
        loop {
            if let Some((number, fin, left)) = self.rest {
                let here = left.min(self.feed.buffer().len());
                if here == 0 && left > 0 {
                    return Ok(());
                }
                let piece = self.feed.buffer().split_to(here).freeze();
                self.rest = (here < left).then_some((number, fin, left - here));
                self.data(number, piece, fin && self.rest.is_none()).await?;
                continue;
            }
            let Some(head) = self.feed.buffer().first_chunk::<{ frame::HEADER }>() else {
                return Ok(());
            };
            match frame::head(*head)? {
                Head::Data { stream, fin, length } => {
                    self.feed.buffer().advance(frame::HEADER);
                    self.rest = Some((stream, fin, length));
                }
                Head::Control { kind, flags, length } => {
                    if self.feed.buffer().len() < frame::HEADER + length {
                        return Ok(());
                    }
                    let frame = self.feed.buffer().split_to(frame::HEADER + length);
                    let payload = frame.get(frame::HEADER..).unwrap_or_default();
                    if let Some(control) = frame::control(kind, flags, payload, &mut self.inflater)? {
                        self.control(control)?;
                    }
                }
            }
        }
    }

    async fn data(&mut self, number: u32, piece: bytes::Bytes, fin: bool) -> Result<(), Ended> {
        let entry = self.shared.streams().get(&number).cloned();
        let length = piece.len();
        // A stream that is gone: its last frames may have been on their way.
        let Some(entry) = entry else {
            self.shared.acknowledge(None, length);
            return Ok(());
        };
        if entry.inbox.is_full() {
            // Streams that are read meanwhile go on, and a client that is gone is noticed.
            tokio::select! {
                () = entry.inbox.room() => {}
                () = self.feed.hung_up() => return Err(Ended::Closed),
            }
        }
        if !entry.inbox.push(piece) {
            self.shared.acknowledge(Some(&entry), length);
        }
        if fin {
            self.finished(&entry);
        }
        Ok(())
    }

    fn finished(&self, entry: &Entry) {
        entry.inbox.finish();
        if entry.is_finished.load(Ordering::Relaxed) {
            self.shared.forget(entry.number);
        }
    }

    fn control(&mut self, control: Control) -> Result<(), Ended> {
        match control {
            Control::SynStream {
                stream,
                fin,
                unidirectional,
                headers,
            } => self.opened(stream, fin, unidirectional, headers)?,
            // We open no streams; the header stream of the client's was kept in step by reading the frame.
            Control::SynReply { .. } => {}
            Control::Headers { stream, fin, .. } => {
                let entry = self.shared.streams().get(&stream).cloned();
                if let (true, Some(entry)) = (fin, entry) {
                    self.finished(&entry);
                }
            }
            Control::Reset { stream, .. } => {
                let entry = self.shared.streams().remove(&stream);
                if let Some(entry) = entry {
                    entry.is_reset.store(true, Ordering::Relaxed);
                    entry.inbox.break_off();
                    self.shared.opened.notify_waiters();
                }
            }
            Control::Settings { window } => self.settings(window),
            Control::Ping(id) => {
                // The client's own are odd; even ones would be answers to ours.
                if id % 2 == 1 {
                    let mut frames = Vec::new();
                    frame::ping(&mut frames, id);
                    self.shared.outgoing.urgent(&frames)?;
                }
            }
            Control::GoAway { .. } => {
                self.incoming = None;
                if self.shared.streams().is_empty() {
                    return Err(Ended::Closed);
                }
            }
            Control::WindowUpdate { stream, delta } => self.window(stream, delta),
        }
        Ok(())
    }

    fn opened(&mut self, number: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<(), Ended> {
        let mut frames = Vec::new();
        let Some(incoming) = &self.incoming else {
            frame::reset(&mut frames, number, Reset::Refused);
            return Ok(self.shared.outgoing.urgent(&frames)?);
        };
        let refused = if number.is_multiple_of(2) {
            Some(Reset::Protocol)
        } else if self.shared.streams().contains_key(&number) {
            Some(Reset::InUse)
        } else if number <= self.last {
            Some(Reset::Protocol)
        } else if self.shared.alive.load(Ordering::Relaxed) >= STREAMS_LIMIT {
            Some(Reset::Refused)
        } else {
            None
        };
        if let Some(why) = refused {
            frame::reset(&mut frames, number, why);
            return Ok(self.shared.outgoing.urgent(&frames)?);
        }
        if self.last == 0 {
            // Not before the client has spoken: Go's clients lose what comes together with the answer to the upgrade.
            frame::initial_window(&mut frames, STREAM_WINDOW);
            frame::window_update(&mut frames, 0, CONNECTION_WINDOW - DEFAULT_WINDOW as u32);
        }
        self.last = number;
        frame::syn_reply(&mut frames, number, &mut self.deflater)?;
        self.shared.outgoing.urgent(&frames)?;
        let entry = Arc::new(Entry::new(number, self.initial_window, self.budget.clone()));
        if fin {
            entry.inbox.finish();
        }
        entry.is_finished.store(unidirectional, Ordering::Relaxed);
        self.shared.streams().insert(number, entry.clone());
        let _ = incoming.send(Stream::new(headers, entry, self.shared.clone()));
        Ok(())
    }

    fn settings(&mut self, window: Option<u32>) {
        let Some(window) = window else { return };
        let change = i64::from(window) - self.initial_window;
        self.initial_window = i64::from(window);
        for entry in self.shared.streams().values() {
            entry.window.fetch_add(change, Ordering::Relaxed);
        }
        self.shared.windows.store(true, Ordering::Relaxed);
        self.shared.opened.notify_waiters();
    }

    fn window(&self, number: u32, delta: u32) {
        let streams = self.shared.streams();
        let window = match number {
            0 => Some(&self.shared.window),
            _ => streams.get(&number).map(|entry| &entry.window),
        };
        if let Some(window) = window {
            let sum = window.load(Ordering::Relaxed) + i64::from(delta);
            window.store(sum.min(i64::from(i32::MAX)), Ordering::Relaxed);
        }
        drop(streams);
        self.shared.windows.store(true, Ordering::Relaxed);
        self.shared.opened.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.break_off();
    }
}
