//! Writing nfnetlink batches: a transaction of commands that apply together or not at all.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::super::socket::{Conversation, Refusal, aligned};
use crate::netns::Result;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Make the object when there is none.
pub(super) const CREATE: u16 = 0x400;
/// After the rules that are there.
pub(super) const APPEND: u16 = 0x800;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;
/// `NFPROTO_INET`: both address families.
const INET: u8 = 1;
const NESTED: u16 = 0x8000;

/// `enum nf_tables_msg_types`.
#[derive(Debug, Clone, Copy)]
#[repr(u16)]
pub(super) enum Command {
    NewTable = 0,
    DelTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewSetElem = 12,
    DelSetElem = 14,
}

/// The attributes of a message or of a nested attribute.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = (4 + value.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    /// Numbers in this family go in network byte order.
    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        fill(&mut Attributes(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// Commands that apply together.
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// What each command does, for errors.
    attempts: Vec<String>,
}

impl Batch {
    pub(super) fn new() -> Self {
        let mut batch = Self {
            bytes: Vec::with_capacity(4096),
            attempts: Vec::new(),
        };
        batch.message(BATCH_BEGIN, 0, 0, 0, SUBSYSTEM, |_| {});
        batch
    }

    /// Adds a command. `attempt` says what it does, for the error if it is refused.
    pub(super) fn add(
        &mut self,
        command: Command,
        flags: u16,
        attempt: impl Into<String>,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.attempts.push(attempt.into());
        let kind = SUBSYSTEM << 8 | command as u16;
        self.message(kind, NLM_F_ACK | flags, self.attempts.len() as u32, INET, 0, fill);
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend(seq.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        fill(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// The whole transaction as it goes to the kernel.
    pub(super) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        self.message(BATCH_END, 0, self.attempts.len() as u32 + 1, 0, SUBSYSTEM, |_| {});
        (self.bytes, self.attempts)
    }

    /// Applies the transaction in the network namespace of this thread.
    ///
    /// # Errors
    /// That of the first command that was refused; none of them has had an effect then. `fine` names refusals that are
    /// no error.
    pub(super) fn commit(self, fine: impl Fn(&Refusal) -> bool) -> Result<bool> {
        let (bytes, mut attempts) = self.finish();
        if attempts.is_empty() {
            return Ok(true);
        }
        match Conversation::open_as_ours(NETLINK_NETFILTER)?.ask(&bytes, 1..=attempts.len() as u32) {
            Ok(_) => Ok(true),
            Err((_, refusal)) if fine(&refusal) => Ok(false),
            Err((seq, refusal)) => Err(refusal.during(attempts.swap_remove(seq as usize - 1))),
        }
    }
}
