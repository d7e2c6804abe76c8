//! Which images kubelet's garbage collection must spare: it knows nothing of people's containers.

use std::collections::HashSet;

use wharf_proto::record::Owner;

use super::Node;
use crate::images::Image;

/// What was pinned at one moment.
#[derive(Debug)]
pub struct Pinned {
    patterns: Vec<String>,
    /// Ids of the images that people's containers are made of.
    used: HashSet<String>,
}

impl Node {
    /// What is pinned now: by the record of an image, by the configuration, or by a person's container.
    #[must_use]
    pub fn pinned(&self) -> Pinned {
        let of_people = self.containers(&[Owner::User]);
        Pinned {
            patterns: self.config().pinned_images.clone(),
            used: of_people.iter().map(|one| one.record.get().image_id.clone()).collect(),
        }
    }
}

impl Pinned {
    /// True if the image must be spared. It can be removed all the same (contract rule 27).
    #[must_use]
    pub fn has(&self, image: &Image) -> bool {
        let names = || {
            image
                .tags
                .iter()
                .chain(&image.digests)
                .chain(std::iter::once(&image.id))
        };
        image.pinned
            || self.used.contains(&image.id)
            || self
                .patterns
                .iter()
                .any(|pattern| names().any(|name| matches(pattern, name)))
    }
}

/// `name`, `name*` or `*part*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        None => pattern == name,
        Some(rest) => match rest.strip_prefix('*') {
            None => name.starts_with(rest),
            Some(part) => name.contains(part),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_are_exact_or_a_beginning_or_a_part() {
        let name = "registry.example/base/pause:3.9";
        for yes in [
            name,
            "registry.example/*",
            "*pause*",
            "registry.example/base/pause:3.9*",
        ] {
            assert!(matches(yes, name), "{yes}");
        }
        for no in ["registry.example/base/pause", "pause*", "*paused*", ""] {
            assert!(!matches(no, name), "{no}");
        }
    }
}
