//! Between a session and this process's stdin, stdout and stderr.

use std::io;

use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use super::connect::Transport;
use super::terminal::{self, Raw};
use super::{CLOSE, ERROR, Ended, Keys, RESIZE, STDERR, STDIN, STDOUT, Socket};
use crate::cli::error::{Error, Result};

type Sending = SplitSink<WebSocketStream<Box<dyn Transport>>, Message>;
type Receiving = SplitStream<WebSocketStream<Box<dyn Transport>>>;

/// Read from stdin at a time.
const BLOCK: usize = 32 << 10;

/// How a session ended for us.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The other side says so.
    Over(Ended),
    /// The person typed the keys for it.
    Detached,
    /// The connection broke without a word.
    Lost(String),
}

/// An open session.
pub struct Relay {
    sending: Sending,
    receiving: Receiving,
    closes: bool,
    stdin: bool,
    tty: bool,
    keys: Option<Keys>,
    /// The first message, which says that the session stands.
    first: Option<Message>,
}

impl Relay {
    /// Takes over an open connection. With `keys`, typing them in a terminal leaves it.
    pub fn new(socket: Socket, stdin: bool, tty: bool, keys: Option<Keys>) -> Self {
        let closes = socket.closes();
        let (sending, receiving) = socket.stream.split();
        Self {
            sending,
            receiving,
            closes,
            stdin,
            tty,
            keys,
            first: None,
        }
    }

    /// Waits until the session stands, so that nothing that happens afterwards is missed. A terminal has got its size
    /// by then, before what will run in it.
    pub async fn established(&mut self) {
        if self.tty {
            resize(&mut self.sending).await;
        }
        if let Some(Ok(message)) = self.receiving.next().await {
            self.first = Some(message);
        }
    }

    /// Moves bytes until one side ends it. The terminal is as before when this has ended or is dropped.
    pub async fn run(self) -> Result<End> {
        let raw = match self.tty && self.stdin && terminal::stdin_is_terminal() {
            true => Some(Raw::new().map_err(|source| Error::new(format!("set the terminal up: {source}")))?),
            false => None,
        };
        let mut receiving = Incoming::new(self.receiving);
        if let Some(message) = self.first
            && let Some(end) = receiving.take(message)?
        {
            return Ok(end);
        }
        let outgoing = Outgoing {
            sending: self.sending,
            closes: self.closes,
        };
        let end = tokio::select! {
            end = receiving.run() => end?,
            end = outgoing.run(self.stdin, self.tty, self.keys) => end?,
        };
        drop(raw);
        Ok(end)
    }
}

struct Incoming {
    receiving: Receiving,
    status: Vec<u8>,
}

impl Incoming {
    fn new(receiving: Receiving) -> Self {
        Self {
            receiving,
            status: Vec::new(),
        }
    }

    async fn run(&mut self) -> Result<End> {
        loop {
            match self.receiving.next().await {
                Some(Ok(message)) => {
                    if let Some(end) = self.take(message)? {
                        return Ok(end);
                    }
                }
                Some(Err(error)) => return Ok(self.end(&error.to_string())),
                None => return Ok(self.end("it was closed")),
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<Option<End>> {
        let data = match message {
            Message::Binary(data) => data,
            Message::Close(_) => return Ok(Some(self.end("it was closed"))),
            _ => return Ok(None),
        };
        let Some((&channel, content)) = data.split_first() else {
            return Ok(None);
        };
        match channel {
            STDOUT => write(&mut io::stdout().lock(), content)?,
            STDERR => write(&mut io::stderr().lock(), content)?,
            ERROR => self.status.extend_from_slice(content),
            _ => {}
        }
        // The status is the last word; some servers keep the connection a while after it.
        Ok((channel == ERROR && !content.is_empty()).then(|| self.end("")))
    }

    fn end(&self, why: &str) -> End {
        match self.status.as_slice() {
            [] => End::Lost(why.to_owned()),
            status => End::Over(Ended::parse(status)),
        }
    }
}

fn write(to: &mut impl io::Write, mut content: &[u8]) -> Result<()> {
    // A terminal shared with a program that has made it non-blocking.
    while !content.is_empty() {
        match to.write(content) {
            Ok(count) => content = content.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    to.flush()?;
    Ok(())
}

struct Outgoing {
    sending: Sending,
    closes: bool,
}

impl Outgoing {
    /// Ends only when the person detaches; that the connection broke is seen by who reads.
    async fn run(mut self, stdin: bool, tty: bool, keys: Option<Keys>) -> Result<End> {
        let mut resized = signal(SignalKind::window_change())
            .map_err(|source| Error::new(format!("watch for the terminal's size: {source}")))?;
        let mut matcher = keys.filter(|_| tty && stdin).map(|keys| keys.matcher());
        let mut input = tokio::io::stdin();
        let mut open = stdin;
        let mut buffer = vec![0; BLOCK];
        if tty {
            resize(&mut self.sending).await;
        }
        loop {
            tokio::select! {
                count = input.read(&mut buffer), if open => {
                    let count = count.unwrap_or(0);
                    if count == 0 {
                        open = false;
                        self.close_stdin().await;
                        continue;
                    }
                    let typed = buffer.get(..count).unwrap_or_default();
                    let (typed, detach) = match &mut matcher {
                        Some(matcher) => matcher.pass(typed),
                        None => (typed.to_vec(), false),
                    };
                    self.send(STDIN, &typed).await;
                    if detach {
                        let _ = self.sending.close().await;
                        return Ok(End::Detached);
                    }
                }
                _ = resized.recv(), if tty => resize(&mut self.sending).await,
                else => std::future::pending().await,
            }
        }
    }

    async fn send(&mut self, channel: u8, content: &[u8]) {
        send(&mut self.sending, channel, content).await;
    }

    async fn close_stdin(&mut self) {
        // Before v5 there is no word for it.
        if self.closes {
            self.send(CLOSE, &[STDIN]).await;
        }
    }
}

async fn send(sending: &mut Sending, channel: u8, content: &[u8]) {
    if content.is_empty() {
        return;
    }
    let mut message = Vec::with_capacity(content.len() + 1);
    message.push(channel);
    message.extend_from_slice(content);
    let _ = sending.send(Message::binary(message)).await;
}

async fn resize(sending: &mut Sending) {
    if let Some((width, height)) = terminal::size() {
        let size = serde_json::json!({ "Width": width, "Height": height }).to_string();
        send(sending, RESIZE, size.as_bytes()).await;
    }
}
