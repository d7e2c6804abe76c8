//! How a process is scheduled, and where its memory comes from (the specification's `process.scheduler` and
//! `linux.memoryPolicy`).

use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use oci_spec::runtime::{
    Linux, LinuxMemoryPolicy, LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
    Process, Scheduler,
};

/// Nodes that a mask has room for, as the kernel's own largest configuration (CONFIG_NODES_SHIFT=10).
pub const MAX_NODES: usize = 1024;

/// Bits of nodes, as set_mempolicy(2) takes them.
pub type Nodes = [u64; MAX_NODES / 64];

/// What is set for a process.
#[derive(Debug, Default)]
pub struct Scheduling {
    attr: Option<libc::sched_attr>,
    memory: Option<(i32, Nodes)>,
}

impl Scheduling {
    /// # Errors
    /// For what contradicts itself or can't be told to the kernel, by name.
    pub fn of(process: &Process, linux: &Linux) -> Result<Scheduling> {
        Ok(Scheduling {
            attr: process.scheduler().as_ref().map(attributes).transpose()?,
            memory: linux.memory_policy().as_ref().map(policy).transpose()?,
        })
    }

    /// Gives a process (0: the caller) its policy. Real-time policies take CAP_SYS_NICE on the host.
    ///
    /// # Errors
    /// The kernel's.
    pub fn schedule(&self, pid: i32) -> Result<()> {
        self.attr.as_ref().map_or(Ok(()), |attr| {
            sys::sched_setattr(pid, attr).context(|| "set process.scheduler".into())
        })
    }

    /// Gives the caller, and all that it begins, its memory policy.
    ///
    /// # Errors
    /// The kernel's, which wants nodes that are there and allowed.
    pub fn place_memory(&self) -> Result<()> {
        self.memory.as_ref().map_or(Ok(()), |(mode, nodes)| {
            sys::set_mempolicy(*mode, nodes).context(|| "set linux.memoryPolicy".into())
        })
    }
}

/// sched_setattr(2)'s argument; what belongs to another policy is refused, which the kernel would ignore.
fn attributes(wanted: &Scheduler) -> Result<libc::sched_attr> {
    use LinuxSchedulerPolicy as Policy;
    let policy = *wanted.policy();
    let invalid = |what: String| Err(Error::InvalidSpec(format!("process.scheduler.{what}")));
    let nice = wanted.nice().unwrap_or(0);
    if nice != 0 && !matches!(policy, Policy::SchedOther | Policy::SchedBatch) {
        return invalid(format!("nice does not go with {policy}"));
    }
    if !(-20..=19).contains(&nice) {
        return invalid(format!("nice {nice} is not -20 to 19"));
    }
    let priority = wanted.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        return invalid(format!("priority does not go with {policy}"));
    }
    let Ok(priority) = u32::try_from(priority) else {
        return invalid(format!("priority {priority} is negative"));
    };
    let [runtime, deadline, period] =
        [wanted.runtime(), wanted.deadline(), wanted.period()].map(|time| time.unwrap_or(0));
    if [runtime, deadline, period].iter().any(|time| *time != 0) && policy != Policy::SchedDeadline {
        return invalid(format!("runtime, deadline and period do not go with {policy}"));
    }
    let mut flags = 0;
    for flag in wanted.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin | LinuxSchedulerFlag::SchedFlagUtilClampMax => {
                return invalid("flags: the specification has no field for the value of a utilization clamp".into());
            }
        };
    }
    Ok(libc::sched_attr {
        // Set by whoever makes the call.
        size: 0,
        sched_policy: match policy {
            Policy::SchedOther => 0,
            Policy::SchedFifo => 1,
            Policy::SchedRr => 2,
            Policy::SchedBatch => 3,
            Policy::SchedIso => 4,
            Policy::SchedIdle => 5,
            Policy::SchedDeadline => 6,
        },
        sched_flags: flags,
        sched_nice: nice,
        sched_priority: priority,
        sched_runtime: runtime,
        sched_deadline: deadline,
        sched_period: period,
    })
}

/// set_mempolicy(2)'s arguments.
fn policy(wanted: &LinuxMemoryPolicy) -> Result<(i32, Nodes)> {
    let mut mode = match wanted.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    for flag in wanted.flags().iter().flatten() {
        mode |= match flag {
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        };
    }
    let list = wanted.nodes().as_deref().unwrap_or_default();
    match nodes(list) {
        Some(nodes) => Ok((mode, nodes)),
        None => Err(Error::InvalidSpec(format!(
            "linux.memoryPolicy.nodes {list:?} is no list of nodes below {MAX_NODES}"
        ))),
    }
}

/// A list such as `0-1,3`.
fn nodes(list: &str) -> Option<Nodes> {
    let mut mask = Nodes::default();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= MAX_NODES {
            return None;
        }
        for node in first..=last {
            mask[node / 64] |= 1 << (node % 64);
        }
    }
    Some(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(json: &str) -> Scheduler {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn policies_take_only_what_belongs_to_them() {
        let fifo = attributes(&scheduler(
            r#"{"policy":"SCHED_FIFO","priority":7,"flags":["SCHED_RESET_ON_FORK"]}"#,
        ));
        let fifo = fifo.unwrap();
        assert_eq!((fifo.sched_policy, fifo.sched_priority, fifo.sched_flags), (1, 7, 1));
        for (json, named) in [
            (r#"{"policy":"SCHED_FIFO","nice":1}"#, "nice"),
            (r#"{"policy":"SCHED_OTHER","nice":20}"#, "nice"),
            (r#"{"policy":"SCHED_OTHER","priority":1}"#, "priority"),
            (r#"{"policy":"SCHED_RR","priority":-1}"#, "priority"),
            (r#"{"policy":"SCHED_BATCH","period":1}"#, "period"),
            (
                r#"{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_UTIL_CLAMP_MIN"]}"#,
                "clamp",
            ),
        ] {
            let error = attributes(&scheduler(json)).unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }

    #[test]
    fn nodes_are_bits() {
        let mut expected = Nodes::default();
        expected[0] = 0b1011;
        expected[15] = 1 << 63;
        assert_eq!(nodes("0-1,3,1023"), Some(expected));
        assert_eq!(nodes(""), Some(Nodes::default()));
        for bad in ["1024", "2-1", "x", "-", "-1"] {
            assert_eq!(nodes(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_kernel_takes_what_is_made_of_it() {
        let batch = attributes(&scheduler(r#"{"policy":"SCHED_BATCH","nice":3}"#)).unwrap();
        let line = std::thread::spawn(move || {
            sys::sched_setattr(0, &batch).unwrap();
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
            // Counted from the state, which is the third of proc_pid_stat(5).
            (fields[1 + 16].to_owned(), fields[1 + 38].to_owned())
        });
        assert_eq!(line.join().unwrap(), ("3".to_owned(), "3".to_owned()));
    }
}
