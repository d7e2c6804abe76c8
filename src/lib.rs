//! Wharf runs a node's containers. ARCHITECTURE.md shows the floors; each module's first paragraph says what it owns.

pub mod cgroups;
pub mod cli;
pub mod config;
pub mod containers;
pub mod cri;
pub mod failpoint;
pub mod images;
pub mod lsm;
pub mod memory;
pub mod monitor;
pub mod netns;
pub mod node;
pub mod nri;
pub mod observe;
pub mod runtime;
pub mod sandbox;
pub mod serve;
pub mod store;
pub mod streaming;
pub mod sys;
pub mod telemetry;
