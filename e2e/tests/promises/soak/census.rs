//! What there is when every pod has been removed: it must not grow.

use std::path::Path;
use std::time::{Duration, Instant};

use wharf_e2e::{Daemon, guard};

/// Memory that a daemon may have more than at first, as a share of that and in KiB: heaps keep some of what they had.
const MEMORY_FACTOR: u64 = 2;
const MEMORY_MORE: u64 = 16 << 10;

/// Counts of what could leak. All but memory must come back to what they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census {
    /// Open files of the daemon that are no connection of a client.
    pub descriptors: usize,
    pub mounts: usize,
    pub cgroups: usize,
    pub links: usize,
    pub processes: usize,
    /// Addresses and ports of the built-in network that somebody has.
    pub addresses: usize,
    /// Files and directories of the daemon, without images.
    pub files: usize,
    /// Those of images.
    pub image_files: usize,
    /// KiB of the daemon's own memory (Pss).
    pub memory: u64,
    /// Sockets of the daemon: clients' connections come and go.
    pub sockets: usize,
}

/// Connections that clients may have more than at first.
const CLIENTS: usize = 8;

impl Census {
    /// Counts until the counts fit `first`, for a few seconds: what the kernel and the janitor do takes a moment.
    ///
    /// # Panics
    /// When something is left; the message names it.
    pub async fn settled(daemon: &Daemon, first: Option<&Census>) -> Self {
        guard::pods_left_nothing(daemon).await;
        let end = Instant::now() + Duration::from_secs(10);
        let mut before: Option<Self> = None;
        loop {
            let now = Self::of(daemon).await;
            let settled = match (first, &before) {
                (Some(first), _) => now.fits(first),
                // What clients have given up is still being undone: the first count waits until it stands still.
                (None, Some(before)) => now.counts() == before.counts(),
                (None, None) => false,
            };
            if settled {
                return now;
            }
            assert!(
                Instant::now() < end,
                "something has leaked; at first\n{first:?}\nnow\n{now:?}\nopen files of the daemon: {:?}",
                open_files(daemon)
            );
            before = Some(now);
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// All that must come back to what it was.
    fn counts(&self) -> [usize; 8] {
        [
            self.descriptors,
            self.mounts,
            self.cgroups,
            self.links,
            self.processes,
            self.addresses,
            self.files,
            self.image_files,
        ]
    }

    /// Whether nothing is more than at `first`.
    fn fits(&self, first: &Self) -> bool {
        let more = self
            .counts()
            .iter()
            .zip(first.counts())
            .any(|(now, first)| *now > first);
        !more && self.memory <= first.memory * MEMORY_FACTOR + MEMORY_MORE && self.sockets <= first.sockets + CLIENTS
    }

    async fn of(daemon: &Daemon) -> Self {
        let lab = &daemon.lab;
        let state = &daemon.state_dir;
        let images = state.join("images");
        let (sockets, others): (Vec<_>, Vec<_>) = open_files(daemon)
            .into_iter()
            .partition(|name| name.starts_with("socket:"));
        Self {
            descriptors: others.len(),
            sockets: sockets.len(),
            mounts: lab.mounts_below(Path::new("/")).len(),
            // What all pods share comes with the first and goes with a daemon that ends in order.
            cgroups: lab
                .cgroups_below()
                .iter()
                .filter(|dir| !["wharf", "wharf-monitors"].iter().any(|name| dir.ends_with(name)))
                .count(),
            links: lab
                .links()
                .await
                .unwrap_or_default()
                .iter()
                .filter(|name| *name != "wharf0")
                .count(),
            processes: lab.processes().len(),
            addresses: files_beside(&state.join("ipam"), Path::new("")),
            files: files_beside(state, &images) + files_beside(&daemon.run_dir, &images),
            image_files: files_beside(&images, Path::new("")),
            memory: memory(daemon.pid()),
        }
    }
}

/// What the daemon has open.
fn open_files(daemon: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).into_iter();
    let targets = entries
        .flatten()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned()).collect()
}

fn memory(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0)
}

/// Files and directories below `dir`, without those below `other`.
fn files_beside(dir: &Path, other: &Path) -> usize {
    let mut count = 0;
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            count += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.path() != other {
                todo.push(entry.path());
            }
        }
    }
    count
}
