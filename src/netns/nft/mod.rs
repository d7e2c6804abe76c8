//! Enough of nftables, spoken over nfnetlink, for Wharf's tables: batches, tables, chains, maps, rules and their elements.
//!
//! Numbers are those of the kernel's `linux/netfilter/nf_tables.h`. [`batch`] writes messages and attributes, [`expr`]
//! the expressions of rules, [`writer`] the commands about a table; [`table`] is a network's table and [`ports`] that of
//! host ports; [`monitor`] sees when somebody else changes them.

mod batch;
mod expr;
mod monitor;
mod ports;
mod table;
mod writer;

pub(super) use monitor::Monitor;
pub(super) use ports::{HostPort, PortTable};
pub(super) use table::{Policy, Table};
