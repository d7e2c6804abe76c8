//! SELinux: the label of a container's processes and that of its files.
//!
//! Type and role come from the policy's file for containers (`contexts/lxc_contexts`), as with the peers. What keeps pods
//! apart is the level: each pod has two categories of its own (multi-category security), which all its containers share.
//! The kernel does the rest; on one without SELinux none of this exists.

mod relabel;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use wharf_proto::cri::SeLinuxOption;

/// Where the policy's files are.
const ROOT: &str = "/etc/selinux";

/// Where files have their label.
const ATTRIBUTE: &std::ffi::CStr = c"security.selinux";

/// Takes labels, and refuses those that the policy in force does not have.
const CHECK: &str = "/sys/fs/selinux/context";

/// Directories that hold more than one pod's data, or none: relabelling them would break the node.
const NEVER: [&str; 27] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Why there is no label.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy's file for containers can't be used.
    #[error("SELinux is enforced here, but {path}: {what}", path = path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// What was asked for is no label.
    #[error("SELinux {field} {value:?}: {what}")]
    Invalid {
        /// Which part of the label.
        field: &'static str,
        /// As asked for.
        value: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The policy that is in force has no such user, role, type or level, or does not put them together.
    #[error("SELinux label {0:?} is not one of this node's policy")]
    Unknown(String),
    /// Every pair of categories is in use.
    #[error("no pair of the {0} SELinux categories is free: raise selinux_categories, or run fewer pods")]
    NoneFree(u32),
    /// A path that must keep its label.
    #[error("SELinux relabelling of {path} is not allowed: other than this pod's files are there", path = .0.display())]
    NotAllowed(PathBuf),
    /// A file's label can't be set.
    #[error("set the SELinux label of {path}: {source}", path = path.display())]
    Relabel {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether this kernel has SELinux, enforcing or not.
#[must_use]
pub fn is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// A label: who, in which role, of which type, and at which level.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Label {
    fn parse(text: &str) -> Option<Label> {
        // The level has colons of its own.
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let label = Label {
            user: parts.next()?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_else(|| "s0".to_owned()),
        };
        [&label.user, &label.role, &label.kind, &label.level]
            .iter()
            .all(|part| !part.is_empty())
            .then_some(label)
    }

    fn text(&self) -> String {
        format!("{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

/// The labels of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// For its processes.
    pub process: String,
    /// For its root filesystem and what else is mounted for it alone.
    pub files: String,
    /// It is not confined, so that files are as good with any label.
    pub unconfined: bool,
}

/// The node's labels, and the levels that its pods have.
#[derive(Debug)]
pub struct Selinux {
    process: Label,
    files: Label,
    /// Of what containers share and only read.
    shared: Label,
    /// [`CHECK`].
    check: PathBuf,
    categories: u32,
    /// By how many pods.
    taken: Mutex<BTreeMap<(u32, u32), usize>>,
}

impl Selinux {
    /// Reads the policy's file for containers. Blocks.
    ///
    /// # Errors
    /// When it is not there, says nothing of containers, or names types that the policy in force does not have (package
    /// container-selinux).
    pub fn open(categories: u32) -> Result<Selinux, Error> {
        Self::read(Path::new(ROOT), Path::new(CHECK), categories)
    }

    fn read(root: &Path, check: &Path, categories: u32) -> Result<Selinux, Error> {
        let config = fs::read_to_string(root.join("config")).unwrap_or_default();
        let policy = value(&config, "SELINUXTYPE").unwrap_or_else(|| "targeted".to_owned());
        let path = root.join(policy).join("contexts/lxc_contexts");
        let failed = |what: String| Error::Policy {
            path: path.clone(),
            what,
        };
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        let label = |key: &str| {
            let label = value(&text, key).and_then(|text| Label::parse(&text));
            label.ok_or_else(|| failed(format!("no label for \"{key}\"")))
        };
        let mut selinux = Selinux {
            process: label("process")?,
            files: label("file")?,
            shared: label("ro_file").or_else(|_| label("file"))?,
            check: check.to_owned(),
            categories,
            taken: Mutex::default(),
        };
        // Distributions name types here that come with another package.
        for label in [&selinux.process, &selinux.files] {
            selinux
                .known(&label.text())
                .map_err(|error| failed(error.to_string()))?;
        }
        if selinux.known(&selinux.shared.text()).is_err() {
            selinux.shared = selinux.files.clone();
        }
        Ok(selinux)
    }

    /// Gives `directory` and all below it, image layers, the label of what containers share and only read, unless it has that
    /// already; what is made there later inherits it. The kernel asks for it where a program is mapped anew, as dynamic
    /// linkers do, although the file system that the container sees has a label of its own. Blocks.
    ///
    /// # Errors
    /// When a label can't be set.
    pub fn label_layers(&self, directory: &Path) -> Result<(), Error> {
        let label = self.shared.text();
        if relabel::has(directory, ATTRIBUTE, &label) {
            return Ok(());
        }
        tracing::info!(directory = %directory.display(), label, "giving image layers their SELinux label");
        // The directory itself comes last and says that all was done.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            relabel::set_below(&entry.path(), ATTRIBUTE, &label)?;
        }
        relabel::set_below(directory, ATTRIBUTE, &label)
    }

    /// A level that no other pod has. The pod's id says where the search begins.
    ///
    /// # Errors
    /// When there is none.
    pub fn allocate(&self, pod: &str) -> Result<String, Error> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u64::from(self.categories);
        let all = count * count;
        let start = pod
            .bytes()
            .fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
            % all;
        for step in 0..all {
            let at = (start + step) % all;
            let pair = ((at / count) as u32, (at % count) as u32);
            if pair.0 < pair.1
                && let Entry::Vacant(free) = taken.entry(pair)
            {
                free.insert(1);
                return Ok(format!("s0:c{},c{}", pair.0, pair.1));
            }
        }
        Err(Error::NoneFree(self.categories))
    }

    /// Notes that a pod has this level, by its own wish or since an earlier run. Several may.
    pub fn reserve(&self, level: &str) {
        if let Some(pair) = pair(level) {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            *taken.entry(pair).or_default() += 1;
        }
    }

    /// Gives a level back, once for each pod that had it.
    pub fn release(&self, level: &str) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = pair(level)
            && let Entry::Occupied(mut pods) = taken.entry(pair)
        {
            *pods.get_mut() -= 1;
            if *pods.get() == 0 {
                pods.remove();
            }
        }
    }

    /// The labels of a container whose pod has `level`; what it asks for itself goes first.
    ///
    /// # Errors
    /// When it asks for what can't be part of a label, or for a label that the policy does not have.
    pub fn labels(&self, level: &str, asked: Option<&SeLinuxOption>) -> Result<Labels, Error> {
        let (mut process, mut files) = (self.process.clone(), self.files.clone());
        level.clone_into(&mut process.level);
        if let Some(asked) = asked {
            for (field, value, part) in [
                ("user", &asked.user, &mut process.user),
                ("role", &asked.role, &mut process.role),
                ("type", &asked.r#type, &mut process.kind),
            ] {
                if !value.is_empty() {
                    check_word(field, value)?;
                    value.clone_into(part);
                }
            }
            if !asked.level.is_empty() {
                check_level(&asked.level)?;
                asked.level.clone_into(&mut process.level);
            }
        }
        // Who may read a file is a matter of user and level; its type stays that of containers' files.
        files.user.clone_from(&process.user);
        files.level.clone_from(&process.level);
        let labels = Labels {
            unconfined: process.kind == "spc_t",
            process: process.text(),
            files: files.text(),
        };
        self.known(&labels.process)?;
        self.known(&labels.files)?;
        Ok(labels)
    }

    /// Asks the kernel, whose file is in memory, whether its policy has this label (security_check_context(3)).
    fn known(&self, label: &str) -> Result<(), Error> {
        match fs::OpenOptions::new().write(true).open(&self.check) {
            Ok(mut file) => io::Write::write_all(&mut file, label.as_bytes()).or_else(|error| match error.kind() {
                io::ErrorKind::InvalidInput => Err(Error::Unknown(label.to_owned())),
                // Whoever may not ask hears it when the label is set.
                _ => Ok(()),
            }),
            Err(_) => Ok(()),
        }
    }
}

/// `key = "value"` in one of the policy's files.
fn value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim() == key && !value.is_empty()).then(|| value.to_owned())
    })
}

