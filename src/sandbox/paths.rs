//! Where the parts of a pod are on disk. The table is in ARCHITECTURE.md.

use std::path::{Path, PathBuf};

/// The two roots: `state` survives a reboot, `run` (a tmpfs on most machines) does not.
#[derive(Debug, Clone)]
pub struct Roots {
    /// Durable state, default `/var/lib/wharf`.
    pub state: PathBuf,
    /// Sockets, namespace pins and shared memory, default `/run/wharf`.
    pub run: PathBuf,
}

impl Roots {
    /// Directory that holds a directory for each pod.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    /// Directory that holds a run directory for each pod.
    #[must_use]
    pub fn pods_run(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// Compiled seccomp filters, named by the digest of their profile.
    #[must_use]
    pub fn seccomp(&self) -> PathBuf {
        self.run.join("seccomp")
    }

    /// The places of one pod.
    #[must_use]
    pub fn pod(&self, id: &str) -> PodPaths {
        PodPaths {
            state: self.pods().join(id),
            run: self.pods_run().join(id),
        }
    }
}

/// The places of one pod.
#[derive(Debug, Clone)]
pub struct PodPaths {
    /// Record, files mounted into containers, and the containers' directories.
    pub state: PathBuf,
    /// What a reboot may take away.
    pub run: PathBuf,
}

/// Name of the directory below a pod's that holds its containers'.
pub(super) const CONTAINERS: &str = "containers";

impl PodPaths {
    /// The pod's record.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.state.join("record")
    }

    /// Directory that holds a directory for each container.
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.state.join(CONTAINERS)
    }

    /// A container's directory, which is also its OCI bundle.
    #[must_use]
    pub fn container(&self, id: &str) -> PathBuf {
        self.containers().join(id)
    }

    /// Directory that holds a directory for each image that is mounted as a volume.
    #[must_use]
    pub fn image_volumes(&self) -> PathBuf {
        self.state.join("image-volumes")
    }

    /// Pins of the pod's namespaces: `net`, `ipc`, `uts`.
    #[must_use]
    pub fn namespaces(&self) -> PathBuf {
        self.run.join("ns")
    }

    /// The pod's /dev/shm.
    #[must_use]
    pub fn shm(&self) -> PathBuf {
        self.run.join("shm")
    }

    /// Socket of the pod's monitor.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.run.join("monitor.sock")
    }

    /// Logs of containers for which no place is named.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The file `name` (hosts, hostname, resolv.conf) that containers see in /etc.
    #[must_use]
    pub fn etc(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }
}

/// The record in a container's directory.
#[must_use]
pub fn container_record(directory: &Path) -> PathBuf {
    directory.join("record")
}

/// The file in a container's directory to which its monitor writes how it ended.
#[must_use]
pub fn container_exit(directory: &Path) -> PathBuf {
    directory.join("exit")
}
