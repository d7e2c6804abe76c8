pub mod caps;
pub mod host;
pub mod process;
pub mod seccomp;
pub mod spec;
pub mod users;
