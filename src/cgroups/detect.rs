//! Finding the cgroup hierarchies that are mounted.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Error, Result, fsutil};

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct V1Mount {
    /// Controllers bound to it, or one `name=...`.
    pub controllers: Vec<String>,
    pub root: PathBuf,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Layout {
    V1 {
        mounts: Vec<V1Mount>,
        /// The cgroup2 mount of a hybrid machine. Other runtimes make their cgroups there too.
        unified: Option<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

/// The cgroup hierarchies of this machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Hierarchies(pub(super) Arc<Layout>);

/// Reads the mount table of this process, as far as it must: mounts of pods, of which there may be thousands, come last, and
/// each start of a container and each exec asks for this.
///
/// # Errors
/// [`Error::NoHierarchy`] if nothing is mounted, [`Error::Io`] if the mount table cannot be read.
pub fn detect() -> Result<Hierarchies> {
    let path = Path::new("/proc/self/mountinfo");
    let failed = |e| Error::io("read", path, e);
    let all = fsutil::read_raw(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mut file = File::open(path).map_err(failed)?;
    let (mut table, mut piece, mut whole) = (Vec::new(), vec![0; PIECE], 0);
    loop {
        let count = file.read(&mut piece).map_err(failed)?;
        table.extend_from_slice(&piece[..count]);
        let end = match count {
            0 => table.len(),
            _ => table.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1),
        };
        let news = String::from_utf8_lossy(&table[whole..end]).contains(" - cgroup");
        if news || count == 0 {
            let layout = parse(&String::from_utf8_lossy(&table[..end]));
            match layout {
                Some(layout) if count == 0 || has_all(&layout, &all) => return Ok(Hierarchies(Arc::new(layout))),
                None if count == 0 => return Err(Error::NoHierarchy),
                _ => {}
            }
        }
        whole = end;
    }
}

/// What is read of the mount table at once, bytes.
const PIECE: usize = 16 << 10;

/// Whether every hierarchy of the kernel is in `layout`. `all` is this process's /proc/PID/cgroup, which names them all, see
/// cgroups(7): `8:cpu,cpuacct:/path`, and `0::/path` for version 2. One that is mounted nowhere is never found.
fn has_all(layout: &Layout, all: &str) -> bool {
    !all.is_empty()
        && all.lines().all(|line| {
            let first = line.split(':').nth(1).and_then(|names| names.split(',').next());
            match (layout, first.unwrap_or_default()) {
                (Layout::V2 { .. }, name) => name.is_empty(),
                (Layout::V1 { unified, .. }, "") => unified.is_some(),
                (Layout::V1 { mounts, .. }, name) => mounts.iter().any(|m| m.controllers.iter().any(|c| c == name)),
            }
        })
}

impl Hierarchies {
    /// True if the controllers are on cgroup v2.
    pub fn is_v2(&self) -> bool {
        matches!(*self.0, Layout::V2 { .. })
    }

    /// Controllers and named hierarchies that a cgroup here takes part in.
    pub fn controllers(&self) -> Vec<String> {
        let v2 = |root: &Path| -> Vec<String> {
            let text = fsutil::read_raw(&root.join("cgroup.controllers")).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        };
        match &*self.0 {
            Layout::V2 { root } => v2(root),
            Layout::V1 { mounts, unified } => {
                let own = mounts.iter().flat_map(|m| m.controllers.iter().cloned());
                own.chain(unified.iter().flat_map(|root| v2(root))).collect()
            }
        }
    }

    /// True if `name` is among the controllers of the hierarchies in charge; the v2 side of a hybrid machine does not
    /// count.
    pub fn has_controller(&self, name: &str) -> bool {
        match &*self.0 {
            Layout::V1 { .. } => self.v1_root(name).is_some(),
            Layout::V2 { .. } => self.controllers().iter().any(|c| c == name),
        }
    }

    /// True if huge pages can be limited on the v2 side of a hybrid machine, and not on its v1 side.
    pub fn has_hugetlb_beside(&self) -> bool {
        matches!(*self.0, Layout::V1 { .. })
            && !self.has_controller("hugetlb")
            && self.controllers().iter().any(|c| c == "hugetlb")
    }

    /// True if memory and swap together can be limited. On v2 asks for a `memory.swap.max` somewhere below the root,
    /// because the root itself has no such file.
    pub fn has_swap_limit(&self) -> bool {
        match &*self.0 {
            Layout::V1 { .. } => self
                .v1_root("memory")
                .is_some_and(|root| root.join("memory.memsw.limit_in_bytes").exists()),
            Layout::V2 { root } => fsutil::children(root)
                .iter()
                .any(|dir| dir.join("memory.swap.max").exists()),
        }
    }

    /// Huge page sizes that can be limited, as the cgroup files spell them ("2MB").
    pub fn hugepage_sizes(&self) -> Vec<String> {
        if !self.controllers().iter().any(|c| c == "hugetlb") {
            return Vec::new();
        }
        let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
            return Vec::new();
        };
        let mut kb: Vec<u64> = entries
            .filter_map(|e| {
                e.ok()?
                    .file_name()
                    .to_str()?
                    .strip_prefix("hugepages-")?
                    .strip_suffix("kB")?
                    .parse()
                    .ok()
            })
            .collect();
        kb.sort_unstable();
        kb.into_iter().map(page_size_name).collect()
    }

    pub(super) fn v1_root(&self, controller: &str) -> Option<&Path> {
        let Layout::V1 { mounts, .. } = &*self.0 else {
            return None;
        };
        mounts
            .iter()
            .find(|m| m.controllers.iter().any(|c| c == controller))
            .map(|m| m.root.as_path())
    }
}

/// Kilobytes in the unit that the kernel uses in hugetlb file names.
fn page_size_name(kb: u64) -> String {
    match kb {
        kb if kb >= 1 << 20 => format!("{}GB", kb >> 20),
        kb if kb >= 1 << 10 => format!("{}MB", kb >> 10),
        kb => format!("{kb}KB"),
    }
}

/// None if no cgroup file system is mounted. The first mount of a hierarchy wins.
fn parse(mountinfo: &str) -> Option<Layout> {
    let mut mounts: Vec<V1Mount> = Vec::new();
    let mut unified = None;
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mountpoint) = left.split(' ').nth(4) else {
            continue;
        };
        let root = PathBuf::from(unescape(mountpoint));
        let mut right = right.split(' ');
        match right.next() {
            Some("cgroup2") if unified.is_none() => unified = Some(root),
            Some("cgroup") => {
                let controllers = v1_controllers(right.nth(1).unwrap_or_default());
                let known = |c: &String| mounts.iter().any(|m| m.controllers.contains(c));
                if !controllers.is_empty() && !controllers.iter().any(known) {
                    mounts.push(V1Mount { controllers, root });
                }
            }
            _ => {}
        }
    }
    // A named hierarchy alone has no limits to set: systemd's own on an otherwise unified machine.
    let v1_has_controllers = mounts
        .iter()
        .any(|m| m.controllers.iter().any(|c| !c.starts_with("name=")));
    match (v1_has_controllers, unified) {
        (true, unified) => Some(Layout::V1 { mounts, unified }),
        (false, Some(root)) => Some(Layout::V2 { root }),
        (false, None) => None,
    }
}

