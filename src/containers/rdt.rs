//! Classes of cache and memory bandwidth (row E12): groups of the kernel's resctrl file system
//! (Documentation/filesystems/resctrl.rst), as containerd and CRI-O use them.
//!
//! A class is a group's directory. One that the configuration describes is made when it is first asked for; others must
//! be there. A process is in a class when its number has been written to the group's `tasks`, and so is what it starts:
//! that is done where a container's init and what is run in it later begin.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, Result};
use crate::config::Config;

/// The group of everything that is in no other.
const ROOT: &str = "system/default";

/// What is not a group among resctrl's directories.
const OTHERS: [&str; 3] = ["info", "mon_groups", "mon_data"];

/// The `tasks` file of the class.
///
/// # Errors
/// [`Error::Invalid`] for a class that is not there and not configured, or on a node without resctrl;
/// [`Error::State`] when the kernel does not take the configured class.
pub(super) fn tasks(config: &Config, class: &str, container: &str) -> Result<PathBuf> {
    let settings = &config.rdt;
    let invalid = |why: String| Error::Invalid(format!("RDT class {class:?} of container {container:?}: {why}"));
    let root = &settings.resctrl_dir;
    if !root.join("schemata").is_file() {
        return Err(invalid(format!(
            "this node has no classes of cache and memory bandwidth, there is no {}",
            root.join("schemata").display()
        )));
    }
    if class == ROOT {
        return Ok(root.join("tasks"));
    }
    if class.starts_with('.') || class.contains(['/', '\0']) || OTHERS.contains(&class) {
        return Err(invalid("not a class's name".to_owned()));
    }
    let group = root.join(class);
    match settings.classes.get(class) {
        Some(schemata) => {
            make(&group, schemata)
                .map_err(|error| Error::State(format!("RDT class {class:?} of container {container:?}: {error}")))?;
        }
        None if group.is_dir() => {}
        None => return Err(invalid(format!("there is none; known are {}", known(config, root)))),
    }
    Ok(group.join("tasks"))
}

fn make(group: &Path, schemata: &[String]) -> io::Result<()> {
    let named = |what: &str, path: &Path| {
        let text = format!("{what} {}", path.display());
        move |error: io::Error| io::Error::new(error.kind(), format!("{text}: {error}"))
    };
    match fs::create_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.map_err(named("make", group))?,
    }
    // The kernel takes line by line and tells of the first that is wrong.
    let file = group.join("schemata");
    for line in schemata {
        fs::write(&file, format!("{line}\n")).map_err(named(&format!("write {line:?} to"), &file))?;
    }
    Ok(())
}

/// For a message.
fn known(config: &Config, root: &Path) -> String {
    let groups = fs::read_dir(root).into_iter().flatten().flatten();
    let groups = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<_> = groups
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.retain(|name| !OTHERS.contains(&name.as_str()));
    names.extend(config.rdt.classes.keys().cloned());
    names.push(ROOT.to_owned());
    names.sort();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_groups_that_are_there_or_configured() {
        let dir = std::env::temp_dir().join(format!("wharf-rdt-{}", std::process::id()));
        let mut config = Config::default();
        config.rdt.resctrl_dir.clone_from(&dir);
        config.rdt.classes.insert("gold".into(), vec!["L3:0=f".into()]);
        let text = tasks(&config, "gold", "main").unwrap_err().to_string();
        assert!(text.contains("no classes") && text.contains("main"), "{text}");

        fs::create_dir_all(dir.join("mine")).unwrap();
        fs::create_dir_all(dir.join("info")).unwrap();
        fs::write(dir.join("schemata"), "L3:0=ff\n").unwrap();
        assert_eq!(tasks(&config, "gold", "main").unwrap(), dir.join("gold/tasks"));
        assert_eq!(fs::read_to_string(dir.join("gold/schemata")).unwrap(), "L3:0=f\n");
        assert_eq!(tasks(&config, "mine", "main").unwrap(), dir.join("mine/tasks"));
        assert_eq!(tasks(&config, ROOT, "main").unwrap(), dir.join("tasks"));
        let text = tasks(&config, "silver", "main").unwrap_err().to_string();
        assert!(text.ends_with("known are gold, mine, system/default"), "{text}");
        for bad in ["..", "a/b", "info", ".x"] {
            assert!(tasks(&config, bad, "main").is_err(), "{bad}");
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
