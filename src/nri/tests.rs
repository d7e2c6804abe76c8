//! Plugins in this process.
