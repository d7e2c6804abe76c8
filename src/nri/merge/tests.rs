//! Wishes of several plugins.
