//! What strace sees of a daemon and all that it starts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use wharf_e2e::{Result, strace};

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

/// How long nothing may come until all has.
const REST: Duration = Duration::from_millis(300);

/// A tracer, which ends with this.
pub struct Trace {
    strace: strace::Trace,
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
        let mut trace = Self {
            strace: strace::Trace::attach(pid, dir.path().join("trace"))?,
            _dir: dir,
        };
        for _ in 0..50 {
            poke().await?;
            if !trace.since().await.by_name.is_empty() {
                return Ok(trace);
            }
        }
        Err("strace sees nothing".into())
    }

    /// What was seen since the last time, once nothing more comes.
    pub async fn since(&mut self) -> Calls {
        Calls::of(&self.strace.since(REST).await)
    }
}

impl Calls {
    fn of(text: &str) -> Self {
        let mut calls = Self::default();
        for line in text.lines() {
            let Some(strace::Call {
                name,
                begins,
                text: call,
            }) = strace::call(line)
            else {
                continue;
            };
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
