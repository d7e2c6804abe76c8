//! A transparency log's proof that it has an entry: the hashes that lead from the entry to the root of the log's tree, and the
//! log's signature of that root. See RFC 9162, sections 2.1.1 and 2.1.3, and the checkpoint format of transparency-dev.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{log::decode, roots::Known};

/// A proof as a bundle has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Proof {
    /// Of the entry in this tree.
    pub index: u64,
    /// Entries in the tree.
    pub size: u64,
    /// Base64.
    pub root: String,
    /// From the entry upwards, base64.
    pub hashes: Vec<String>,
    /// The signed note about the root.
    pub checkpoint: String,
}

type Hash = [u8; 32];

impl Proof {
    /// Checks that `entry` is in a tree whose root one of `logs` has signed.
    ///
    /// # Errors
    /// What is wrong, in a few words.
    pub fn check(&self, entry: &[u8], logs: &[Known]) -> Result<(), String> {
        let malformed = || "its log's proof is malformed".to_owned();
        let hash = |text: &String| decode(text).and_then(|bytes| Hash::try_from(bytes).ok());
        let root = hash(&self.root).ok_or_else(malformed)?;
        let path: Option<Vec<Hash>> = self.hashes.iter().map(hash).collect();
        let path = path.ok_or_else(malformed)?;
        if climb(self.index, self.size, leaf(entry), &path) != Some(root) {
            return Err("its log's proof does not lead to the root of the log".into());
        }
        let note = Note::parse(&self.checkpoint).ok_or("the checkpoint of its log is malformed")?;
        if (note.size, note.root) != (self.size, root) {
            return Err("the checkpoint of its log is of another tree".into());
        }
        let signed = |log: &Known| {
            note.signatures
                .iter()
                .any(|one| log.key.has_signed(note.text.as_bytes(), one))
        };
        match logs.iter().any(signed) {
            true => Ok(()),
            false => Err("no log that is trusted has signed the checkpoint of its proof".into()),
        }
    }
}

fn leaf(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(entry).finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// The root that `path` leads to, see RFC 9162, section 2.1.3.2; None if it is not as long as it must be.
fn climb(index: u64, size: u64, leaf: Hash, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, leaf);
    for beside in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node(beside, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, beside);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// A signed note that says how large a log's tree is, and what its root.
struct Note<'a> {
    /// What is signed.
    text: &'a str,
    size: u64,
    root: Hash,
    signatures: Vec<Vec<u8>>,
}

impl<'a> Note<'a> {
    fn parse(note: &'a str) -> Option<Self> {
        let end = note.rfind("\n\n")?;
        let (text, signatures) = (&note[..=end], &note[end + 2..]);
        let mut lines = text.lines();
        let _origin = lines.next().filter(|origin| !origin.is_empty())?;
        let size = lines.next()?.parse().ok()?;
        let root = Hash::try_from(STANDARD.decode(lines.next()?).ok()?).ok()?;
        // An em dash, who has signed, and in base64 four bytes that tell keys apart before the signature.
        let signature = |line: &str| {
            let (_name, text) = line.strip_prefix("\u{2014} ")?.rsplit_once(' ')?;
            STANDARD.decode(text).ok()?.get(4..).map(<[u8]>::to_vec)
        };
        Some(Self {
            text,
            size,
            root,
            signatures: signatures.lines().filter_map(signature).collect(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The root of a tree with these entries, by the definition of RFC 9162, section 2.1.1.
    pub fn root(entries: &[Vec<u8>]) -> Hash {
        match entries {
            [] => Sha256::digest([]).into(),
            [one] => leaf(one),
            _ => {
                let split = entries.len().next_power_of_two() / 2;
                node(&root(&entries[..split]), &root(&entries[split..]))
            }
        }
    }

    /// The path of one entry, by section 2.1.3.1.
    pub fn path(index: usize, entries: &[Vec<u8>]) -> Vec<Hash> {
        if entries.len() <= 1 {
            return Vec::new();
        }
        let split = entries.len().next_power_of_two() / 2;
        let (mut path, beside) = if index < split {
            (path(index, &entries[..split]), root(&entries[split..]))
        } else {
            (path(index - split, &entries[split..]), root(&entries[..split]))
        };
        path.push(beside);
        path
    }

    #[test]
    fn every_entry_of_every_tree_is_proved_and_nothing_else_is() {
        for size in 1..40usize {
            let entries: Vec<Vec<u8>> = (0..size).map(|n| n.to_string().into_bytes()).collect();
            let root = root(&entries);
            for index in 0..size {
                let path = path(index, &entries);
                let proved = |index: usize, size: usize, entry: &[u8], path: &[Hash]| {
                    climb(index as u64, size as u64, leaf(entry), path) == Some(root)
                };
                assert!(proved(index, size, &entries[index], &path), "{index} of {size}");
                assert!(!proved(index, size, b"other", &path));
                assert!(!proved(size, size, &entries[index], &path));
                for other in (0..size).filter(|other| *other != index) {
                    assert!(
                        !proved(other, size, &entries[index], &path),
                        "{other} for {index} of {size}"
                    );
                }
                if let Some((_, shorter)) = path.split_last() {
                    assert!(!proved(index, size, &entries[index], shorter));
                }
                let longer = [path.clone(), vec![root]].concat();
                assert!(!proved(index, size, &entries[index], &longer));
            }
        }
    }

    #[test]
    fn the_trees_of_the_reference_implementation_have_these_roots() {
        // The vectors that certificate-transparency-go and its kin test with.
        let entries = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ]
        .map(|text| hex::decode(text).unwrap());
        for (size, expected) in [
            (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
            (2, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
            (3, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
            (8, "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
        ] {
            assert_eq!(hex::encode(root(&entries[..size])), expected, "{size}");
        }
    }

    #[test]
    fn notes_that_are_cut_off_are_none() {
        let good = format!(
            "log.example\n5\n{}\n\n\u{2014} log.example AAAAAHg=\n",
            STANDARD.encode([7; 32])
        );
        let note = Note::parse(&good).unwrap();
        assert_eq!(
            (note.size, note.root, note.signatures.as_slice()),
            (5, [7; 32], &[b"x".to_vec()][..])
        );
        assert!(note.text.ends_with("=\n") && !note.text.ends_with("\n\n"));
        for at in 0..good.len() - "\u{2014} log.example AAAAAHg=\n".len() {
            assert!(Note::parse(&good[..at]).is_none(), "{at}");
        }
        for bad in ["", "\n\n", "a\n\n", "a\nb\nc\n\n", "a\n1\nAA==\n\n"] {
            assert!(Note::parse(bad).is_none(), "{bad:?}");
        }
    }
}
