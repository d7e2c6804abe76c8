//! A client of port-forward over SPDY, plain or through a WebSocket.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::spdy::{Frame, Receiver, Sender};
use super::{upgrade, websocket};
use crate::{Result, lab::Lab};

type Ends = Arc<Mutex<HashMap<u32, mpsc::UnboundedSender<Vec<u8>>>>>;

/// A connection to a pod's ports.
pub struct Forward {
    sender: Sender<Box<dyn AsyncWrite + Send + Unpin>>,
    ends: Ends,
    next: u32,
    reader: tokio::task::JoinHandle<()>,
}

/// One forwarded connection.
pub struct Pair {
    pub data: u32,
    pub error: u32,
    from_pod: mpsc::UnboundedReceiver<Vec<u8>>,
    errors: mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Forward {
    /// Opens a connection.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn open(lab: &Lab, url: &str, tunnel: bool) -> Result<Self> {
        let (read, write): (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) = if tunnel {
            let (read, write) = tokio::io::split(websocket::tunnel(lab, url).await?);
            (Box::new(read), Box::new(write))
        } else {
            let headers = [
                ("Connection", "Upgrade"),
                ("Upgrade", "SPDY/3.1"),
                ("X-Stream-Protocol-Version", "portforward.k8s.io"),
            ];
            let (stream, answer) = upgrade(lab, "POST", url, &headers).await?;
            if answer.code != 101 {
                return Err(format!("refused: {answer:?}").into());
            }
            let (read, write) = stream.into_split();
            (Box::new(read), Box::new(write))
        };
        let ends = Ends::default();
        let shared = ends.clone();
        let reader = tokio::spawn(async move {
            let mut receiver = Receiver::new(read);
            while let Ok(Some(frame)) = receiver.next().await {
                let mut ends = shared.lock().expect("not poisoned");
                match frame {
                    Frame::Data { stream, fin, data } => {
                        if let Some(end) = ends.get(&stream) {
                            let _ = end.send(data);
                        }
                        if fin {
                            ends.remove(&stream);
                        }
                    }
                    Frame::Reset { stream, .. } => drop(ends.remove(&stream)),
                    _ => {}
                }
            }
            shared.lock().expect("not poisoned").clear();
        });
        Ok(Self {
            sender: Sender::new(write),
            ends,
            next: 0,
            reader,
        })
    }

    /// Asks for a connection to a port.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn connect(&mut self, port: &str) -> Result<Pair> {
        let id = self.next_id();
        let (error, errors) = self.stream("error", port, &id).await?;
        let (data, from_pod) = self.stream("data", port, &id).await?;
        // Clients never write errors.
        self.sender.data(error, true, &[]).await?;
        Ok(Pair {
            data,
            error,
            from_pod,
            errors,
        })
    }

    /// Opens the data stream alone.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn lone(&mut self, port: &str) -> Result<Pair> {
        let id = self.next_id();
        let (data, from_pod) = self.stream("data", port, &id).await?;
        Ok(Pair {
            data,
            error: 0,
            from_pod,
            errors: mpsc::unbounded_channel().1,
        })
    }

    fn next_id(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }

    async fn stream(&mut self, kind: &str, port: &str, id: &str) -> Result<(u32, mpsc::UnboundedReceiver<Vec<u8>>)> {
        let (end, received) = mpsc::unbounded_channel();
        let headers = [("streamtype", kind), ("port", port), ("requestid", id)];
        let number = self.sender.next_number();
        self.ends.lock().expect("not poisoned").insert(number, end);
        self.sender.open(&headers).await?;
        Ok((number, received))
    }

    /// Sends to the pod.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write(&mut self, pair: &Pair, data: &[u8]) -> Result {
        self.sender.data(pair.data, false, data).await
    }

    /// Half-closes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn end(&mut self, pair: &Pair) -> Result {
        self.sender.data(pair.data, true, &[]).await
    }

    /// Breaks one forwarded connection off.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn reset(&mut self, pair: &Pair) -> Result {
        self.sender.reset(pair.data).await
    }

    /// Goes without a word.
    pub fn break_off(self) {
        self.reader.abort();
    }
}

impl Pair {
    /// The next bytes from the pod; `None` at their end.
    ///
    /// # Panics
    /// When nothing comes for too long.
    pub async fn read(&mut self) -> Option<Vec<u8>> {
        let next = tokio::time::timeout(crate::PATIENCE, self.from_pod.recv());
        next.await.expect("something from the pod")
    }

    /// All that comes from the pod.
    pub async fn read_all(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(piece) = self.read().await {
            all.extend(piece);
        }
        all
    }

    /// All errors.
    ///
    /// # Panics
    /// When their stream does not end.
    pub async fn error(&mut self) -> String {
        let mut all = Vec::new();
        loop {
            let next = tokio::time::timeout(crate::PATIENCE, self.errors.recv());
            match next.await.expect("the end of the errors") {
                Some(piece) => all.extend(piece),
                None => return String::from_utf8_lossy(&all).into_owned(),
            }
        }
    }
}
