//! A plugin's socket: requests to the plugin and their answers, and the plugin's own requests.
//!
//! One task reads and one writes, so that a request that is given up leaves no half of a message behind, and so that a
//! plugin that does not read holds up nobody but who asks it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_proto::ttrpc;

use super::frame::{self, Decoder, Frame, Kind};

/// What plugins serve.
const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";

/// What plugins may ask for.
const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// Messages that wait to be written.
const OUTGOING: usize = 16;

/// Requests of a plugin that wait to be looked at; more are refused.
const INCOMING: usize = 16;

/// Read from the socket at a time, bytes.
const READING: usize = 32 << 10;

/// Why a request to a plugin came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The plugin has gone, or its socket was closed.
    #[error("the plugin has gone")]
    Closed,
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// It says no.
    #[error("{message} (code {code})")]
    Refused {
        /// As in gRPC.
        code: i32,
        /// Its words.
        message: String,
    },
    /// What it says makes no sense.
    #[error("not the protocol: {0}")]
    Protocol(String),
    /// The request can't be sent.
    #[error(transparent)]
    TooLong(#[from] frame::Fault),
}

impl Fault {
    /// The plugin can't be used any more.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Closed | Self::Timeout(_) | Self::Protocol(_))
    }

    /// The plugin is too old to know the method.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == code::UNIMPLEMENTED)
    }
}

/// Status codes that are used here, as gRPC numbers them.
pub mod code {
    /// What was asked for makes no sense.
    pub const INVALID_ARGUMENT: i32 = 3;
    /// Too much at a time.
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    /// Not now.
    pub const FAILED_PRECONDITION: i32 = 9;
    /// No such method.
    pub const UNIMPLEMENTED: i32 = 12;
}

/// A request that a plugin makes.
#[derive(Debug)]
pub struct Incoming {
    /// What for.
    pub method: String,
    /// The encoded message.
    pub content: Vec<u8>,
    stream: u32,
}

/// One plugin's socket. It is closed when the last of its handles says so, or the plugin does.
#[derive(Debug)]
pub struct Connection {
    outgoing: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: AtomicU32,
    closed: CancellationToken,
    /// The process at the other end; 0 when the kernel does not say.
    pub pid: i32,
}

/// Who waits for which stream's answer; none when nothing will come any more.
type Waiting = Arc<Mutex<Option<HashMap<u32, oneshot::Sender<Bytes>>>>>;

impl Connection {
    /// Speaks on `socket` from now on. The requests that the plugin makes come out of the receiver, which ends with the
    /// connection.
    pub fn start(socket: UnixStream, tasks: &TaskTracker) -> (Arc<Self>, mpsc::Receiver<Incoming>) {
        let pid = socket.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or(0);
        let (reader, writer) = socket.into_split();
        let (outgoing, to_write) = mpsc::channel(OUTGOING);
        let (incoming, requests) = mpsc::channel(INCOMING);
        let connection = Arc::new(Self {
            outgoing,
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
            next: AtomicU32::new(1),
            closed: CancellationToken::new(),
            pid,
        });
        let closed = connection.closed.clone();
        tasks.spawn(async move {
            let ended = closed.clone();
            tokio::select! {
                error = write(writer, to_write) => tracing::debug!(pid, %error, "can't write to an NRI plugin"),
                () = closed.cancelled() => {}
            }
            ended.cancel();
        });
        let (closed, waiting) = (connection.closed.clone(), Arc::clone(&connection.waiting));
        let answers = connection.outgoing.clone();
        tasks.spawn(async move {
            tokio::select! {
                end = read(reader, &waiting, incoming, answers) => match end {
                    Ok(()) => {}
                    Err(error) => tracing::warn!(pid, %error, "the connection to an NRI plugin is closed"),
                },
                () = closed.cancelled() => {}
            }
            closed.cancel();
            // Whoever waits hears of it by this.
            waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        (connection, requests)
    }

    /// Closes the socket. Requests under way fail.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Nothing comes any more.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Waits until the socket is closed, by whomever.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Asks the plugin, and waits for its answer for as long as `limit`.
    ///
    /// # Errors
    /// When it says no, or nothing in time.
    pub async fn ask<A: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
        limit: Duration,
    ) -> Result<A, Fault> {
        let envelope = ttrpc::Request {
            service: PLUGIN_SERVICE.to_owned(),
            method: method.to_owned(),
            payload: request.encode_to_vec(),
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
            metadata: Vec::new(),
        };
        let stream = self.next.fetch_add(2, Ordering::Relaxed);
        let bytes = frame::encode(frame::PLUGIN, stream, Kind::Request, &envelope.encode_to_vec())?;
        let (sender, answer) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(stream, sender),
            None => return Err(Fault::Closed),
        };
        let exchange = async {
            self.outgoing.send(bytes).await.map_err(|_| Fault::Closed)?;
            answer.await.map_err(|_| Fault::Closed)
        };
        let answered = tokio::select! {
            // One that says why before it goes is heard.
            biased;
            answered = tokio::time::timeout(limit, exchange) => answered,
            () = self.closed.cancelled() => Ok(Err(Fault::Closed)),
        };
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            waiting.remove(&stream);
        }
        let content = answered.map_err(|_| Fault::Timeout(limit))??;
        let wrong = |error: prost::DecodeError| Fault::Protocol(format!("the answer to {method}: {error}"));
        let answer = ttrpc::Response::decode(content).map_err(wrong)?;
        match answer.status {
            Some(status) if status.code != 0 => Err(Fault::Refused {
                code: status.code,
                message: status.message,
            }),
            _ => A::decode(answer.payload.as_slice()).map_err(wrong),
        }
    }

    /// Answers a request of the plugin. One that has gone needs no answer.
    pub async fn answer<A: Message>(&self, request: &Incoming, answer: Result<A, (i32, String)>) {
        let bytes = match &answer {
            Ok(message) => response(request.stream, Ok(message.encode_to_vec())),
            Err((code, message)) => response(request.stream, Err((*code, message.clone()))),
        };
        tokio::select! {
            _ = self.outgoing.send(bytes) => {}
            () = self.closed.cancelled() => {}
        }
    }
}

