//! Every rule of the contract between kubelet and a runtime has a test that bears its number.

use std::collections::BTreeSet;
use std::path::Path;

/// Rules are numbered from 1 to this.
const LAST: u32 = 48;

/// The rules in names such as `async fn rule_35_and_36_lists_do_not_wait`.
fn named(source: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for name in source.split("fn rule_").skip(1) {
        let end = name.find(|c: char| c != '_' && !c.is_alphanumeric());
        let mut words = name[..end.unwrap_or(name.len())].split('_').peekable();
        while let Some(number) = words.next().and_then(|word| word.parse().ok()) {
            found.insert(number);
            // Only "and" with a number behind it goes on with the list.
            words.next_if_eq(&"and");
        }
    }
    found
}

#[test]
fn numbers_are_read_from_names() {
    let source = "async fn rule_08_and_10_stopping() {}\nfn rule_20_output_above_16_mib() {}\nfn overrule_3() {}";
    assert_eq!(named(source), BTreeSet::from([8, 10, 20]));
}

#[test]
fn every_rule_has_a_test_named_after_it() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises");
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            found.extend(named(&std::fs::read_to_string(path).unwrap()));
        }
    }
    let missing: Vec<u32> = (1..=LAST).filter(|rule| !found.contains(rule)).collect();
    assert!(
        missing.is_empty(),
        "no test in {} is named after rule {missing:?}",
        dir.display()
    );
}
