//! The table of one network: what leaves it, and what may come to it.

use super::batch::Batch;
use super::writer::{Hook, Writer};
use crate::netns::Result;
use crate::netns::subnet::Subnet;

/// How a network stands to others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::netns) struct Policy {
    /// Nothing leaves it and nothing comes to it.
    pub(in crate::netns) internal: bool,
    /// It is kept apart from devices whose names begin so,
    pub(in crate::netns) apart_from: Option<String>,
    /// and from this one.
    pub(in crate::netns) apart_from_bridge: Option<String>,
    /// It has a resolver, which may be away for a while.
    pub(in crate::netns) resolver: bool,
}

/// The table that belongs to one bridge.
#[derive(Debug, Clone)]
pub(in crate::netns) struct Table {
    name: String,
    bridge: String,
    subnets: Vec<Subnet>,
    policy: Policy,
}

impl Table {
    /// The table for pods on `bridge` with addresses in `subnets`.
    pub(in crate::netns) fn new(bridge: &str, subnets: Vec<Subnet>, policy: Policy) -> Self {
        Self {
            name: format!("wharf-{bridge}"),
            bridge: bridge.to_owned(),
            subnets,
            policy,
        }
    }

    pub(in crate::netns) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the table, or makes it anew; there is no moment without it.
    ///
    /// # Errors
    /// When the kernel refuses, for example because it lacks nftables.
    pub(in crate::netns) fn install(&self) -> Result<()> {
        self.installation().commit(|_| false).map(drop)
    }

    /// Removes the table; one that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::netns) fn remove(&self) -> Result<()> {
        let mut writer = Writer::new(&self.name);
        writer.delete();
        writer
            .finish()
            .commit(|refusal| refusal.errno() == libc::ENOENT)
            .map(drop)
    }

    fn installation(&self) -> Batch {
        let mut writer = Writer::new(&self.name);
        writer.anew();
        writer.chain("postrouting", Hook::Postrouting);
        for subnet in self.subnets.iter().filter(|_| !self.policy.internal) {
            writer.rule("postrouting", |steps| {
                steps.leaves_not_by(&self.bridge).sent_from(subnet).masquerade();
            });
        }
        self.keep_apart(&mut writer);
        if self.policy.resolver {
            // Otherwise the kernel says that nobody listens while the daemon is away, and C libraries give up at once
            // instead of asking again.
            writer.chain("output", Hook::Output);
            for subnet in &self.subnets {
                writer.rule("output", |steps| {
                    steps
                        .leaves_by(&self.bridge)
                        .tells_that_nobody_listens(subnet.is_v6(), 53)
                        .drop();
                });
            }
        }
        writer.finish()
    }

    fn keep_apart(&self, writer: &mut Writer<'_>) {
        let Policy {
            internal,
            apart_from,
            apart_from_bridge,
            ..
        } = &self.policy;
        let bridge = &self.bridge;
        if !internal && apart_from.is_none() && apart_from_bridge.is_none() {
            return;
        }
        writer.chain("forward", Hook::Forward);
        if *internal {
            writer.rule("forward", |steps| {
                steps.came_by(bridge).leaves_not_by(bridge).drop();
            });
            writer.rule("forward", |steps| {
                steps.came_not_by(bridge).leaves_by(bridge).drop();
            });
        }
        // A host port is open to all, and so to other networks.
        if let Some(prefix) = apart_from {
            writer.rule("forward", |steps| {
                steps.was_not_redirected().came_by(bridge).leaves_not_by(bridge);
                steps.leaves_by_any(prefix).drop();
            });
            writer.rule("forward", |steps| {
                steps.was_not_redirected().leaves_by(bridge).came_not_by(bridge);
                steps.came_by_any(prefix).drop();
            });
        }
        if let Some(other) = apart_from_bridge {
            writer.rule("forward", |steps| {
                steps.was_not_redirected().came_by(bridge).leaves_by(other).drop();
            });
            writer.rule("forward", |steps| {
                steps.was_not_redirected().came_by(other).leaves_by(bridge).drop();
            });
        }
    }
}
