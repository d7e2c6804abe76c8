//! The harness of Wharf's end-to-end tests: real daemon, real registry, real containers.
//!
//! A test asks for a [`Daemon`]. It gets one that lives in a [`lab::Lab`]: own network, mount, PID and cgroup
//! namespaces, so that tests run in parallel, touch nothing of the machine, and end with everything that they started,
//! even when they are killed. In the lab a Debian docker-registry serves the [`fixtures`] at `127.0.0.1:5000`. When the
//! test calls [`Daemon::finish`], the [`guard`] looks for what should not be there any more and names it.
//!
//! Needs root, and runc, crun, docker-registry, busybox-static, iproute2 and the CNI plugins (`make setup`).

pub mod cri;
pub mod daemon;
pub mod disk;
pub mod fixtures;
pub mod fuse;
pub mod guard;
pub mod health;
pub mod http2;
pub mod lab;
pub mod logs;
pub mod meddler;
pub mod nri;
pub mod power;
pub mod pulse;
pub mod raw;
pub mod registry;
#[cfg(test)]
mod rules;
pub mod seccomp;
pub mod specs;
pub mod strace;
pub mod streams;
pub mod trickle;

pub use cri::Cri;
pub use daemon::{Daemon, Options};
pub use specs::{container, host_network_pod, pod};

/// What the harness's own functions return: tests show the message and fail.
pub type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long a test waits for something that should happen at once, before it fails.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Asks `condition` again and again until it holds; for state of the kernel that announces nothing.
///
/// # Panics
/// When it does not hold within [`PATIENCE`]; the message says `what` was awaited.
pub async fn eventually<F: AsyncFnMut() -> bool>(what: &str, mut condition: F) {
    let end = std::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(std::time::Instant::now() < end, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// KiB of memory that a process has for itself alone. Pages of files are left out: those of its program count as private or
/// as shared by whether another process of the same program runs at that moment, as monitors and other tests' daemons do.
pub fn own_memory(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
