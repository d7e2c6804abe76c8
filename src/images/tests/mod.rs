//! The room as a whole, against a registry in this process.

mod auth;
mod life;
mod registries;
mod transfer;
