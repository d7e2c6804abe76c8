//! The connection below the client: one task reads, one writes, requests find their answers by id.

use std::{
    collections::HashMap,
    future::poll_fn,
    io::{self, IoSlice},
    mem::MaybeUninit,
    ops::ControlFlow,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::{
    io::{AsyncRead as _, Interest, ReadBuf},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::oneshot,
};
use wharf_proto::monitor::{Reply, reply::Result as Answer};

use super::{
    super::frame::Assembler,
    Event,
    pulse::Pulse,
    queue::{Receiver, Sender},
};

/// A frame to send, with the descriptors that travel with its first byte.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// Requests without an answer yet; `None` once the connection has closed.
#[derive(Debug)]
pub(super) struct Waiting(Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>);

impl Waiting {
    pub fn new() -> Waiting {
        Waiting(Mutex::new(Some(HashMap::new())))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Option<HashMap<u64, oneshot::Sender<Answer>>>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers request `id`; `None` when the connection has closed.
    pub fn expect(&self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        self.with(|waiting| waiting.as_mut().map(|map| map.insert(id, sender)))?;
        Some(receiver)
    }

    fn answer(&self, id: u64, answer: Answer) {
        if let Some(sender) = self.with(|waiting| waiting.as_mut().and_then(|map| map.remove(&id))) {
            let _ = sender.send(answer);
        }
    }

    /// Ends every wait and lets no new one begin.
    pub fn close(&self) {
        self.with(Option::take);
    }

    pub fn is_closed(&self) -> bool {
        self.with(|waiting| waiting.is_none())
    }
}

/// Reads until the connection ends or breaks the protocol.
pub(super) async fn read(mut socket: OwnedReadHalf, waiting: &Waiting, pulse: &Pulse, events: Sender<Event>) {
    let mut assembler = Assembler::default();
    let mut took = |bytes: &[u8]| {
        if pulse.beat() {
            tracing::info!("a pod's monitor answers again");
        }
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(assembler.wanted().min(bytes.len()));
            bytes = later;
            match assembler.push::<Reply>(now) {
                Ok(None) => {}
                Ok(Some(reply)) => deliver(reply, waiting, &events),
                Err(error) => {
                    tracing::error!(%error, "a monitor broke the protocol");
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    };
    let mut read_once = |context: &mut Context<'_>| {
        // Here and not in the task, which waits for most of a pod's life.
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut buffer = ReadBuf::uninit(&mut room);
        match ready!(Pin::new(&mut socket).poll_read(context, &mut buffer)) {
            Ok(()) if !buffer.filled().is_empty() => Poll::Ready(took(buffer.filled())),
            _ => Poll::Ready(ControlFlow::Break(())),
        }
    };
    while poll_fn(&mut read_once).await.is_continue() {}
    waiting.close();
}

fn deliver(reply: Reply, waiting: &Waiting, events: &Sender<Event>) {
    let event = match reply.result {
        Some(Answer::ContainerExited(exited)) => Event::ContainerExited(exited),
        Some(Answer::ExecExited(exited)) => Event::ExecExited(exited),
        Some(Answer::CallsBlocked(blocked)) => Event::CallsBlocked(blocked),
        Some(answer) => return waiting.answer(reply.id, answer),
        // A newer monitor's answer or event.
        None => return,
    };
    // Nobody listens: then nobody wants to know.
    let _ = events.send(event);
}

/// Writes frames until the connection ends. One task owns the writing, so that a request given up half-way leaves no
/// half frame.
pub(super) async fn write(socket: OwnedWriteHalf, mut frames: Receiver<Outgoing>) {
    while let Some(frame) = frames.recv().await {
        if send(socket.as_ref(), &frame).await.is_err() {
            return;
        }
    }
}

async fn send(socket: &UnixStream, frame: &Outgoing) -> io::Result<()> {
    let descriptors: Vec<RawFd> = frame.descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut sent = 0;
    while sent < frame.bytes.len() {
        sent += socket
            .async_io(Interest::WRITABLE, || {
                let rights = [ControlMessage::ScmRights(&descriptors)];
                let control = if sent == 0 && !descriptors.is_empty() {
                    &rights[..]
                } else {
                    &[]
                };
                Ok(sendmsg::<()>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(&frame.bytes[sent..])],
                    control,
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )?)
            })
            .await?;
    }
    Ok(())
}
