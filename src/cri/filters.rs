//! Filters of lists: conditions are ANDed, labels match exactly, ids by their beginning (contract rule 4).

use std::{collections::HashMap, hash::BuildHasher};

/// Every wanted label is there with the wanted value.
pub(super) fn labels_match<S: BuildHasher, T: BuildHasher>(
    wanted: &HashMap<String, String, S>,
    labels: &HashMap<String, String, T>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// `id` begins with what is wanted; empty wants all.
pub(super) fn id_matches(wanted: &str, id: &str) -> bool {
    id.starts_with(wanted)
}

/// What is wanted, if it is a whole id: it is one's own then, and needs no search.
pub(super) fn whole_id(wanted: &str) -> Option<&str> {
    const DIGITS: usize = 64;
    (wanted.len() == DIGITS).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_match_exactly_and_all_of_them() {
        let labels = HashMap::from([
            ("app".to_owned(), "web".to_owned()),
            ("tier".to_owned(), "front".to_owned()),
        ]);
        let wanted = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        assert!(labels_match(&wanted(&[]), &labels));
        assert!(labels_match(&wanted(&[("app", "web"), ("tier", "front")]), &labels));
        assert!(!labels_match(&wanted(&[("app", "we")]), &labels));
        assert!(!labels_match(&wanted(&[("app", "web"), ("zone", "a")]), &labels));
    }
}
