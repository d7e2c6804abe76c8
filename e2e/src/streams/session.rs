//! A client of exec or attach, whatever the protocol.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::{Frame, Receiver, Sender};
use super::{upgrade, websocket};
use crate::{Result, lab::Lab};

/// A transport and its subprotocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Spdy(&'static str),
    WebSocket(&'static str),
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Spdy(name) | Self::WebSocket(name) => name,
        }
    }

    /// Whether the outcome is told in JSON.
    pub fn tells_json(self) -> bool {
        self.name().starts_with("v4") || self.name().starts_with("v5")
    }

    /// Whether standard input can be ended while output goes on.
    pub fn half_closes(self) -> bool {
        matches!(self, Self::Spdy(_)) || self.name().starts_with("v5")
    }

    /// Whether a terminal's size can be told.
    pub fn resizes(self) -> bool {
        !matches!(self, Self::Spdy("v2.channel.k8s.io" | "channel.k8s.io"))
    }

    fn is_base64(self) -> bool {
        self.name().contains("base64")
    }
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl Want {
    pub const OUTPUT: Self = Self {
        stdin: false,
        stdout: true,
        stderr: true,
        tty: false,
    };
    pub const ALL: Self = Self {
        stdin: true,
        ..Self::OUTPUT
    };
    pub const TTY: Self = Self {
        stdin: true,
        stdout: true,
        stderr: false,
        tty: true,
    };
}

/// Numbers as WebSocket has them.
const STDIN: usize = 0;
const STDOUT: usize = 1;
const STDERR: usize = 2;
const ERROR: usize = 3;
const RESIZE: usize = 4;
const KINDS: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];

enum Out {
    Spdy(Sender<OwnedWriteHalf>, [u32; 5]),
    WebSocket(SplitSink<WebSocketStream<TcpStream>, Message>),
}

/// Open streams.
pub struct Session {
    pub protocol: Protocol,
    out: Out,
    /// What came, by number of the stream; the channel ends with the connection.
    events: mpsc::Receiver<(usize, Vec<u8>)>,
    reader: JoinHandle<()>,
    got: [Vec<u8>; 5],
}

/// All that came, and how it ended.
#[derive(Debug)]
pub struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What was on the error stream.
    pub status: String,
    protocol: Protocol,
}

impl Finished {
    /// The exit code that the status tells.
    ///
    /// # Panics
    /// When it tells none.
    pub fn code(&self) -> i32 {
        if !self.protocol.tells_json() {
            return match self.status.rsplit_once("exit code ") {
                None if self.status.is_empty() => 0,
                Some((_, code)) => code.parse().expect("a number"),
                None => panic!("no exit code: {self:?}"),
            };
        }
        let status: serde_json::Value = serde_json::from_str(&self.status).expect("a status in JSON");
        match status["status"].as_str() {
            Some("Success") => 0,
            _ => {
                assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
                let cause = &status["details"]["causes"][0];
                assert_eq!(cause["reason"], "ExitCode", "{status}");
                cause["message"]
                    .as_str()
                    .and_then(|code| code.parse().ok())
                    .expect("a number")
            }
        }
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Session {
    /// Opens the streams.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn open(lab: &Lab, protocol: Protocol, url: &str, want: Want) -> Result<Self> {
        // Small: a client that is not read from stops reading.
        let (sender, events) = mpsc::channel(4);
        let (out, reader) = match protocol {
            Protocol::Spdy(name) => spdy(lab, url, name, want, sender).await?,
            Protocol::WebSocket(name) => {
                let (sink, mut messages) = websocket::open(lab, url, name).await?.split();
                let reader = tokio::spawn(async move {
                    while let Some(Ok(message)) = messages.next().await {
                        let (number, data) = match message {
                            Message::Binary(data) if !protocol.is_base64() => (data[0], data[1..].to_vec()),
                            Message::Text(text) if protocol.is_base64() => {
                                let (number, data) = text.as_bytes().split_at(1);
                                (number[0] - b'0', STANDARD.decode(data).expect("Base64"))
                            }
                            Message::Close(_) => break,
                            _ => continue,
                        };
                        if sender.send((usize::from(number), data)).await.is_err() {
                            break;
                        }
                    }
                });
                (Out::WebSocket(sink), reader)
            }
        };
        Ok(Self {
            protocol,
            out,
            events,
            reader,
            got: Default::default(),
        })
    }

    async fn send(&mut self, number: usize, data: &[u8]) -> Result {
        match &mut self.out {
            Out::Spdy(sender, streams) => sender.data(streams[number], false, data).await,
            Out::WebSocket(sink) => {
                let message = if self.protocol.is_base64() {
                    Message::text(format!("{number}{}", STANDARD.encode(data)))
                } else {
                    Message::binary([&[number as u8], data].concat())
                };
                Ok(sink.send(message).await?)
            }
        }
    }

    /// Sends standard input.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write(&mut self, data: &[u8]) -> Result {
        self.send(STDIN, data).await
    }