fn check_word(field: &'static str, value: &str) -> Result<(), Error> {
    match value.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
        true => Ok(()),
        false => Err(Error::Invalid {
            field,
            value: value.to_owned(),
            what: "only letters, digits, \"_\", \".\" and \"-\" can be part of a label",
        }),
    }
}

/// A level, `s0:c1,c5.c9`, or a range of sensitivities, `s0-s15:c0.c1023`.
///
/// # Errors
/// When it is none.
pub fn check_level(level: &str) -> Result<(), Error> {
    let number = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter)?;
        let plain = !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u32>().ok()).flatten()
    };
    let sensitivity = |text: &str| number(text, 's').is_some_and(|n| n <= 15);
    let category = |text: &str| number(text, 'c').filter(|n| *n <= 1023);
    let categories = |text: &str| {
        text.split(',').all(|part| match part.split_once('.') {
            None => category(part).is_some(),
            Some((first, last)) => {
                matches!((category(first), category(last)), (Some(first), Some(last)) if first < last)
            }
        })
    };
    let (range, list) = match level.split_once(':') {
        Some((range, list)) => (range, Some(list)),
        None => (level, None),
    };
    if range.splitn(2, '-').all(sensitivity) && list.is_none_or(categories) {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "level",
        value: level.to_owned(),
        what: "not a level such as \"s0:c1,c2\"",
    })
}

/// The two categories of a level as [`Selinux::allocate`] makes them.
fn pair(level: &str) -> Option<(u32, u32)> {
    let (first, second) = level.strip_prefix("s0:c")?.split_once(",c")?;
    Some((first.parse().ok()?, second.parse().ok()?))
}

/// Gives `path` and all below it, on the same filesystem or not, the label. Symbolic links are relabelled, not followed.
/// Filesystems without labels are left as they are. Blocks.
///
/// # Errors
/// When it is a directory of the node's, or a label can't be set.
pub fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    if NEVER.iter().any(|never| path == Path::new(never)) {
        return Err(Error::NotAllowed(path.to_owned()));
    }
    relabel::set_below(path, ATTRIBUTE, label)
}

#[cfg(test)]
mod tests;
