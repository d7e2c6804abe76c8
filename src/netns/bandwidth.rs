//! How fast a pod may send and receive, as its annotations say (row E17).

use std::collections::HashMap;

use super::{Error, Result};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// What kubelet takes for sane, in bits per second.
const SANE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Bits per second; none is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    /// Names the annotation that is no bandwidth between 1k and 1P.
    pub fn of(annotations: &HashMap<String, String>) -> Result<Self> {
        let bits = |annotation: &'static str| match annotations.get(annotation) {
            None => Ok(None),
            Some(text) => match quantity(text).filter(|bits| SANE.contains(bits)) {
                Some(bits) => Ok(Some(bits)),
                None => Err(Error::Setting {
                    setting: annotation,
                    reason: format!("{text:?} is not between 1k and 1P bits per second"),
                }),
            },
        };
        Ok(Self {
            ingress: bits(INGRESS)?,
            egress: bits(EGRESS)?,
        })
    }
}

/// Reads a Kubernetes quantity such as `10M`, `1.5Gi` or `1000`, rounded up.
fn quantity(text: &str) -> Option<u64> {
    let at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(at);
    let factor: f64 = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        exponent => 10f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let value = (number.parse::<f64>().ok()? * factor).ceil();
    (value >= 0.0 && value < 2f64.powi(63)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, bits) in [
            ("1000", 1000),
            ("10M", 10_000_000),
            ("1.5Ki", 1536),
            ("1e3", 1000),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(quantity(text), Some(bits), "{text}");
        }
        for text in ["", "M", "-1", "1x", "1e400", "1.2.3"] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn annotations_that_are_no_bandwidth_are_named() {
        let annotations = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        let read = Bandwidth::of(&annotations(EGRESS, "5M")).unwrap();
        assert_eq!((read.ingress, read.egress), (None, Some(5_000_000)));
        for bad in ["fast", "1", "10000P"] {
            let text = Bandwidth::of(&annotations(INGRESS, bad)).unwrap_err().to_string();
            assert!(text.contains(INGRESS) && text.contains(bad), "{text}");
        }
    }
}
