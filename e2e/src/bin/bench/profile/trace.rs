//! What strace sees of a daemon and all that it starts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_e2e::Result;

/// Calls in which a thread waits for another's doing: their time is that other's.
const WAITING: [&str; 18] = [
    "futex",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "nanosleep",
    "clock_nanosleep",
    "restart_syscall",
    "wait4",
    "waitid",
    "read",
    "recvfrom",
    "recvmsg",
    "accept4",
    "sched_yield",
];

/// A tracer, which ends with this.
pub struct Trace {
    tracer: Child,
    file: PathBuf,
    read: usize,
    _dir: tempfile::TempDir,
}

/// How often each system call was made, and how long it took.
#[derive(Default)]
pub struct Calls {
    by_name: BTreeMap<String, (f64, f64)>,
    processes: f64,
    threads: f64,
}

impl Trace {
    /// Begins; `poke` is something that the process answers with a system call.
    ///
    /// # Errors
    /// When strace can't be started, or sees nothing.
    pub async fn attach<F: Future<Output = Result>>(pid: i32, poke: impl Fn() -> F) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("trace");
        let tracer = Command::new("strace")
            .args(["--follow-forks", "--quiet=all", "--signal=none", "--string-limit=0"])
            .arg("--syscall-times=us")
            .arg("--output")
            .arg(&file)
            .args(["--attach", &pid.to_string()])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("start strace: {error}"))?;
        let mut trace = Self {
            tracer,
            file,
            read: 0,
            _dir: dir,
        };
        for _ in 0..50 {
            poke().await?;
            if !trace.since().await?.by_name.is_empty() {
                return Ok(trace);
            }
        }
        Err("strace sees nothing".into())
    }

    /// What was seen since the last time, once nothing more comes.
    ///
    /// # Errors
    /// When what strace has written can't be read.
    pub async fn since(&mut self) -> Result<Calls> {
        let mut length = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = std::fs::metadata(&self.file).map_or(0, |meta| meta.len());
            if now == length {
                break;
            }
            length = now;
        }
        let bytes = std::fs::read(&self.file).unwrap_or_default();
        let text = String::from_utf8_lossy(bytes.get(self.read..).unwrap_or_default()).into_owned();
        self.read = bytes.len();
        Ok(Calls::of(&text))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.tracer.id().cast_signed()), Signal::SIGTERM);
        let _ = self.tracer.wait();
    }
}

impl Calls {
    fn of(text: &str) -> Self {
        let mut calls = Self::default();
        for line in text.lines() {
            // `12 openat(AT_FDCWD, ...) = 3 <0.000015>`, or, cut in two by another's call,
            // `12 openat(AT_FDCWD, ... <unfinished ...>` and `12 <... openat resumed>) = 3 <0.000015>`.
            let call = line
                .trim_start()
                .split_once(' ')
                .map_or("", |(_, rest)| rest.trim_start());
            let (name, begins) = match call.strip_prefix("<... ") {
                Some(rest) => (rest.split(' ').next().unwrap_or_default(), false),
                None => (call.split_once('(').map_or("", |(name, _)| name), true),
            };
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                continue;
            }
            let seconds = line
                .rsplit_once('<')
                .and_then(|(_, time)| time.strip_suffix('>')?.parse::<f64>().ok());
            let sum = calls.by_name.entry(name.to_owned()).or_default();
            if begins {
                sum.0 += 1.0;
            }
            sum.1 += seconds.unwrap_or(0.0);
            if begins && ["clone", "clone3", "vfork", "fork"].contains(&name) {
                match call.contains("CLONE_THREAD") {
                    true => calls.threads += 1.0,
                    false => calls.processes += 1.0,
                }
            }
        }
        calls
    }

    /// For each of `times` calls of a path.
    pub fn shared_among(mut self, times: usize) -> Self {
        let times = times as f64;
        for (count, seconds) in self.by_name.values_mut() {
            *count /= times;
            *seconds /= times;
        }
        self.processes /= times;
        self.threads /= times;
        self
    }

    /// Cells: processes, threads, system calls, and those that took longest.
    pub fn markdown(&self, shown: usize) -> String {
        let sum: f64 = self.by_name.values().map(|(count, _)| count).sum();
        if sum == 0.0 {
            return " | | |".into();
        }
        let mut longest: Vec<_> = self
            .by_name
            .iter()
            .filter(|(name, _)| !WAITING.contains(&name.as_str()))
            .collect();
        longest.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
        let mut out = format!("{:.1} | {:.1} | {sum:.0} | ", self.processes, self.threads);
        for (at, (name, (count, seconds))) in longest.into_iter().take(shown).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let _ = write!(out, "{comma}{name} {count:.1} × {:.0}", seconds / count.max(0.01) * 1e6);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_are_cut_in_two_count_once() {
        let calls = Calls::of(
            "7 openat(AT_FDCWD, \"\"..., O_RDONLY) = 3 <0.000015>\n\
             7 umount2(\"\"..., MNT_DETACH <unfinished ...>\n\
             8 clone3({flags=CLONE_VM|CLONE_THREAD, ...}, 88) = 9 <0.000100>\n\
             7 <... umount2 resumed>) = 0 <0.004000>\n\
             8 clone3({flags=CLONE_NEWPID, ...}, 88) = 10 <0.000200>\n\
             8 +++ exited with 0 +++\n",
        );
        assert_eq!(calls.by_name["umount2"], (1.0, 0.004));
        assert_eq!((calls.processes, calls.threads), (1.0, 1.0));
        let cells = calls.shared_among(2).markdown(1);
        assert_eq!(cells, "0.5 | 0.5 | 2 | umount2 0.5 × 4000");
    }
}