/// An encoded answer. One that would be too long says so.
fn response(stream: u32, answer: Result<Vec<u8>, (i32, String)>) -> Vec<u8> {
    let envelope = |answer: Result<Vec<u8>, (i32, String)>| {
        let (status, payload) = match answer {
            Ok(payload) => (None, payload),
            Err((code, message)) => (Some(ttrpc::Status { code, message }), Vec::new()),
        };
        ttrpc::Response { status, payload }.encode_to_vec()
    };
    frame::encode(frame::RUNTIME, stream, Kind::Response, &envelope(answer)).unwrap_or_else(|fault| {
        let short = envelope(Err((code::RESOURCE_EXHAUSTED, fault.to_string())));
        frame::encode(frame::RUNTIME, stream, Kind::Response, &short).unwrap_or_default()
    })
}

async fn write(mut socket: OwnedWriteHalf, mut messages: mpsc::Receiver<Vec<u8>>) -> io::Error {
    while let Some(message) = messages.recv().await {
        if let Err(error) = socket.write_all(&message).await {
            return error;
        }
    }
    io::ErrorKind::BrokenPipe.into()
}

/// Reads until the plugin closes its end.
async fn read(
    mut socket: OwnedReadHalf,
    waiting: &Waiting,
    incoming: mpsc::Sender<Incoming>,
    answers: mpsc::Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut decoder = Decoder::default();
    loop {
        decoder.buffer().reserve(READING);
        match socket.read_buf(decoder.buffer()).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(frame) = decoder.next().map_err(io::Error::other)? {
            match (frame.connection, frame.kind) {
                (frame::PLUGIN, Kind::Response) => {
                    let waiting = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .as_mut()
                        .and_then(|waiting| waiting.remove(&frame.stream));
                    // One that was given up is answered late.
                    if let Some(waiting) = waiting {
                        let _ = waiting.send(frame.content);
                    }
                }
                (frame::RUNTIME, Kind::Request) => {
                    let stream = frame.stream;
                    if let Err(refusal) = take(frame, &incoming) {
                        // A plugin that asks and does not read its answers is not waited for.
                        answers
                            .try_send(response(stream, Err(refusal)))
                            .map_err(|_| io::Error::other("the plugin does not read its answers"))?;
                    }
                }
                (connection, kind) => {
                    return Err(io::Error::other(format!(
                        "a message {kind:?} on connection {connection}, where there can be none"
                    )));
                }
            }
        }
    }
}

/// Passes a request on, or says why not.
fn take(frame: Frame, incoming: &mpsc::Sender<Incoming>) -> Result<(), (i32, String)> {
    if frame.stream.is_multiple_of(2) {
        let text = format!("stream {} is even; those of clients are odd", frame.stream);
        return Err((code::INVALID_ARGUMENT, text));
    }
    if frame.flags != 0 {
        return Err((code::UNIMPLEMENTED, "streams are not spoken here".to_owned()));
    }
    let request = ttrpc::Request::decode(frame.content)
        .map_err(|error| (code::INVALID_ARGUMENT, format!("no request: {error}")))?;
    if request.service != RUNTIME_SERVICE {
        return Err((code::UNIMPLEMENTED, format!("service {}", request.service)));
    }
    let full = |_| (code::RESOURCE_EXHAUSTED, "too many requests at a time".to_owned());
    incoming
        .try_send(Incoming {
            method: request.method,
            content: request.payload,
            stream: frame.stream,
        })
        .map_err(full)
}
