//! Enough of nftables, spoken over nfnetlink, for one table: batches, tables, chains, maps, rules and their elements.
//!
//! Numbers are those of the kernel's `linux/netfilter/nf_tables.h`. [`batch`] writes messages and attributes, [`expr`]
//! the expressions of rules, [`table`] is the one table that Wharf has.

mod batch;
mod expr;
pub(super) mod table;

pub(super) use table::{HostPort, Table};

#[cfg(test)]
mod tests;
