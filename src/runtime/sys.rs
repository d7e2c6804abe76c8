//! Kernel calls that no library wraps. Each function is one call; the reason for its safety stands beside it.
