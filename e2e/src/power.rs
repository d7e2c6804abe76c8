//! What a reboot does to a machine, done to a lab.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::Daemon;
use crate::{Result, eventually};

/// Programs of the lab that play other machines, or the lab's own hardware: they run on.
const OTHERS: [&str; 4] = ["registry", "whoami", "lab trickle", "lab disk"];

/// What a reboot leaves of the run directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunDir {
    /// Nothing: it is a tmpfs, as on most machines.
    Tmpfs,
    /// Its files, but no mount.
    OnDisk,
}

impl Daemon {
    /// Reboots the machine that the lab plays: every process ends at once, mounts, cgroups and network devices are gone,
    /// and the daemon is started under another boot id.
    ///
    /// # Errors
    /// When something does not go, or the daemon does not start.
    pub async fn reboot(&mut self, run_dir: RunDir) -> Result {
        self.all_ends().await?;
        if run_dir == RunDir::Tmpfs {
            std::fs::remove_dir_all(&self.run_dir)?;
        }
        self.next_boot();
        self.start_again().await
    }

    /// From its next start on, the daemon finds another boot id than before.
    pub fn next_boot(&mut self) {
        let before = self.options.boot_id.as_deref().unwrap_or("boot");
        self.options.boot_id = Some(format!("{before}+"));
    }

    /// Ends every process of the lab's machine by SIGKILL, and undoes what the kernel would forget.
    ///
    /// # Errors
    /// When something does not go.
    pub async fn all_ends(&mut self) -> Result {
        let lab = &self.lab;
        let own = || {
            let all = lab.processes().into_iter();
            all.filter(|(_, line)| !OTHERS.iter().any(|other| line.contains(other)))
                .collect::<Vec<_>>()
        };
        eventually("all processes have ended", async || {
            let left = own();
            for (pid, _) in &left {
                // It may have ended by now.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            left.is_empty()
        })
        .await;
        self.ended().await?;
        let lab = &self.lab;
        for root in [&self.run_dir, &self.state_dir] {
            for point in lab.mounts_below(root).iter().rev() {
                if point.as_str() != root.to_string_lossy() {
                    lab.output("umount", &["--lazy", point]).await?;
                }
            }
        }
        for link in lab.links().await? {
            if link != "lo" && link != "outside" {
                // One end of a pair takes the other with it.
                let _ = lab.output("ip", &["link", "delete", &link]).await;
            }
        }
        lab.output("nft", &["flush", "ruleset"]).await?;
        eventually("the cgroups are gone", async || {
            for cgroup in lab.cgroups_below().into_iter().rev() {
                let _ = std::fs::remove_dir(cgroup);
            }
            lab.cgroups_below().is_empty()
        })
        .await;
        Ok(())
    }
}
