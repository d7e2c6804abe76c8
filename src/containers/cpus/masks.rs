//! Sets of CPUs as the kernel's files have them, and irqbalance's settings. Pure.

use serde::{Deserialize, Serialize};

use crate::config::CpuSet;

/// How a file writes a set of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Format {
    /// `0-2,4`; nothing is an empty line.
    List,
    /// Hexadecimal digits in groups of eight, the highest CPUs first: `0000000f,ffffffff`.
    Mask,
}

impl Format {
    pub fn parse(self, text: &str) -> Option<CpuSet> {
        match self {
            Self::List => CpuSet::parse(text),
            Self::Mask => parse_mask(text),
        }
    }

    pub fn write(self, cpus: &CpuSet) -> String {
        match self {
            // An empty write would change nothing.
            Self::List if cpus.is_empty() => "\n".to_owned(),
            Self::List => cpus.to_string(),
            Self::Mask => write_mask(cpus, 1),
        }
    }
}

/// The set without which a mask of the same width is whole.
pub(super) fn others(mask: &str) -> Option<String> {
    let cpus = parse_mask(mask)?;
    let digits = mask.chars().filter(char::is_ascii_hexdigit).count();
    let width = u32::try_from(digits.saturating_mul(4)).ok()?;
    let rest = (0..width).collect::<CpuSet>().without(&cpus);
    Some(write_mask(&rest, digits.div_ceil(8)))
}

fn parse_mask(text: &str) -> Option<CpuSet> {
    let digits: String = text.trim().split(',').collect();
    if digits.is_empty() {
        return None;
    }
    let mut cpus = Vec::new();
    for (place, digit) in digits.chars().rev().enumerate() {
        let digit = digit.to_digit(16)?;
        let base = u32::try_from(place).ok()?.checked_mul(4)?;
        cpus.extend((0..4).filter(|bit| digit & 1 << bit != 0).map(|bit| base + bit));
    }
    Some(cpus.into_iter().collect())
}

/// At least `groups` of eight digits.
fn write_mask(cpus: &CpuSet, groups: usize) -> String {
    let mut words = vec![0u32; groups];
    for cpu in cpus.iter() {
        let at = cpu as usize / 32;
        if at >= words.len() {
            words.resize(at + 1, 0);
        }
        words[at] |= 1 << (cpu % 32);
    }
    let words: Vec<_> = words.iter().rev().map(|word| format!("{word:08x}")).collect();
    words.join(",")
}

const BANNED: &str = "IRQBALANCE_BANNED_CPUS=";

/// The CPUs that irqbalance's settings exclude, as they stand there.
pub(super) fn banned(settings: &str) -> Option<&str> {
    settings.lines().find_map(|line| line.strip_prefix(BANNED))
}

/// The settings with others excluded; `None` takes the line out.
pub(super) fn with_banned(settings: &str, cpus: Option<&str>) -> String {
    let line = cpus.map(|cpus| format!("{BANNED}{cpus}"));
    let mut lines: Vec<&str> = settings.lines().filter(|line| !line.starts_with(BANNED)).collect();
    lines.extend(line.as_deref());
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_read_and_written_as_the_kernel_does() {
        let set = |text: &str| Format::Mask.parse(text).unwrap();
        assert_eq!(set("3\n").to_string(), "0-1");
        assert_eq!(set("0000000f,ffff00ff").to_string(), "0-7,16-35");
        assert_eq!(Format::Mask.write(&set("0000000f,ffff00ff")), "0000000f,ffff00ff");
        assert_eq!(Format::Mask.write(&CpuSet::default()), "00000000");
        assert_eq!(Format::List.write(&CpuSet::default()), "\n");
        for bad in ["", "\n", "xyz", "0x3", "-1"] {
            assert!(Format::Mask.parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn irqbalance_is_told_the_opposite() {
        assert_eq!(others("00000003").unwrap(), "fffffffc");
        assert_eq!(others("3").unwrap(), "0000000c");
        assert_eq!(others("0000000f,ffff00ff").unwrap(), "fffffff0,0000ff00");
        let settings = "# irqbalance\nIRQBALANCE_BANNED_CPUS=\"1\"\nIRQBALANCE_ARGS=x\n";
        assert_eq!(banned(settings), Some("\"1\""));
        let changed = with_banned(settings, Some("\"c\""));
        assert_eq!(
            changed,
            "# irqbalance\nIRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"c\"\n"
        );
        assert_eq!(with_banned(&changed, None), "# irqbalance\nIRQBALANCE_ARGS=x\n");
        assert_eq!(banned("IRQBALANCE_ARGS=x"), None);
    }
}
