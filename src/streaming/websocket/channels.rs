//! Streams as Kubernetes puts them into messages: the first byte is the stream's number, binary or as an ASCII digit
//! with the rest in Base64. In v5, message 255 closes the stream that it names.

use std::{io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{
    Close, Messages, Opcode,
    frame::{self, Piece},
};
use crate::streaming::{
    Ended,
    inbox::Inbox,
    outgoing::{Activity, Outgoing},
};

/// The number in v5 by which one side says that it sends nothing more on another.
const CLOSE: u8 = 255;

/// How a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Binary,
    Base64,
}

/// Reads messages into inboxes.
pub struct Channels {
    messages: Messages,
    form: Form,
    /// v5: streams can be closed.
    closes: bool,
    /// By number; what comes on others is dropped.
    inboxes: Vec<Option<Arc<Inbox>>>,
    activity: Arc<Activity>,
    outgoing: Arc<Outgoing>,
    /// Number of the message that is coming.
    channel: Option<u8>,
    /// Up to three Base64 characters that wait for the fourth.
    odd: Vec<u8>,
}

impl Channels {
    pub fn new(
        messages: Messages,
        form: Form,
        closes: bool,
        inboxes: Vec<Option<Arc<Inbox>>>,
        activity: Arc<Activity>,
        outgoing: Arc<Outgoing>,
    ) -> Self {
        Self {
            messages,
            form,
            closes,
            inboxes,
            activity,
            outgoing,
            channel: None,
            odd: Vec::new(),
        }
    }

    /// Serves until the client has gone. Then every inbox is broken off.
    pub async fn run(&mut self) -> Ended {
        let outgoing = self.outgoing.clone();
        let ended = tokio::select! {
            ended = self.read() => ended,
            written = outgoing.run() => written.map_or_else(Into::into, |()| Ended::Closed),
        };
        self.break_off();
        ended
    }

    /// Tells the client that nothing follows.
    pub fn close(&mut self, why: Close) {
        self.messages.close(why);
    }

    fn break_off(&self) {
        self.inboxes.iter().flatten().for_each(|inbox| inbox.break_off());
    }

    async fn read(&mut self) -> Ended {
        loop {
            let piece = match self.messages.next().await {
                Ok(piece) => piece,
                Err(ended) => return ended,
            };
            self.activity.touch();
            if let Err(ended) = self.take(piece).await {
                return ended;
            }
        }
    }

    async fn take(&mut self, piece: Piece) -> Result<(), Ended> {
        if piece.first {
            self.channel = None;
            self.odd.clear();
        }
        let mut data = piece.data;
        if self.channel.is_none() {
            if data.is_empty() {
                return Ok(());
            }
            let number = data.split_to(1)[0];
            self.channel = Some(match self.form {
                Form::Binary => number,
                Form::Base64 => number.wrapping_sub(b'0'),
            });
        }
        let data = match self.form {
            Form::Binary => data.freeze(),
            Form::Base64 => self.decode(&data, piece.last)?,
        };
        let channel = self.channel.unwrap_or_default();
        if self.closes && channel == CLOSE {
            if let [number] = data[..] {
                self.inbox(number).inspect(|inbox| inbox.finish());
            }
            return Ok(());
        }
        let Some(inbox) = self.inbox(channel).cloned() else {
            return Ok(());
        };
        if inbox.is_full() {
            tokio::select! {
                () = inbox.room() => {}
                () = self.messages.hung_up() => return Err(Ended::Closed),
            }
        }
        inbox.push(data);
        Ok(())
    }

    /// The bytes of a piece of Base64, whose borders need not be those of groups of four.
    fn decode(&mut self, mut data: &[u8], last: bool) -> Result<Bytes, Ended> {
        let mut plain = Vec::with_capacity(data.len() / 4 * 3 + 3);
        let mut decode = |text: &[u8]| {
            STANDARD
                .decode_vec(text, &mut plain)
                .map_err(|_| Ended::WebSocket("what is not Base64"))
        };
        if !self.odd.is_empty() {
            let (head, tail) = data.split_at(data.len().min(4 - self.odd.len()));
            self.odd.extend_from_slice(head);
            data = tail;
            if self.odd.len() == 4 {
                decode(&self.odd)?;
                self.odd.clear();
            }
        }
        // Nothing is left of the data if a group is still not whole.
        let (whole, rest) = data.split_at(data.len() - data.len() % 4);
        decode(whole)?;
        self.odd.extend_from_slice(rest);
        if last && !self.odd.is_empty() {
            return Err(Ended::WebSocket("Base64 that is cut off"));
        }
        Ok(plain.into())
    }

    fn inbox(&self, number: u8) -> Option<&Arc<Inbox>> {
        self.inboxes.get(usize::from(number)).and_then(Option::as_ref)
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.break_off();
    }
}

/// Writes one stream's messages.
#[derive(Clone)]
pub struct Outlet {
    pub(super) outgoing: Arc<Outgoing>,
    form: Form,
    number: u8,
}

impl Outlet {
    pub fn new(outgoing: Arc<Outgoing>, form: Form, number: u8) -> Self {
        Self { outgoing, form, number }
    }

    /// Sends one message; it may be empty.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn write(&self, data: &[u8]) -> io::Result<()> {
        match self.form {
            Form::Binary => {
                let (mut head, length) = longer(frame::head(Opcode::Binary, data.len() + 1));
                head[length] = self.number;
                self.outgoing.data(&head[..=length], data).await
            }
            Form::Base64 => {
                let mut text = String::with_capacity(data.len() / 3 * 4 + 5);
                text.push(char::from(b'0'.wrapping_add(self.number)));
                STANDARD.encode_string(data, &mut text);
                let (head, length) = frame::head(Opcode::Text, text.len());
                self.outgoing.data(&head[..length], text.as_bytes()).await
            }
        }
    }
}

/// A head with room for one byte more.
fn longer((head, length): ([u8; frame::HEAD], usize)) -> ([u8; frame::HEAD + 1], usize) {
    let mut longer = [0; frame::HEAD + 1];
    longer[..frame::HEAD].copy_from_slice(&head);
    (longer, length)
}
