//! A door for the fuzz target (fuzz/) to the descriptions in checkpoints.

use std::path::Path;

use oci_spec::runtime::Spec;

use super::{
    checkpoint::pod::Description,
    restore::{self, described},
};

/// A file of a checkpoint, by its name; what is said in it is taken as far as a restore would.
pub fn checkpoint(name: &str, text: &[u8]) {
    if name == "pod.dump" {
        if let Ok(description) = Description::parse(text) {
            for member in &description.containers {
                let place = member.place(Path::new("/checkpoint"));
                assert_eq!(place.parent(), Some(Path::new("/checkpoint")), "it leads elsewhere");
            }
        }
        return;
    }
    let mut all = described::Descriptions::default();
    if all.take(name, text).is_err() {
        return;
    }
    let root = Path::new("/nowhere/rootfs");
    for path in &all.deleted {
        let place = described::within(root, path);
        let inside = |place: &std::path::PathBuf| place != root && place.starts_with(root) && !has_parent(place);
        assert!(place.as_ref().is_none_or(inside), "{place:?} is outside");
    }
    if let Some(config) = &all.config {
        assert!(config.checkpointed_at() >= 0);
    }
    let _ = all.binds();
    restore::adopted(all, &mut Spec::default());
}

fn has_parent(path: &Path) -> bool {
    path.components().any(|part| part == std::path::Component::ParentDir)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_seeds_are_what_they_are_taken_for() {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/checkpoint");
        let names = [
            "config.dump",
            "spec.dump",
            "deleted.files",
            "bind.mounts",
            "volumes.dump",
            "pod.dump",
        ];
        let mut seen = 0;
        for seed in std::fs::read_dir(seeds).unwrap() {
            let bytes = std::fs::read(seed.unwrap().path()).unwrap();
            let name = names[usize::from(bytes[0]) % names.len()];
            let read = match name {
                "pod.dump" => super::Description::parse(&bytes[1..]).map(drop),
                _ => super::described::Descriptions::default().take(name, &bytes[1..]),
            };
            read.unwrap_or_else(|error| panic!("{name}: {error}"));
            super::checkpoint(name, &bytes[1..]);
            seen += 1;
        }
        assert_eq!(seen, names.len());
    }
}
