//! What annotations ask of the node's CPUs: the names and values that CRI-O made known (row E14).

use std::collections::HashMap;

use crate::containers::{Error, Result};

/// What a container is to have.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Wishes {
    /// The scheduler does not move tasks to or from its CPUs.
    pub no_balance: bool,
    /// No CPU quota, neither its own nor its pod's.
    pub no_quota: bool,
    /// Interrupts on its CPUs.
    pub interrupts: Interrupts,
    /// What its CPUs' `pm_qos_resume_latency_us` is to be.
    pub idle_latency: Option<String>,
    /// Frequency governor of its CPUs.
    pub governor: Option<String>,
    /// It may use the node's shared CPUs as well.
    pub shared: bool,
}

/// Where interrupts may go.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupts {
    /// Anywhere.
    #[default]
    Anywhere,
    /// Not to the container's CPUs.
    Elsewhere,
    /// Of the container's CPUs only to the first and the threads of its core.
    Housekeeping,
}

pub(super) const BALANCE: &str = "cpu-load-balancing.crio.io";
pub(super) const QUOTA: &str = "cpu-quota.crio.io";
pub(super) const INTERRUPTS: &str = "irq-load-balancing.crio.io";
pub(super) const IDLE: &str = "cpu-c-states.crio.io";
pub(super) const GOVERNOR: &str = "cpu-freq-governor.crio.io";
pub(super) const SHARED: &str = "cpu-shared.crio.io";

impl Wishes {
    /// Reads the annotations that count for the container called `name`. What names the container counts before what
    /// is for the whole pod.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the annotation, for a value that means nothing.
    pub fn read(annotations: &HashMap<String, String>, name: &str) -> Result<Self> {
        let find = |base: &str| {
            let own = format!("{base}/{name}");
            let of_pod = || annotations.get(base).map(|value| (base.to_owned(), value.as_str()));
            annotations
                .get(&own)
                .map(|value| (own.clone(), value.as_str()))
                .or_else(of_pod)
        };
        let invalid = |key: &str, value: &str, known: &str| {
            Error::Invalid(format!("annotation {key}: {value:?} is not among {known}"))
        };
        let disabled = |base: &str| match find(base) {
            None => Ok(false),
            Some((_, "disable" | "true")) => Ok(true),
            Some((_, "enable" | "false" | "")) => Ok(false),
            Some((key, other)) => Err(invalid(&key, other, "disable, enable")),
        };
        let interrupts = match find(INTERRUPTS) {
            None | Some((_, "enable" | "false" | "")) => Interrupts::Anywhere,
            Some((_, "disable" | "true")) => Interrupts::Elsewhere,
            Some((_, "housekeeping")) => Interrupts::Housekeeping,
            Some((key, other)) => return Err(invalid(&key, other, "disable, housekeeping, enable")),
        };
        let idle_latency = match annotations.get(IDLE).map(String::as_str) {
            None => None,
            // The kernel's words for "no limit" and for "never idle" (Documentation/ABI/testing/sysfs-devices-power).
            Some("enable") => Some("0".to_owned()),
            Some("disable") => Some("n/a".to_owned()),
            Some(other) => {
                let number = other
                    .strip_prefix("max_latency:")
                    .and_then(|text| text.parse::<u32>().ok());
                let usable = number.filter(|number| (1..=i32::MAX as u32).contains(number));
                let latency =
                    usable.ok_or_else(|| invalid(IDLE, other, "disable, enable, max_latency:MICROSECONDS"))?;
                Some(latency.to_string())
            }
        };
        let governor = annotations.get(GOVERNOR);
        let plain = |text: &&String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if let Some(name) = governor.filter(|name| !plain(name)) {
            return Err(Error::Invalid(format!(
                "annotation {GOVERNOR}: {name:?} is no governor's name"
            )));
        }
        // For a single container only: each that shares is one more whose work the others have to bear.
        let own = format!("{SHARED}/{name}");
        let shared = match annotations.get(&own).map(String::as_str) {
            None | Some("disable" | "") => false,
            Some("enable") => true,
            Some(other) => return Err(invalid(&own, other, "enable, disable")),
        };
        Ok(Self {
            no_balance: disabled(BALANCE)?,
            no_quota: disabled(QUOTA)?,
            interrupts,
            idle_latency,
            governor: governor.cloned(),
            shared,
        })
    }

    /// The annotation that asks for the first of what is asked for; `None` when nothing is.
    pub fn first(&self) -> Option<&'static str> {
        [
            (self.no_balance, BALANCE),
            (self.no_quota, QUOTA),
            (self.interrupts != Interrupts::Anywhere, INTERRUPTS),
            (self.idle_latency.is_some(), IDLE),
            (self.governor.is_some(), GOVERNOR),
            (self.shared, SHARED),
        ]
        .into_iter()
        .find_map(|(asked, key)| asked.then_some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Wishes> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        Wishes::read(&pairs.collect(), "main")
    }

    #[test]
    fn annotations_ask_for_what_cri_o_made_of_them() {
        assert_eq!(read(&[]).unwrap().first(), None);
        let all = read(&[
            (BALANCE, "disable"),
            (QUOTA, "true"),
            (INTERRUPTS, "housekeeping"),
            (IDLE, "max_latency:10"),
            (GOVERNOR, "performance"),
            ("cpu-shared.crio.io/main", "enable"),
        ])
        .unwrap();
        let expected = Wishes {
            no_balance: true,
            no_quota: true,
            interrupts: Interrupts::Housekeeping,
            idle_latency: Some("10".into()),
            governor: Some("performance".into()),
            shared: true,
        };
        assert_eq!(all, expected);
        assert_eq!(read(&[(IDLE, "disable")]).unwrap().idle_latency.as_deref(), Some("n/a"));
        assert_eq!(read(&[(IDLE, "enable")]).unwrap().idle_latency.as_deref(), Some("0"));
    }

    #[test]
    fn what_names_the_container_counts_first_and_other_containers_do_not() {
        let one = read(&[(QUOTA, "disable"), ("cpu-quota.crio.io/main", "enable")]).unwrap();
        assert!(!one.no_quota);
        let other = read(&[
            ("cpu-quota.crio.io/other", "disable"),
            ("cpu-shared.crio.io/other", "enable"),
        ])
        .unwrap();
        assert_eq!(other, Wishes::default());
    }

    #[test]
    fn values_that_mean_nothing_are_refused_with_their_annotation() {
        for (key, value) in [
            (BALANCE, "off"),
            ("cpu-quota.crio.io/main", "no"),
            (INTERRUPTS, "never"),
            (IDLE, "max_latency:0"),
            (IDLE, "max_latency:-4"),
            (IDLE, "fast"),
            (GOVERNOR, "../x"),
            (GOVERNOR, ""),
            ("cpu-shared.crio.io/main", "yes"),
        ] {
            let error = read(&[(key, value)]).expect_err(value).to_string();
            assert!(error.contains(key), "{key}={value}: {error}");
        }
    }
}
