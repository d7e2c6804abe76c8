//! Mount options as the runtime spec names them.

use crate::sys::MountAttr;

/// Options of one mount, sorted by what they act on.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Attributes of the mount itself.
    pub attr: MountAttr,
    /// Attributes of the mount and everything below it (`rro` and its like).
    pub recursive: MountAttr,
    pub bind: bool,
    /// Bind what is mounted below the source too.
    pub rbind: bool,
    /// Propagation types in order, with whether they are recursive.
    pub propagation: Vec<(u64, bool)>,
    /// Map ids of the mounted files; `Some(true)`: of everything below as well.
    pub idmap: Option<bool>,
    /// For the file system.
    pub data: Vec<(String, String)>,
}

impl Options {
    /// Sort the options. An unknown one goes to the file system, which refuses what it does not know; `Err` names
    /// one that only another runtime implements.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Options, String> {
        let mut parsed = Options::default();
        for option in options.iter().map(AsRef::as_ref) {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), String> {
        if let Some(propagation) = propagation(option) {
            self.propagation.push(propagation);
            return Ok(());
        }
        match option {
            "" | "defaults" | "async" | "nomand" | "norelatime" | "noiversion" | "loud" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.rbind) = (true, true),
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            "sync" | "dirsync" | "mand" | "lazytime" => self.data.push((option.into(), String::new())),
            "tmpcopyup" | "copy-symlink" | "src-nofollow" | "dest-nofollow" | "remount" => return Err(option.into()),
            other => {
                if let Some(change) = attribute(other) {
                    change.apply(&mut self.attr);
                } else if let Some(change) = other.strip_prefix('r').and_then(attribute) {
                    change.apply(&mut self.recursive);
                } else {
                    let (key, value) = other.split_once('=').unwrap_or((other, ""));
                    self.data.push((key.into(), value.into()));
                }
            }
        }
        Ok(())
    }
}

/// One change of mount attributes.
struct Change {
    set: u64,
    clear: u64,
}

impl Change {
    /// The last option about an attribute wins.
    fn apply(self, attr: &mut MountAttr) {
        attr.set = attr.set & !self.clear | self.set;
        // The access time setting is a field that must be cleared as a whole before it is set.
        let field = if self.set & libc::MOUNT_ATTR__ATIME != 0 {
            libc::MOUNT_ATTR__ATIME
        } else {
            0
        };
        attr.clear = attr.clear & !self.set | self.clear | field;
    }
}

fn attribute(option: &str) -> Option<Change> {
    let set = |bit| Some(Change { set: bit, clear: 0 });
    let clear = |bit| Some(Change { set: 0, clear: bit });
    match option {
        "ro" => set(libc::MOUNT_ATTR_RDONLY),
        "rw" => clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => set(libc::MOUNT_ATTR_NOSUID),
        "suid" => clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => set(libc::MOUNT_ATTR_NODEV),
        "dev" => clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => clear(libc::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => clear(libc::MOUNT_ATTR_NODIRATIME),
        "noatime" => set(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => set(libc::MOUNT_ATTR_STRICTATIME),
        "atime" | "nostrictatime" | "relatime" => clear(libc::MOUNT_ATTR__ATIME),
        _ => None,
    }
}

fn propagation(option: &str) -> Option<(u64, bool)> {
    let (name, recursive) = match option {
        "rshared" | "rslave" | "rprivate" | "runbindable" => (&option[1..], true),
        _ => (option, false),
    };
    let kind = match name {
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some((kind, recursive))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_option_about_an_attribute_wins() {
        let options = Options::parse(&["ro", "nosuid", "rw", "suid", "nosuid"]).unwrap();
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn recursive_options_act_on_the_tree() {
        let options = Options::parse(&["rbind", "rro", "rnosuid", "rslave", "ridmap"]).unwrap();
        assert!(options.bind && options.rbind);
        assert_eq!(options.recursive.set, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID);
        assert_eq!(options.attr, MountAttr::default());
        assert_eq!(options.propagation, [(libc::MS_SLAVE, true)]);
        assert_eq!(options.idmap, Some(true));
    }

    #[test]
    fn access_time_settings_clear_the_field_they_set() {
        let options = Options::parse(&["relatime", "noatime"]).unwrap();
        assert_eq!(options.attr.set, libc::MOUNT_ATTR_NOATIME);
        assert_eq!(options.attr.clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn unknown_options_go_to_the_file_system_and_foreign_ones_are_refused() {
        let options = Options::parse(&["size=64m", "newinstance", "mode=0620"]).unwrap();
        let data: Vec<_> = options.data.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(data, [("size", "64m"), ("newinstance", ""), ("mode", "0620")]);
        assert_eq!(Options::parse(&["tmpcopyup"]).unwrap_err(), "tmpcopyup");
    }
}
