//! Device rules: what the spec says, checked once, and how v1 is told.

use std::{fs::OpenOptions, path::Path};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use super::{Error, Result, fsutil};

/// Which device nodes a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    All,
    Block,
    Char,
}

/// What may be done, as the kernel's `BPF_DEVCG_ACC_*` bits.
pub(super) const MKNOD: u8 = 1;
pub(super) const READ: u8 = 2;
pub(super) const WRITE: u8 = 4;
pub(super) const ALL_ACCESS: u8 = MKNOD | READ | WRITE;

/// One rule. The last one that matches an access decides; without a match the access is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub allow: bool,
    pub kind: Kind,
    /// None is every number.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub access: u8,
}

impl Rule {
    /// True for a rule that every access matches.
    pub(super) fn is_total(&self) -> bool {
        self.kind == Kind::All && self.access == ALL_ACCESS
    }

    /// The kernel's v1 syntax.
    fn v1_text(&self) -> String {
        if self.is_total() {
            return "a".to_owned();
        }
        let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
        let kind = if self.kind == Kind::Block { 'b' } else { 'c' };
        let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
            .iter()
            .filter(|(b, _)| self.access & b != 0)
            .map(|x| x.1)
            .collect();
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }

    fn covers(&self, other: &Rule) -> bool {
        (self.kind == Kind::All || self.kind == other.kind)
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }
}

/// Checks the rules of a spec.
pub(super) fn parse(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    rules.iter().map(parse_one).collect()
}

fn parse_one(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let fail = |value: String, reason| Error::InvalidValue {
        key: "device rule".to_owned(),
        value,
        reason,
    };
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => Kind::All,
        Some(LinuxDeviceType::B) => Kind::Block,
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Kind::Char,
        Some(LinuxDeviceType::P) => return Err(fail("p".to_owned(), "pipes are not controlled by device rules")),
    };
    let number = |n: Option<i64>| match n {
        None | Some(-1) => Ok(None),
        Some(n) => u32::try_from(n)
            .map(Some)
            .map_err(|_| fail(n.to_string(), "not a device number")),
    };
    let text = rule.access().as_deref().unwrap_or("rwm");
    let mut access = 0;
    for c in text.chars() {
        access |= match c {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => return Err(fail(text.to_owned(), "access is made of r, w and m")),
        };
    }
    let (major, minor) = (number(rule.major())?, number(rule.minor())?);
    if kind == Kind::All {
        // The kernel and every peer read "a" as everything, whatever numbers stand beside it.
        return Ok(Rule {
            allow: rule.allow(),
            kind,
            major: None,
            minor: None,
            access: ALL_ACCESS,
        });
    }
    if access == 0 {
        return Err(fail(text.to_owned(), "grants or denies nothing"));
    }
    Ok(Rule {
        allow: rule.allow(),
        kind,
        major,
        minor,
        access,
    })
}

/// Replaces the rules of the v1 cgroup at `dir`.
pub(super) fn apply_v1(dir: &Path, rules: &[LinuxDeviceCgroup]) -> Result<()> {
    let rules = parse(rules)?;
    // What stands before the last total rule has no effect.
    let start = rules.iter().rposition(Rule::is_total).unwrap_or(0);
    let rules = &rules[start..];
    check_v1(rules)?;
    let open = |name: &str| {
        let path = dir.join(name);
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        Ok((file, path))
    };
    let (mut allow, mut deny) = (open("devices.allow")?, open("devices.deny")?);
    for rule in rules {
        let (file, path) = if rule.allow { &mut allow } else { &mut deny };
        let text = rule.v1_text();
        fsutil::write_all_at_once(file, text.as_bytes())
            .map_err(|e| Error::io(format!("write {text:?} to"), path.as_path(), e))?;
    }
    Ok(())
}

/// v1 keeps a list of exceptions and takes one off only if its numbers are the same, so a hole in a wider rule would be
/// ignored without a word.
fn check_v1(rules: &[Rule]) -> Result<()> {
    for (at, rule) in rules.iter().enumerate() {
        let hole = |earlier: &&Rule| {
            !earlier.is_total()
                && earlier.allow != rule.allow
                && earlier.covers(rule)
                && (earlier.major, earlier.minor) != (rule.major, rule.minor)
        };
        if let Some(wider) = rules[..at].iter().find(hole) {
            let text = format!(
                "device rule {:?} inside {:?} on cgroup v1",
                rule.v1_text(),
                wider.v1_text()
            );
            return Err(Error::Unsupported(text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        typ: LinuxDeviceType,
        major: Option<i64>,
        minor: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow)
            .set_typ(Some(typ))
            .set_major(major)
            .set_minor(minor)
            .set_access(Some(access.to_owned()));
        rule
    }

    #[test]
    fn rules_are_spelt_as_v1_wants_them() {
        let rules = parse(&[
            rule(false, LinuxDeviceType::A, None, None, "rwm"),
            rule(true, LinuxDeviceType::C, Some(1), Some(3), "rwm"),
            rule(true, LinuxDeviceType::B, Some(-1), None, "m"),
        ])
        .unwrap();
        let text: Vec<_> = rules.iter().map(Rule::v1_text).collect();
        assert_eq!(text, ["a", "c 1:3 rwm", "b *:* m"]);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&[rule(true, LinuxDeviceType::C, Some(1), Some(3), "rx")]).is_err());
        assert!(parse(&[rule(true, LinuxDeviceType::C, Some(1 << 40), Some(3), "r")]).is_err());
        assert!(parse(&[rule(true, LinuxDeviceType::P, None, None, "r")]).is_err());
    }

    #[test]
    fn a_hole_in_a_wider_rule_is_unsupported_on_v1() {
        let rules = parse(&[
            rule(false, LinuxDeviceType::A, None, None, "rwm"),
            rule(true, LinuxDeviceType::C, Some(1), None, "rwm"),
            rule(false, LinuxDeviceType::C, Some(1), Some(3), "rwm"),
        ])
        .unwrap();
        assert!(check_v1(&rules).unwrap_err().to_string().starts_with("Unsupported"));
    }
}