/// The controllers among a v1 super block's options.
fn v1_controllers(options: &str) -> Vec<String> {
    const OTHER: [&str; 8] = [
        "rw",
        "ro",
        "xattr",
        "noprefix",
        "clone_children",
        "cpuset_v2_mode",
        "favordynmods",
        "nofavordynmods",
    ];
    let wanted = |o: &&str| !o.is_empty() && !OTHER.contains(o) && !o.starts_with("release_agent=");
    options.split(',').filter(wanted).map(str::to_owned).collect()
}

/// Undoes the octal escapes of mountinfo (space, tab, line break, backslash).
fn unescape(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest
            .get(at + 1..at + 4)
            .and_then(|code| u8::from_str_radix(code, 8).ok())
        {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            _ => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_machines_are_v1_with_the_unified_mount_beside() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            33 31 0:31 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n\
            34 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            35 31 0:29 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let Some(Layout::V1 { mounts, unified }) = parse(table) else {
            panic!("not taken for v1")
        };
        let got: Vec<_> = mounts
            .iter()
            .map(|m| (m.controllers.join(","), m.root.to_string_lossy().into_owned()))
            .collect();
        let want = [
            ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
            ("memory", "/sys/fs/cgroup/my memory"),
            ("name=systemd", "/sys/fs/cgroup/systemd"),
        ];
        assert_eq!(got, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(unified, Some(PathBuf::from("/sys/fs/cgroup/unified")));
    }

    #[test]
    fn the_mount_table_need_not_be_read_further_when_all_is_found() {
        let cpu = "32 31 0:29 / /sys/fs/cgroup/cpu rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n";
        let both = format!("{cpu}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let has = |table: &str, all: &str| has_all(&parse(table).unwrap(), all);
        assert!(has(&both, "2:cpu,cpuacct:/a\n0::/b\n"));
        assert!(!has(cpu, "2:cpu,cpuacct:/a\n0::/b\n"));
        assert!(!has(&both, "3:memory:/\n2:cpu,cpuacct:/a\n0::/b\n"));
        assert!(!has(&both, ""));
        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert!(has(v2, "0::/system.slice/wharf.service\n"));
        assert!(!has(v2, "2:cpu,cpuacct:/a\n0::/b\n"));
    }

    #[test]
    fn a_unified_mount_alone_is_v2() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            parse(table),
            Some(Layout::V2 {
                root: "/sys/fs/cgroup".into()
            })
        );
        assert_eq!(parse("1 2 3:4 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn page_sizes_are_spelt_as_the_kernel_does() {
        assert_eq!([64, 2048, 1 << 20].map(page_size_name), ["64KB", "2MB", "1GB"]);
    }
}
