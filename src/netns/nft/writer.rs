//! Writing the commands that make one table.

use super::batch::{APPEND, Batch, CREATE, Command};
use super::expr::Steps;

/// `NFT_SET_MAP`.
const MAP: u32 = 8;
/// Type numbers by which `nft list` knows how to print keys and values; 6 bits each.
pub(super) const TYPE_IPV4: u32 = 7;
pub(super) const TYPE_IPV6: u32 = 8;
pub(super) const TYPE_PROTOCOL: u32 = 12;
pub(super) const TYPE_PORT: u32 = 13;
pub(super) const TYPE_DEVICE: u32 = 41;

/// Where a chain is called, in the numbers of family `inet`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hook {
    /// Packets from outside, before connections are tracked.
    Raw,
    /// Packets from outside, before they are routed.
    Prerouting,
    /// Packets that pass through.
    Forward,
    /// The machine's own packets, before they are sent: destinations.
    OutputNat,
    /// The machine's own packets, before they are sent: filter.
    Output,
    /// All packets that leave.
    Postrouting,
}

impl Hook {
    /// Type, hook number and priority.
    fn numbers(self) -> (&'static str, u32, i32) {
        match self {
            Self::Raw => ("filter", 0, -300),
            Self::Prerouting => ("nat", 0, -100),
            Self::Forward => ("filter", 2, 0),
            Self::OutputNat => ("nat", 3, -100),
            Self::Output => ("filter", 3, 0),
            Self::Postrouting => ("nat", 4, 100),
        }
    }
}

/// An element of a set or map.
pub(super) struct Element<'a> {
    pub(super) set: &'a str,
    pub(super) key: Vec<u8>,
    /// For a map.
    pub(super) value: Option<Vec<u8>>,
    /// What it is, for errors.
    pub(super) what: String,
}

/// Commands about one table, to be applied together.
pub(super) struct Writer<'a> {
    table: &'a str,
    batch: Batch,
    sets: u32,
}

impl<'a> Writer<'a> {
    pub(super) fn new(table: &'a str) -> Self {
        Self {
            table,
            batch: Batch::new(),
            sets: 0,
        }
    }

    pub(super) fn finish(self) -> Batch {
        self.batch
    }

    /// An empty table, whether or not there was one.
    pub(super) fn anew(&mut self) {
        self.create();
        self.delete();
        self.create();
    }

    fn create(&mut self) {
        let attempt = format!("create nftables table inet {}", self.table);
        self.batch.add(Command::NewTable, CREATE, attempt, |a| {
            a.text(1, self.table);
        });
    }

    pub(super) fn delete(&mut self) {
        let attempt = format!("delete nftables table inet {}", self.table);
        self.batch.add(Command::DelTable, 0, attempt, |a| {
            a.text(1, self.table);
        });
    }

    /// A set with keys of a type and a length in bytes.
    pub(super) fn set(&mut self, name: &str, key: (u32, u32)) {
        self.sets += 1;
        let attempt = format!("create nftables set {} {name}", self.table);
        self.batch.add(Command::NewSet, CREATE, attempt, |a| {
            a.text(1, self.table)
                .text(2, name)
                .number(3, 0)
                .number(4, key.0)
                .number(5, key.1);
            // An id by which the transaction may refer to it.
            a.number(10, self.sets);
        });
    }

    /// A map from keys to values, each of a type and a length in bytes.
    pub(super) fn map(&mut self, name: &str, key: (u32, u32), value: (u32, u32)) {
        self.sets += 1;
        let attempt = format!("create nftables map {} {name}", self.table);
        self.batch.add(Command::NewSet, CREATE, attempt, |a| {
            a.text(1, self.table)
                .text(2, name)
                .number(3, MAP)
                .number(4, key.0)
                .number(5, key.1);
            a.number(6, value.0).number(7, value.1).number(10, self.sets);
        });
    }

    pub(super) fn chain(&mut self, name: &str, hook: Hook) {
        let (kind, number, priority) = hook.numbers();
        let attempt = format!("create nftables chain {} {name}", self.table);
        self.batch.add(Command::NewChain, CREATE, attempt, |a| {
            a.text(1, self.table).text(3, name);
            a.nest(4, |a| {
                a.number(1, number).bytes(2, &priority.to_be_bytes());
            });
            a.text(7, kind);
        });
    }

    pub(super) fn rule(&mut self, chain: &str, steps: impl FnOnce(&mut Steps<'_, '_>)) {
        let attempt = format!("add rule to nftables chain {} {chain}", self.table);
        self.batch.add(Command::NewRule, CREATE | APPEND, attempt, |a| {
            a.text(1, self.table).text(2, chain).nest(4, |a| steps(&mut Steps(a)));
        });
    }

    pub(super) fn add(&mut self, element: &Element<'_>) {
        self.element(Command::NewSetElem, CREATE, "add", element);
    }

    pub(super) fn remove(&mut self, element: &Element<'_>) {
        self.element(Command::DelSetElem, 0, "remove", element);
    }

    fn element(&mut self, command: Command, flags: u16, verb: &str, element: &Element<'_>) {
        let attempt = format!("{verb} {} in nftables table inet {}", element.what, self.table);
        let value = element.value.as_ref().filter(|_| verb == "add");
        self.batch.add(command, flags, attempt, |a| {
            a.text(1, self.table).text(2, element.set).nest(3, |list| {
                list.nest(1, |one| {
                    one.nest(1, |key| {
                        key.bytes(1, &element.key);
                    });
                    if let Some(bytes) = value {
                        one.nest(2, |value| {
                            value.bytes(1, bytes);
                        });
                    }
                });
            });
        });
    }
}
