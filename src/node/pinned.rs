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

/// Whether `name` has the form of `pattern`, all of it: `*` stands for any text, `?` for any one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut in_name) = (0, 0);
    // The last star, and how much of the name it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, in_name));
                at += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            _ => {
                let Some((begin, end)) = star else { return false };
                star = Some((begin, end + 1));
                at = begin + 1;
                in_name = end + 1;
            }
        }
    }
    pattern[at..].iter().all(|rest| *rest == '*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_pattern_is_for_the_whole_name() {
        let name = "registry.example/base/pause:3.9";
        for yes in [
            name,
            "registry.example/*",
            "*pause*",
            "registry.example/base/pause:3.9*",
            "registry.example/*/pause:?.?",
            "*/pause:*",
            "*",
        ] {
            assert!(matches(yes, name), "{yes}");
        }
        for no in [
            "registry.example/base/pause",
            "pause*",
            "*paused*",
            "*/pause:?",
            "*/base",
            "",
        ] {
            assert!(!matches(no, name), "{no}");
        }
    }
}
