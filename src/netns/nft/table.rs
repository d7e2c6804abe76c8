//! The table of one network: what leaves it, and what may come to it.

use super::batch::Batch;
use super::writer::{Hook, Writer};
use crate::netns::Result;
use crate::netns::subnet::Subnet;

/// The table that belongs to one bridge.
#[derive(Debug, Clone)]
pub(in crate::netns) struct Table {
    name: String,
    bridge: String,
    subnets: Vec<Subnet>,
}

impl Table {
    /// The table for pods on `bridge` with addresses in `subnets`.
    pub(in crate::netns) fn new(bridge: &str, subnets: Vec<Subnet>) -> Self {
        Self {
            name: format!("wharf-{bridge}"),
            bridge: bridge.to_owned(),
            subnets,
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
        for subnet in &self.subnets {
            writer.rule("postrouting", |steps| {
                steps.leaves_not_by(&self.bridge).sent_from(subnet).masquerade();
            });
        }
        writer.finish()
    }
}
