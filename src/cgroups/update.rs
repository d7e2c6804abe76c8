//! Changing limits of a cgroup that is in use: all of them, or none.

use std::{
    io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxResources;

use super::{Cgroup, Depth, Error, Result, fsutil};

/// Rounds of writing old values: one limit may be bound to another (memory to memory with swap, quota to period), and
/// is then taken only after it.
const ROUNDS: usize = 3;

/// What the limits were before an update.
#[derive(Debug)]
pub struct Undo {
    cgroup: Option<Cgroup>,
    files: Vec<(PathBuf, String)>,
}

impl Undo {
    /// Remembers what is in those of `files` that are there.
    pub(super) fn of(files: Vec<PathBuf>) -> Result<Undo> {
        let mut kept = Vec::new();
        for path in files {
            match fsutil::read_raw(&path) {
                Ok(content) => kept.push((path, content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", path, error)),
            }
        }
        Ok(Undo {
            cgroup: None,
            files: kept,
        })
    }

    /// Sets the limits back.
    ///
    /// # Errors
    /// The first one that could not be set back; all were tried. Fine if the cgroup is gone.
    pub fn take_back(self) -> Result<()> {
        let files: Vec<_> = self.files.iter().map(|(path, _)| path.clone()).collect();
        let mut left = self.files;
        for _ in 0..ROUNDS {
            left.retain(|(path, content)| {
                fsutil::read_raw(path).is_ok_and(|now| now != *content) && write(path, content).is_err()
            });
        }
        let written = match left.first() {
            Some((path, content)) => write(path, content),
            None => Ok(()),
        };
        written.and(self.cgroup.map_or(Ok(()), |cgroup| cgroup.tell_systemd(&files)))
    }
}

/// Line by line, as some files take one setting at a time. An empty value is written as an empty line.
fn write(path: &Path, content: &str) -> Result<()> {
    if content.trim().is_empty() {
        return fsutil::write(path, "\n");
    }
    content.lines().try_for_each(|line| fsutil::write(path, line))
}

impl Cgroup {
    /// Changes limits: all that are set in `wanted`, or none. What is returned takes the change back.
    ///
    /// # Errors
    /// [`Error::BelowUsage`] for a memory limit that is lower than what is in use, before anything is changed. Else the
    /// first limit that could not be set.
    pub fn update(&self, wanted: &LinuxResources) -> Result<Undo> {
        if let Some(limit) = wanted.memory().as_ref().and_then(|memory| memory.limit())
            && let Ok(limit) = u64::try_from(limit)
            && limit > 0
            && let Some(memory) = self.usage(Depth::Stats).memory
            && limit < memory.working_set
        {
            return Err(Error::BelowUsage {
                path: self.path(),
                limit,
                used: memory.working_set,
            });
        }
        let mut undo = Undo::of(self.limit_files(wanted))?;
        undo.cgroup = Some(self.clone());
        let Err(error) = self.apply(wanted) else {
            return Ok(undo);
        };
        match undo.take_back() {
            Ok(()) => Err(error),
            Err(second) => Err(Error::HalfDone {
                error: Box::new(error),
                second: Box::new(second),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_set_back_and_the_rest_is_left() {
        let dir = std::env::temp_dir().join(format!("wharf-undo-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        std::fs::write(at("cpu.max"), "max 100000\n").unwrap();
        std::fs::write(at("cpu.weight"), "100\n").unwrap();
        let undo = Undo::of(vec![at("cpu.max"), at("cpu.weight"), at("absent")]).unwrap();
        std::fs::write(at("cpu.max"), "5000 100000\n").unwrap();
        undo.take_back().unwrap();
        assert!(
            std::fs::read_to_string(at("cpu.max"))
                .unwrap()
                .starts_with("max 100000")
        );
        assert_eq!(std::fs::read_to_string(at("cpu.weight")).unwrap(), "100\n");
        assert!(!at("absent").exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
