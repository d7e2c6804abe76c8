//! The room as a whole, against a registry in this process.

mod archives;
mod auth;
mod hostile;
mod lazy;
mod life;
mod parts;
mod push;
mod registries;
mod transfer;
