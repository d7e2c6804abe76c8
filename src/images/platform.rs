//! Which of an index's images fits this machine.

use std::fmt;

use serde::Deserialize;

use super::manifest::Entry;

/// What an image in an index is for.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: String,
}

/// This machine: Linux on some processor.
#[derive(Debug, Clone)]
pub(super) struct Host {
    architecture: String,
    /// The best variant that the processor can run; empty if there is only one.
    variant: String,
}

impl Host {
    pub fn new(architecture: &str, variant: &str) -> Self {
        Self {
            architecture: architecture.into(),
            variant: variant.into(),
        }
    }

    /// The machine that this program runs on, in Go's words.
    pub fn current() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self::new(architecture, variant)
    }

    /// As Go names it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The best of `entries`; among equals the first.
    pub fn choose<'a>(&self, entries: &'a [Entry]) -> Option<&'a Entry> {
        let mut best: Option<(u32, &Entry)> = None;
        for entry in entries {
            let rank = self.rank(entry.platform.as_ref());
            if rank > best.map_or(0, |(rank, _)| rank) {
                best = Some((rank, entry));
            }
        }
        best.map(|(_, entry)| entry)
    }

    /// How well a platform fits; zero is not at all.
    fn rank(&self, platform: Option<&Platform>) -> u32 {
        let Some(platform) = platform else {
            return 1;
        };
        if !platform.os.eq_ignore_ascii_case("linux") {
            return 0;
        }
        let architecture = platform.architecture.to_ascii_lowercase();
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            other => other,
        };
        if architecture != self.architecture {
            // 32-bit programs run on all amd64 kernels that distributions ship.
            return u32::from(self.architecture == "amd64" && architecture == "386") * 2;
        }
        match (
            level(architecture, &platform.variant),
            level(architecture, &self.variant),
        ) {
            (Some(theirs), Some(ours)) if theirs <= ours => 10 + theirs,
            // An unknown variant is better than nothing if it is the same unknown.
            _ if platform.variant == self.variant => 10,
            _ => 0,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        if !self.variant.is_empty() && self.architecture != "amd64" {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// `v3` is 3; no variant is the oldest that the architecture has.
fn level(architecture: &str, variant: &str) -> Option<u32> {
    if variant.is_empty() {
        return Some(match architecture {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        });
    }
    // arm64 also has v8.1, v9.0 and so on.
    let number = variant.strip_prefix('v')?.split('.').next()?;
    number.parse().ok().filter(|level| *level < 100)
}

#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
    {
        "v4"
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi2") && is_x86_feature_detected!("fma") {
        "v3"
    } else if is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt") {
        "v2"
    } else {
        "v1"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    "v1"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(host: &Host, platforms: &[&str]) -> Option<usize> {
        let entries: Vec<Entry> = platforms
            .iter()
            .enumerate()
            .map(|(index, platform)| {
                let mut parts = platform.split('/').map(ToOwned::to_owned);
                Entry {
                    media_type: String::new(),
                    digest: index.to_string(),
                    size: 0,
                    platform: (!platform.is_empty()).then(|| Platform {
                        os: parts.next().unwrap_or_default(),
                        architecture: parts.next().unwrap_or_default(),
                        variant: parts.next().unwrap_or_default(),
                    }),
                    annotations: None,
                    urls: None,
                }
            })
            .collect();
        host.choose(&entries).map(|entry| entry.digest.parse().unwrap())
    }

    #[test]
    fn the_best_variant_that_runs_is_chosen() {
        let arm = Host::new("arm", "v7");
        assert_eq!(
            chosen(
                &arm,
                &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"]
            ),
            Some(2)
        );
        assert_eq!(
            chosen(&Host::new("arm", "v6"), &["linux/arm/v7", "linux/arm/v6"]),
            Some(1)
        );
        let arm64 = Host::new("arm64", "v8");
        assert_eq!(chosen(&arm64, &["linux/amd64", "linux/arm64", "linux/arm/v7"]), Some(1));
        assert_eq!(chosen(&arm64, &["linux/arm64/v8"]), Some(0));
        let amd64 = Host::new("amd64", "v3");
        assert_eq!(
            chosen(&amd64, &["linux/amd64", "linux/amd64/v3", "linux/amd64/v4"]),
            Some(1)
        );
    }

    #[test]
    fn other_systems_and_attestations_are_never_chosen() {
        let amd64 = Host::new("amd64", "v1");
        assert_eq!(
            chosen(&amd64, &["windows/amd64", "unknown/unknown", "linux/arm64"]),
            None
        );
        assert_eq!(chosen(&amd64, &["linux/386", ""]), Some(0));
        assert_eq!(chosen(&amd64, &["linux/386", "linux/amd64"]), Some(1));
        assert_eq!(chosen(&amd64, &["windows/amd64", ""]), Some(1));
        assert_eq!(chosen(&amd64, &["linux/amd64/v1", "linux/amd64"]), Some(0));
    }

    #[test]
    fn this_machine_has_a_name() {
        assert!(Host::current().to_string().starts_with("linux/"));
    }
}
