//! Images: references, pulls from registries, the layers on disk, and what containers mount of them.
//!
//! The room owns everything below `<state_dir>/images`. It shows an image only once it is whole and durable, and frees a
//! layer only when neither an image nor a container uses it. It must never let a registry's word stand unchecked (every
//! byte is hashed before it counts), never put a credential into an error, a log or a debug print, and never make a
//! reader wait: [`Images::list`] and [`Images::find`] read a published snapshot. It may ask `config` and `store`.

mod artifact;
mod carried;
mod changes;
pub mod check;
mod error;
mod extract;
mod flight;
mod history;
mod image;
mod incomplete;
mod index;
mod inout;
mod layers;
mod lazy;
mod load;
mod make;
mod manifest;
mod mounts;
mod names;
mod outlet;
mod papers;
mod paused;
mod platform;
mod prepared;
mod progress;
mod pull;
mod push;
pub mod recipe;
pub mod reference;
mod registry;
mod room;
pub mod rootfs;
mod save;
pub mod tarball;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tree;
mod trust;
pub mod unpack;
mod verify;

#[cfg(any(fuzzing, test))]
pub mod fuzzing;

pub use error::{Error, ErrorKind, Result};
pub use image::{Artifact, Image, ImageConfig, Layer};
pub use index::Change;
pub use inout::Inflow;
pub use load::Loaded;
pub use make::{Changed, Order};
pub use mounts::Mounted;
pub use outlet::Outflow;
pub use reference::Reference;
pub use room::{DiskSize, Images};
pub use rootfs::FsUsage;
pub use save::Format;
