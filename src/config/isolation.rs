//! CPUs that belong to single containers: the table `[cpu_isolation]`, and lists of CPUs.

use std::{collections::BTreeSet, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

/// Where the machine is told to leave CPUs alone, and which CPUs such containers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuIsolation {
    /// CPUs that containers with CPUs of their own can ask for beside them, as a list such as `0-1`.
    pub shared_cpuset: Option<String>,
    /// The mask of CPUs that take interrupts. Absolute.
    pub irq_affinity_file: PathBuf,
    /// irqbalance's settings, whose `IRQBALANCE_BANNED_CPUS` follows; a file that is not there is not made. Absolute.
    pub irqbalance_config: PathBuf,
    /// The command that has irqbalance read its settings anew; empty is none. Its failure is only logged.
    pub irqbalance_restart: Vec<String>,
    /// A directory per CPU, with its idle states and frequency governor. Absolute.
    pub cpu_dir: PathBuf,
}

impl Default for CpuIsolation {
    fn default() -> Self {
        Self {
            shared_cpuset: None,
            irq_affinity_file: "/proc/irq/default_smp_affinity".into(),
            irqbalance_config: "/etc/sysconfig/irqbalance".into(),
            irqbalance_restart: ["systemctl", "--no-block", "try-restart", "irqbalance.service"]
                .map(Into::into)
                .into(),
            cpu_dir: "/sys/devices/system/cpu".into(),
        }
    }
}

/// More CPUs than any kernel is built for (`CONFIG_NR_CPUS` is at most 8192).
const MOST: u32 = 8192;

/// A set of CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// Reads a list such as `0-2,4` as the kernel does (cpuset(7), "List format"); nothing is the empty set.
    #[must_use]
    pub fn parse(list: &str) -> Option<Self> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|number| digits && *number < MOST)
        };
        let mut out = BTreeSet::new();
        for part in list.trim().split(',').filter(|_| !list.trim().is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            out.extend(first..=last);
        }
        Some(Self(out))
    }

    /// Those of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(self.0.union(&other.0).copied().collect())
    }

    /// Those that `other` does not have.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// Those of both.
    #[must_use]
    pub fn both(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest number.
    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.0.first().copied()
    }

    /// The numbers in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        Self(numbers.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut numbers = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while numbers.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            match last == first {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read_and_written_as_the_kernel_does() {
        for (given, written) in [("", ""), ("0", "0"), ("4,0-2,1", "0-2,4"), ("7-7,9,10\n", "7,9-10")] {
            assert_eq!(CpuSet::parse(given).unwrap().to_string(), written, "{given:?}");
        }
        for bad in ["a", "3-1", "1,", "-1", "1-", "+1", "0 1", "1--2", "0-99999", "8192"] {
            assert_eq!(CpuSet::parse(bad), None, "{bad:?}");
        }
    }
}
