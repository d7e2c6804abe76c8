//! A lab: namespaces of its own for one daemon and what belongs to it. See `bin/lab.rs` for its first process.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::Result;

/// On cgroup v2, the cgroup below the lab's that holds the lab's own processes: one that has controllers for its children
/// can't have any.
pub const PROCESSES: &str = "lab-processes";

/// Whether the machine has cgroup v2 alone.
#[must_use]
pub fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Whether the daemons of this run leave cgroups to systemd (`WHARF_CGROUP_DRIVER=systemd`): on a machine with systemd and
/// cgroup v2. Labs then have no cgroup namespace, because systemd has none, and each daemon a slice of its own.
pub fn with_systemd() -> bool {
    std::env::var("WHARF_CGROUP_DRIVER").is_ok_and(|driver| driver == "systemd")
}

/// Whether a directory is the cgroup of the container `id`.
pub fn is_cgroup_of(dir: &Path, id: &str) -> bool {
    dir.ends_with(id) || dir.ends_with(format!("wharf-{id}.scope"))
}

/// Own network, mount, PID and cgroup namespaces. They end, with all that runs in them, when this is dropped.
pub struct Lab {
    /// The outer process; its standard input is the lab's life line.
    holder: Child,
    /// The lab's init, as this process sees it.
    pub init: i32,
    /// Where the cgroups of what the lab's daemon runs are, one for each hierarchy, as this process sees them.
    pub cgroups: Vec<PathBuf>,
    /// The daemon's slice, with systemd.
    pub slice: Option<String>,
    /// Where the lab's own processes are written to.
    own: Vec<PathBuf>,
    name: String,
}

impl Lab {
    /// Makes the namespaces. `hide_cgroup2` leaves out a cgroup2 mount beside version 1, which crun does not like.
    pub async fn start(hide_cgroup2: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // The time too: what a test run that was killed has left must not be taken for this one's.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let name = format!(
            "{}-{}-{:x}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed),
            now.as_millis()
        );
        let mut command = Command::new(program("lab")?);
        command.arg("cgroup").arg(&name);
        if hide_cgroup2 {
            command.arg("--no-cgroup2");
        }
        let slice = with_systemd().then(|| format!("wharfe2e-{}.slice", name.replace('-', "_")));
        command.args(&slice);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(holder.stdout.take().ok_or("lab has no output")?).lines();
        let mut init = None;
        let mut ready = false;
        while let Some(line) = lines.next_line().await? {
            match line.strip_prefix("pid ") {
                Some(pid) => init = Some(pid.parse()?),
                None => ready |= line == "ready",
            }
            if init.is_some() && ready {
                break;
            }
        }
        let init = init
            .filter(|_| ready)
            .ok_or("the lab did not start; its message is above")?;
        let made: Vec<PathBuf> = std::fs::read_dir("/sys/fs/cgroup")?
            .flatten()
            .map(|hierarchy| hierarchy.path())
            .chain(["/sys/fs/cgroup".into()])
            .map(|hierarchy| hierarchy.join("wharf-e2e").join(&name))
            .filter(|path| path.is_dir())
            .collect();
        let own = made.iter().map(|path| own_processes(path)).collect();
        let cgroups = match &slice {
            None => made,
            Some(slice) => vec![Path::new("/sys/fs/cgroup/wharfe2e.slice").join(slice)],
        };
        Ok(Self {
            holder,
            init,
            cgroups,
            slice,
            own,
            name,
        })
    }

    /// A name that no other lab of this machine has.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program` as a command that runs inside the lab. What is spawned is `nsenter`, whose only child is the program;
    /// see [`Lab::inner_pid`].
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command
            .args(["--net", "--mount", "--pid"])
            .args(self.slice.is_none().then_some("--cgroup"))
            .args(["--wd=/", "--"])
            .arg(program);
        let procs = self.own.clone();
        // SAFETY: between fork and exec only files are opened and written; the paths were made before.
        unsafe {
            command.pre_exec(move || {
                procs
                    .iter()
                    .try_for_each(|path| std::fs::OpenOptions::new().write(true).open(path)?.write_all(b"0"))
            })
        };
        command
    }

    /// Runs a program in the lab and returns what it wrote.
    ///
    /// # Errors
    /// When it can't be started or does not end with status 0; the message holds its standard error.
    pub async fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program).args(args).stdin(Stdio::null()).output().await?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{program} {}: {}: {said}", args.join(" "), output.status).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The program behind a spawned [`Lab::command`], as this process numbers it.
    pub async fn inner_pid(&self, outer: &Child) -> Result<i32> {
        let outer = outer.id().ok_or("it has ended already")?;
        let path = format!("/proc/{outer}/task/{outer}/children");
        for _ in 0..500 {
            if let Some(pid) = std::fs::read_to_string(&path)?.split_whitespace().next() {
                return Ok(pid.parse()?);
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        Err(format!("nsenter (process {outer}) started no program").into())
    }

    /// Every process in the lab except its init: number (as this process sees it) and command line.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let Ok(lab) = std::fs::metadata(format!("/proc/{}/ns/pid", self.init)) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            if pid == self.init || !in_namespace(pid, lab.ino()) {
                continue;
            }
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push((pid, line.trim().to_owned()));
        }
        found
    }

    /// Mount points in the lab that lie at or below `dir`.
    pub fn mounts_below(&self, dir: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).unwrap_or_default();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|point| Path::new(point).starts_with(dir))
            .map(str::to_owned)
            .collect()
    }

    /// Names of the network devices in the lab.
    pub async fn links(&self) -> Result<Vec<String>> {
        let text = self.output("ip", &["-o", "link"]).await?;
        let names = text.lines().filter_map(|line| line.split(": ").nth(1));
        Ok(names
            .map(|name| name.split('@').next().unwrap_or(name).to_owned())
            .collect())
    }

    /// Cgroups below the lab's own, without those hierarchies' roots.
    pub fn cgroups_below(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = self.cgroups.clone();
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != PROCESSES {
                    found.push(entry.path());
                    todo.push(entry.path());
                }
            }
        }
        found
    }

    /// Ends everything in the lab and waits until the kernel has cleaned up.
    pub async fn end(mut self) -> Result {
        drop(self.holder.stdin.take());
        self.holder.wait().await?;
        Ok(())
    }
}

/// Where the lab's own processes are written to.
fn own_processes(cgroup: &Path) -> PathBuf {
    let inner = cgroup.join(PROCESSES);
    let dir = if inner.is_dir() { &inner } else { cgroup };
    dir.join("cgroup.procs")
}

/// Whether the process, or one between it and the lab's init, is in the PID namespace: a container has its own below.
fn in_namespace(pid: i32, inode: u64) -> bool {
    let mut pid = pid;
    for _ in 0..16 {
        if std::fs::metadata(format!("/proc/{pid}/ns/pid")).is_ok_and(|meta| meta.ino() == inode) {
            return true;
        }
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        let parent = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1))
            .and_then(|ppid| ppid.parse().ok());
        match parent {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    false
}

/// Path of a program that cargo built beside the running one (`wharf`, or a binary of the harness).
///
/// `WHARF_BIN` in the environment replaces `wharf`.
pub fn program(name: &str) -> Result<PathBuf> {
    if name == "wharf"
        && let Some(path) = std::env::var_os("WHARF_BIN")
    {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    found.ok_or_else(|| format!("no program {name} beside {}: run cargo build first", own.display()).into())
}
