//! A command in a container whose streams are this process's own, not the person's.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use wharf_proto::cri;

use crate::cli::client::{Client, Owner};
use crate::cli::error::{Error, Result};
use crate::cli::exec::PROTOCOLS;
use crate::cli::stream::{self, Ended};

/// Most that is kept of what a command says about its failure, bytes.
const SAID: usize = 4096;

/// A command to run.
pub struct Exec<'a> {
    client: &'a Client,
    id: &'a str,
    command: &'a [&'a str],
}

impl<'a> Exec<'a> {
    pub fn new(client: &'a Client, id: &'a str, command: &'a [&'a str]) -> Self {
        Self { client, id, command }
    }

    /// Whether it ends with 0.
    pub async fn succeeds(&self) -> Result<bool> {
        let (ended, _) = self.run(None, None).await?;
        match ended {
            Ended::Code(code) => Ok(code == 0),
            Ended::Failed(message) => Err(Error::new(message)),
        }
    }

    /// Gives it `pieces` to read.
    pub async fn feed(&self, pieces: mpsc::Receiver<Bytes>) -> Result<()> {
        self.check(self.run(Some(pieces), None).await?)
    }

    /// Hands on what it writes.
    pub async fn collect(&self, sender: mpsc::Sender<Bytes>) -> Result<()> {
        self.check(self.run(None, Some(sender)).await?)
    }

    fn check(&self, (ended, said): (Ended, Vec<u8>)) -> Result<()> {
        let name = self.command.first().copied().unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        match ended {
            Ended::Code(0) => Ok(()),
            Ended::Code(code) => Err(Error::new(format!(
                "{name} in the container ended with {code}: {}",
                said.trim()
            ))),
            Ended::Failed(message) => Err(Error::new(message).hint("Copying needs the program tar in the container.")),
        }
    }

    async fn run(
        &self,
        pieces: Option<mpsc::Receiver<Bytes>>,
        output: Option<mpsc::Sender<Bytes>>,
    ) -> Result<(Ended, Vec<u8>)> {
        let message = cri::ExecRequest {
            container_id: self.id.to_owned(),
            cmd: self.command.iter().map(|word| (*word).to_owned()).collect(),
            tty: false,
            stdin: pieces.is_some(),
            stdout: true,
            stderr: true,
        };
        let answer = self
            .client
            .runtime()
            .exec(self.client.patient(message, Owner::All))
            .await;
        let answer = answer.map_err(|status| self.client.error("run tar in the container", &status))?;
        let socket = stream::connect(&answer.into_inner().url, PROTOCOLS).await?;
        let closes = socket.closes();
        let (mut sending, mut receiving) = socket.stream.split();
        let up = async {
            if let Some(mut pieces) = pieces {
                while let Some(piece) = pieces.recv().await {
                    let message = [&[stream::STDIN], &piece[..]].concat();
                    if sending.send(Message::binary(message)).await.is_err() {
                        break;
                    }
                }
                if closes {
                    let _ = sending.send(Message::binary(vec![stream::CLOSE, stream::STDIN])).await;
                }
            }
            std::future::pending::<()>().await;
        };
        let down = async {
            let mut said = Vec::new();
            loop {
                let data = match receiving.next().await {
                    Some(Ok(Message::Binary(data))) => data,
                    Some(Ok(Message::Close(_))) | None => return Err(Error::new("the connection broke")),
                    Some(Ok(_)) => continue,
                    Some(Err(error)) => return Err(Error::new(format!("the connection broke: {error}"))),
                };
                let content = data.slice(1.min(data.len())..);
                match data.first() {
                    Some(&stream::STDOUT) if !content.is_empty() => {
                        if let Some(output) = &output
                            && output.send(content).await.is_err()
                        {
                            // Who extracts has met an error, and tells it.
                            return Ok((Ended::Code(0), said));
                        }
                    }
                    Some(&stream::STDERR) => {
                        let room = SAID.saturating_sub(said.len()).min(content.len());
                        said.extend_from_slice(content.get(..room).unwrap_or_default());
                    }
                    Some(&stream::ERROR) if !content.is_empty() => return Ok((Ended::parse(&content), said)),
                    _ => {}
                }
            }
        };
        tokio::select! {
            () = up => Err(Error::new("the connection broke")),
            result = down => result,
        }
    }
}

/// Writes pieces for [`Exec::feed`], from another thread.
pub struct Pieces(pub mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Bytes::copy_from_slice(bytes))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads what [`Exec::collect`] hands on, on another thread.
pub struct Arriving {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Arriving {
    pub fn new(pieces: mpsc::Receiver<Bytes>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        let piece = self.current.split_to(count);
        buffer[..count].copy_from_slice(&piece);
        Ok(count)
    }
}
