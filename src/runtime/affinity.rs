//! CPUs that a further process in a container runs on (the specification's `execCPUAffinity`).

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use oci_spec::runtime::Process;

use super::error::Context;
use super::{Error, Result};

/// On the way into the container, and in it; `None` leaves the kernel's choice.
#[derive(Default)]
pub struct Affinity {
    initial: Option<CpuSet>,
    last: Option<CpuSet>,
}

impl Affinity {
    /// # Errors
    /// [`Error::InvalidSpec`] for what is no list of CPUs.
    pub fn of(process: &Process) -> Result<Affinity> {
        let Some(wanted) = process.exec_cpu_affinity() else {
            return Ok(Affinity::default());
        };
        let set = |list: &Option<String>| match list.as_deref() {
            None | Some("") => Ok(None),
            Some(list) => parse(list)
                .map(Some)
                .ok_or_else(|| Error::InvalidSpec(format!("process.execCPUAffinity: {list:?} is no list of CPUs"))),
        };
        Ok(Affinity {
            initial: set(wanted.initial())?,
            last: set(wanted.cpu_affinity_final())?,
        })
    }

    /// Before the container's cgroup is joined.
    pub fn begin(&self) -> Result<()> {
        apply(self.initial.as_ref())
    }

    /// After: older kernels forget the affinity when a process comes into another cpuset.
    pub fn settle(&self) -> Result<()> {
        apply(self.last.as_ref())
    }
}

fn apply(set: Option<&CpuSet>) -> Result<()> {
    set.map_or(Ok(()), |set| {
        sched_setaffinity(Pid::from_raw(0), set).context(|| "set the CPUs of process.execCPUAffinity".into())
    })
}

fn parse(list: &str) -> Option<CpuSet> {
    let mut set = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<usize>().ok()?, last.trim().parse::<usize>().ok()?);
        if first > last || last >= CpuSet::count() {
            return None;
        }
        (first..=last).try_for_each(|cpu| set.set(cpu)).ok()?;
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_become_sets() {
        let set = parse("0-2,5").unwrap();
        let got: Vec<_> = (0..8).map(|cpu| set.is_set(cpu).unwrap()).collect();
        assert_eq!(got, [true, true, true, false, false, true, false, false]);
        for bad in ["", "a", "3-1", "1,", "0-99999999"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
