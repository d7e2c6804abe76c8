//! Looks for what a test left behind, and names it.

use std::path::Path;

use crate::daemon::Daemon;

/// With every pod removed: no process but the daemon and the registry, no mount but the images', no pinned namespace,
/// no network device but the bridge, no cgroup of a container, no file of a pod.
///
/// # Panics
/// When there is one; the message names all of them.
pub async fn pods_left_nothing(daemon: &Daemon) {
    // What the kernel removes on its own (devices of a network namespace, cgroups whose last process is a zombie)
    // may take a moment after the call that caused it.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
    loop {
        let left = leftovers(daemon).await;
        if left.is_empty() {
            return;
        }
        assert!(
            std::time::Instant::now() < end,
            "left behind when all pods are removed:\n  {}",
            left.join("\n  ")
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn leftovers(daemon: &Daemon) -> Vec<String> {
    let mut left = Vec::new();
    let lab = &daemon.lab;
    for (pid, line) in lab.processes() {
        let expected = pid == daemon.pid()
            || line.contains("registry")
            || line.contains("whoami")
            || line.contains("lab disk")
            || line.contains("lab meddle")
            || line.contains("nri-plugin");
        if !expected {
            left.push(format!("process {pid}: {line}"));
        }
    }
    for dir in [&daemon.state_dir, &daemon.run_dir] {
        let mounts = lab
            .mounts_below(dir)
            .into_iter()
            .filter(|point| Path::new(point) != dir);
        left.extend(mounts.map(|point| format!("mount {point}")));
    }
    for link in lab.links().await.unwrap_or_default() {
        if !["lo", "wharf0", "outside", "cni0"].contains(&link.as_str()) {
            left.push(format!("network device {link}"));
        }
    }
    for cgroup in lab.cgroups_below() {
        let shared = ["wharf", "wharf-monitors"].iter().any(|name| cgroup.ends_with(name));
        if !shared && !cgroup.to_string_lossy().ends_with("-monitors.scope") {
            left.push(format!("cgroup {}", cgroup.display()));
        }
    }
    for dir in [daemon.state_dir.join("pods"), daemon.run_dir.join("pods")] {
        left.extend(files_below(&dir).into_iter().map(|path| format!("file {path}")));
    }
    let journals = files_below(&daemon.run_dir.join("lazy"));
    left.extend(journals.into_iter().map(|path| format!("file {path}")));
    // What runc and crun keep of a container.
    for handler in files_below(&daemon.run_dir.join("runtimes")) {
        left.extend(
            files_below(Path::new(&handler))
                .into_iter()
                .map(|path| format!("file {path}")),
        );
    }
    left
}

fn files_below(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}
