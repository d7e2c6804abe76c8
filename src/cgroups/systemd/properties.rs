//! Limits of cgroup v2's files as properties of a unit (systemd.resource-control(5)).

use std::path::{Path, PathBuf};

use super::{super::fsutil, wire::Value};

/// systemd's CPU quota has steps of one percent: microseconds of CPU time in a second.
const QUOTA_STEP: u64 = 10_000;

/// What systemd is told.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    pub properties: Vec<(&'static str, Value)>,
    /// Files whose value systemd knows only rounded, and the exact value.
    pub rounded: Vec<(PathBuf, String)>,
}

/// The properties for those of `files` that are there and have one. systemd sets nothing back in others, such as
/// huge pages and `cpu.max.burst`.
pub fn of(files: &[PathBuf]) -> Told {
    let mut told = Told::default();
    for path in files {
        let Ok(text) = fsutil::read_raw(path) else { continue };
        told.add(path, text.trim());
    }
    told
}

impl Told {
    fn add(&mut self, path: &Path, text: &str) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let plain = match name {
            "memory.max" => "MemoryMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "io.weight" => "IOWeight",
            "cpuset.cpus" => return self.set("AllowedCPUs", text),
            "cpuset.mems" => return self.set("AllowedMemoryNodes", text),
            "cpu.max" => return self.quota(path, text),
            _ => return,
        };
        let value = match text.trim_start_matches("default ").lines().next() {
            Some("max") => Some(u64::MAX),
            Some(number) => number.parse().ok(),
            None => None,
        };
        // A weight of 0 is the scheduler's idle class, which has no property in every version.
        if let Some(value) = value.filter(|value| *value > 0 || !name.ends_with("weight")) {
            self.properties.push((plain, Value::U64(value)));
        }
    }

    fn quota(&mut self, path: &Path, text: &str) {
        let Some((quota, period)) = text.split_once(' ') else {
            return;
        };
        let Some(period) = period.parse::<u64>().ok().filter(|period| *period > 0) else {
            return;
        };
        let in_second = match quota {
            "max" => u64::MAX,
            number => {
                let Ok(number) = number.parse::<u64>() else { return };
                let exact = number.saturating_mul(1_000_000);
                let steps = exact.div_ceil(period.saturating_mul(QUOTA_STEP));
                if steps.saturating_mul(QUOTA_STEP).saturating_mul(period) != exact {
                    self.rounded.push((path.to_owned(), text.to_owned()));
                }
                steps.saturating_mul(QUOTA_STEP)
            }
        };
        self.properties.push(("CPUQuotaPerSecUSec", Value::U64(in_second)));
        self.properties.push(("CPUQuotaPeriodUSec", Value::U64(period)));
    }

    /// A list such as `0-2,5` as a bit for each.
    fn set(&mut self, property: &'static str, list: &str) {
        let mut bits: Vec<u8> = Vec::new();
        for part in list.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
                return;
            };
            for number in first..=last {
                let (byte, bit) = (usize::from(number) / 8, number % 8);
                if bits.len() <= byte {
                    bits.resize(byte + 1, 0);
                }
                bits[byte] |= 1 << bit;
            }
        }
        self.properties.push((property, Value::Bytes(bits)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, text: &str) -> Told {
        let mut told = Told::default();
        told.add(Path::new(name), text);
        told
    }

    #[test]
    fn limits_are_told_as_they_are() {
        for (name, text, property, value) in [
            ("memory.max", "1048576", "MemoryMax", 1_048_576),
            ("memory.swap.max", "0", "MemorySwapMax", 0),
            ("pids.max", "max", "TasksMax", u64::MAX),
            ("cpu.weight", "100", "CPUWeight", 100),
            ("io.weight", "default 50\n8:0 20", "IOWeight", 50),
        ] {
            assert_eq!(told(name, text).properties, [(property, Value::U64(value))], "{name}");
        }
        for (name, text) in [("cpu.weight", "0"), ("hugetlb.2MB.max", "0"), ("memory.max", "")] {
            assert_eq!(told(name, text), Told::default(), "{name} {text:?}");
        }
    }

    #[test]
    fn quotas_are_rounded_up_and_remembered_exactly() {
        let quota = |told: &Told| told.properties.first().map(|(_, value)| value.clone());
        let half = told("cpu.max", "50000 100000");
        assert_eq!(quota(&half), Some(Value::U64(500_000)));
        assert!(half.rounded.is_empty());
        let odd = told("cpu.max", "500 100000");
        assert_eq!(quota(&odd), Some(Value::U64(10_000)));
        assert_eq!(odd.rounded, [(PathBuf::from("cpu.max"), "500 100000".to_owned())]);
        assert_eq!(quota(&told("cpu.max", "max 100000")), Some(Value::U64(u64::MAX)));
    }

    #[test]
    fn sets_are_bits() {
        let bits = |text| told("cpuset.cpus", text).properties;
        assert_eq!(bits("0-1,9"), [("AllowedCPUs", Value::Bytes(vec![3, 2]))]);
        assert_eq!(bits(""), [("AllowedCPUs", Value::Bytes(vec![]))]);
    }
}