    /// Ends standard input.
    ///
    /// # Errors
    /// When the connection is broken or the protocol has no word for it.
    pub async fn end_input(&mut self) -> Result {
        match &mut self.out {
            Out::Spdy(sender, streams) => sender.data(streams[STDIN], true, &[]).await,
            Out::WebSocket(sink) if self.protocol.half_closes() => {
                Ok(sink.send(Message::binary(vec![255, STDIN as u8])).await?)
            }
            Out::WebSocket(_) => Err("no half-close in this protocol".into()),
        }
    }

    /// Tells the terminal's size.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn resize(&mut self, width: u16, height: u16) -> Result {
        let text = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.send(RESIZE, text.as_bytes()).await
    }

    /// Reads until standard output holds `text`; returns all of it.
    ///
    /// # Panics
    /// When the session ends before, or nothing comes for too long.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let got = String::from_utf8_lossy(&self.got[STDOUT]).into_owned();
            if got.contains(text) {
                return got;
            }
            let next = tokio::time::timeout(crate::PATIENCE, self.events.recv()).await;
            match next {
                Ok(Some((number, data))) => self.got[number].extend_from_slice(&data),
                Ok(None) => panic!("{:?}: ended before {text:?}: {:?}", self.protocol, self.got),
                Err(_) => panic!("{:?}: waited in vain for {text:?}: {got:?}", self.protocol),
            }
        }
    }

    /// Standard error so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.got[STDERR]).into_owned()
    }

    /// Reads standard output, keeping nothing, until it has `count` bytes more, or ends; returns how many came.
    pub async fn count(&mut self, count: usize) -> usize {
        let mut sum = 0;
        while sum < count {
            match self.events.recv().await {
                Some((STDOUT, data)) => sum += data.len(),
                Some((number, data)) => self.got[number].extend_from_slice(&data),
                None => break,
            }
        }
        sum
    }

    /// Reads to the end.
    ///
    /// # Panics
    /// When it does not come.
    pub async fn finish(mut self) -> Finished {
        let end = async {
            while let Some((number, data)) = self.events.recv().await {
                self.got[number].extend_from_slice(&data);
                // Clients close when they have the status; v3 and older when the error stream has ended.
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), end).await.is_err() {
            panic!("{:?}: no end, so far {:?}", self.protocol, self.got);
        }
        let [_, stdout, stderr, status, _] = self.got;
        Finished {
            stdout,
            stderr,
            status: String::from_utf8_lossy(&status).into_owned(),
            protocol: self.protocol,
        }
    }

    /// Goes without a word, as a client that was killed.
    pub fn break_off(self) {
        self.reader.abort();
    }
}

async fn spdy(
    lab: &Lab,
    url: &str,
    name: &'static str,
    want: Want,
    events: mpsc::Sender<(usize, Vec<u8>)>,
) -> Result<(Out, JoinHandle<()>)> {
    let headers = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", name),
    ];
    let (stream, answer) = upgrade(lab, "POST", url, &headers).await?;
    if answer.code != 101 {
        return Err(format!("refused: {answer:?}").into());
    }
    assert_eq!(answer.header("x-stream-protocol-version"), Some(name));
    let (read, write) = stream.into_split();
    let (mut sender, mut receiver) = (Sender::new(write), Receiver::new(read));
    let mut streams = [0; 5];
    let resizes = want.tty && Protocol::Spdy(name).resizes();
    // In the order of Go's client: error, stdin, stdout, stderr, resize.
    for (kind, wanted) in [
        (ERROR, true),
        (STDIN, want.stdin),
        (STDOUT, want.stdout),
        (STDERR, want.stderr),
        (RESIZE, resizes),
    ] {
        if wanted {
            streams[kind] = sender.open(&[("streamtype", KINDS[kind])]).await?;
        }
    }
    let reader = tokio::spawn(async move {
        let mut open: Vec<u32> = [ERROR, STDOUT, STDERR]
            .into_iter()
            .map(|kind| streams[kind])
            .filter(|stream| *stream > 0)
            .collect();
        while let Ok(Some(frame)) = receiver.next().await {
            let (stream, data, ends) = match frame {
                Frame::Data { stream, fin, data } => (stream, data, fin),
                Frame::Reset { stream, .. } => (stream, Vec::new(), true),
                _ => continue,
            };
            let Some(kind) = streams.iter().position(|number| *number == stream) else {
                continue;
            };
            if !data.is_empty() && events.send((kind, data)).await.is_err() {
                return;
            }
            if ends {
                open.retain(|number| *number != stream);
                if open.is_empty() {
                    return;
                }
            }
        }
    });
    Ok((Out::Spdy(sender, streams), reader))
}
