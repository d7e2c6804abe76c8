//! A layer's table of contents as an inode table, and where in the blob the content of its files is.
//!
//! The table is as trustworthy as the manifest, which has its digest, and as hostile: what it says must make a file system
//! like the one that unpacking makes. What would need more than a look (an entry below a symlink, a name that comes twice) is an
//! error, upon which the layer is pulled whole.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use serde::Deserialize;

use crate::images::unpack::{Meaning, components, meaning};

/// Entries of one layer.
const MAX_ENTRIES: usize = 2_000_000;
/// Bytes of a chunk, and of what stands before it in its gzip member.
const MAX_CHUNK: u64 = 64 << 20;
/// Bytes of the blob that are fetched together, if no chunk is larger, and at most.
const GROUP: u64 = 1 << 20;
const MAX_GROUP: u64 = 128 << 20;
/// What comes before this file is wanted soon.
const LANDMARK: &str = ".prefetch.landmark";
/// Longest symlink, as the kernel's PATH_MAX.
const MAX_LINK: usize = 4095;

/// The files of a layer. Their numbers are places in `nodes`, and the same each time the table is read.
#[derive(Debug, Default)]
pub(in crate::images) struct Table {
    /// The first is the layer's root.
    pub nodes: Vec<Node>,
    pub chunks: Vec<Chunk>,
    /// What is fetched together, in the order of the blob.
    pub groups: Vec<Group>,
    /// Bytes of all chunks.
    pub length: u64,
    /// The first groups, which the maker of the image says are wanted at the start.
    pub first: usize,
}

/// A file, directory or whatever.
#[derive(Debug)]
pub(in crate::images) struct Node {
    pub kind: Kind,
    /// Permissions and set-id bits.
    pub mode: u32,
    pub owner: (u32, u32),
    /// Seconds and nanoseconds since 1970.
    pub time: (i64, u32),
    pub links: u32,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it is, of several names one; for the path.
    pub parent: u32,
    pub name: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::images) enum Kind {
    Directory {
        names: BTreeMap<Vec<u8>, u32>,
        /// Hides what lower layers have under its name.
        opaque: bool,
    },
    /// Its chunks follow each other.
    File {
        size: u64,
        chunks: std::ops::Range<u32>,
    },
    Symlink(Vec<u8>),
    /// Of characters or else of blocks; major, minor.
    Device {
        characters: bool,
        number: (u32, u32),
    },
    Fifo,
    /// Hides what lower layers have under its name.
    Whiteout,
}

/// A piece of a file's content.
#[derive(Debug)]
pub(in crate::images) struct Chunk {
    /// Where its compressed member begins in the blob.
    pub offset: u64,
    /// Where it begins in the member's content.
    pub inner: u64,
    pub size: u64,
    /// SHA-256.
    pub digest: [u8; 32],
    /// Place in the content of all chunks, one behind the other.
    pub at: u64,
    /// [`ZEROS`] without.
    pub group: u32,
}

/// Chunks that are fetched together.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::images) struct Group {
    /// Bytes of the blob: from, and behind the last.
    pub from: u64,
    pub end: u64,
    /// In the order of the blob.
    pub chunks: Vec<u32>,
}

#[derive(Deserialize)]
struct File {
    version: u32,
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    modtime: String,
    #[serde(default, rename = "linkName")]
    link: String,
    #[serde(default)]
    mode: i64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default, rename = "devMajor")]
    major: u32,
    #[serde(default, rename = "devMinor")]
    minor: u32,
    #[serde(default)]
    xattrs: HashMap<String, String>,
    #[serde(default)]
    offset: u64,
    #[serde(default, rename = "innerOffset")]
    inner: u64,
    #[serde(default, rename = "chunkOffset")]
    chunk_offset: u64,
    #[serde(default, rename = "chunkSize")]
    chunk_size: u64,
    #[serde(default, rename = "chunkDigest")]
    chunk_digest: String,
    /// Of the whole file.
    #[serde(default)]
    digest: String,
    /// Empty: data.
    #[serde(default, rename = "chunkType")]
    chunk_type: String,
}

/// In place of a chunk's group: there is nothing to fetch, it is all zeroes.
pub(super) const ZEROS: u32 = u32::MAX;

impl Table {
    /// Reads a table whose blob has content up to `end`.
    ///
    /// # Errors
    /// What is wrong with it, or more than is done here.
    pub fn parse(json: &[u8], end: u64) -> Result<Self, String> {
        let file: File =
            serde_json::from_slice(json).map_err(|error| format!("its table of contents can't be read: {error}"))?;
        if file.version != 1 {
            return Err(format!("its table of contents has version {}", file.version));
        }
        if file.entries.len() > MAX_ENTRIES {
            return Err(format!("its table of contents has {} entries", file.entries.len()));
        }
        let mut table = Self::default();
        table.nodes.push(Node::implied(0, Vec::new()));
        let mut landmark = 0;
        let mut open: Option<Open> = None;
        for entry in file.entries {
            let wrong = |reason: &str| format!("entry {:?} of its table of contents {reason}", entry.name);
            if entry.kind == "chunk" {
                let file = open.as_mut().filter(|file| file.name == entry.name);
                let file = file.ok_or_else(|| wrong("is a piece of no file"))?;
                table.chunk(file, &entry, end).map_err(wrong)?;
                continue;
            }
            table.close(open.take())?;
            if entry.name == LANDMARK {
                landmark = entry.offset;
            }
            open = table.entry(&entry, end).map_err(|reason| wrong(&reason))?;
        }
        table.close(open)?;
        table.group(end)?;
        table.first = table.groups.partition_point(|group| group.from < landmark);
        Ok(table)
    }

    fn entry(&mut self, entry: &Entry, end: u64) -> Result<Option<Open>, String> {
        let parts = components(entry.name.as_bytes()).map_err(|error| error.to_string())?;
        let parents = &parts[..parts.len().saturating_sub(1)];
        let name = match meaning(&parts).map_err(|error| error.to_string())? {
            Meaning::Ignored => return Ok(None),
            Meaning::Root => {
                if entry.kind != "dir" {
                    return Err("is the root and no directory".into());
                }
                self.nodes[0].describe(entry)?;
                return Ok(None);
            }
            Meaning::Opaque => {
                let parent = self.directory(parents)?;
                if let Kind::Directory { opaque, .. } = &mut self.nodes[parent as usize].kind {
                    *opaque = true;
                }
                return Ok(None);
            }
            Meaning::Whiteout(hidden) => {
                let parent = self.directory(parents)?;
                self.whiteout(parent, hidden);
                return Ok(None);
            }
            Meaning::Plain(name) => name,
        };
        let parent = self.directory(parents)?;
        let mut node = Node::implied(parent, name.to_vec());
        let mut open = None;
        node.kind = match entry.kind.as_str() {
            "dir" => Kind::Directory {
                names: BTreeMap::new(),
                opaque: false,
            },
            "reg" => {
                let first = u32::try_from(self.chunks.len()).map_err(|_| "is one file too many")?;
                open = Some(Open {
                    name: entry.name.clone(),
                    left: entry.size,
                });
                Kind::File {
                    size: entry.size,
                    chunks: first..first,
                }
            }
            "symlink" => {
                if entry.link.is_empty() || entry.link.len() > MAX_LINK || entry.link.contains('\0') {
                    return Err("leads to something that is no path".into());
                }
                Kind::Symlink(entry.link.clone().into_bytes())
            }
            "hardlink" => {
                self.hard_link(parent, name, &entry.link)?;
                return Ok(None);
            }
            "char" | "block" => Kind::Device {
                characters: entry.kind == "char",
                number: (entry.major, entry.minor),
            },
            "fifo" => Kind::Fifo,
            other => return Err(format!("is of the unknown type {other:?}")),
        };
        node.describe(entry)?;
        self.insert(parent, name, node)?;
        if let Some(file) = &mut open
            && file.left > 0
        {
            self.chunk(file, entry, end)?;
        }
        Ok(open)
    }

    /// Adds the next piece of the file that was entered last.
    fn chunk(&mut self, file: &mut Open, entry: &Entry, end: u64) -> Result<(), &'static str> {
        let Some(Node {
            kind: Kind::File { size, chunks },
            ..
        }) = self.nodes.last_mut()
        else {
            return Err("is a piece of no file");
        };
        if entry.chunk_offset != *size - file.left {
            return Err("does not follow the piece before it");
        }
        // Zero is all that is left.
        let length = if entry.chunk_size == 0 {
            file.left
        } else {
            entry.chunk_size
        };
        if length == 0 || length > file.left {
            return Err("is longer than its file");
        }
        let zeros = match entry.chunk_type.as_str() {
            "" => false,
            "zeros" => true,
            _ => return Err("has pieces of an unknown type"),
        };
        let mut sum = [0; 32];
        if !zeros {
            if length > MAX_CHUNK || entry.inner > MAX_CHUNK {
                return Err("is too large to be fetched on demand");
            }
            if entry.offset >= end {
                return Err("lies behind the end of the content");
            }
            // Of a file in one piece zstd:chunked says it once.
            let digest = match entry.chunk_digest.as_str() {
                "" if length == *size => &entry.digest,
                digest => digest,
            };
            let digest = digest.strip_prefix("sha256:").unwrap_or_default();
            hex::decode_to_slice(digest, &mut sum).map_err(|_| "has no digest")?;
        }
        file.left -= length;
        chunks.end += 1;
        self.chunks.push(Chunk {
            offset: entry.offset,
            inner: entry.inner,
            size: length,
            digest: sum,
            at: self.length,
            group: if zeros { ZEROS } else { 0 },
        });
        self.length = self.length.checked_add(length).ok_or("is too large")?;
        Ok(())
    }

    fn close(&self, file: Option<Open>) -> Result<(), String> {
        match file {
            Some(file) if file.left > 0 => Err(format!(
                "file {:?} of its table of contents lacks {} bytes",
                file.name, file.left
            )),
            _ => Ok(()),
        }
    }

    /// The directory at `parts`, made if it was not entered.
    fn directory(&mut self, parts: &[&[u8]]) -> Result<u32, String> {
        let mut at = 0;
        for part in parts {
            let known = self.nodes[at as usize].child(part);
            at = match known.map(|known| (known, &self.nodes[known as usize].kind)) {
                Some((known, Kind::Directory { .. })) => known,
                Some((_, kind)) if *kind != Kind::Whiteout => {
                    return Err("lies in something that is no directory".into());
                }
                _ => {
                    let node = Node::implied(at, part.to_vec());
                    self.insert(at, part, node)?
                }
            };
        }
        Ok(at)
    }

    fn insert(&mut self, parent: u32, name: &[u8], mut node: Node) -> Result<u32, String> {
        let known = self.nodes[parent as usize].child(name);
        if let Some(known) = known {
            let there = &mut self.nodes[known as usize];
            match (&mut there.kind, &mut node.kind) {
                (
                    Kind::Directory { names, opaque },
                    Kind::Directory {
                        names: new,
                        opaque: hides,
                    },
                ) => {
                    (*new, *hides) = (std::mem::take(names), *opaque);
                    *there = node;
                    return Ok(known);
                }
                // What a layer deletes and has is only its own.
                (Kind::Whiteout, kind) => {
                    if let Kind::Directory { opaque, .. } = kind {
                        *opaque = true;
                    }
                }
                _ => return Err("comes twice".into()),
            }
        }
        let number = u32::try_from(self.nodes.len()).map_err(|_| "is one too many")?;
        self.nodes.push(node);
        self.name(parent, name, number);
        Ok(number)
    }

    fn name(&mut self, parent: u32, name: &[u8], number: u32) {
        if let Kind::Directory { names, .. } = &mut self.nodes[parent as usize].kind {
            names.insert(name.to_vec(), number);
        }
    }

    fn hard_link(&mut self, parent: u32, name: &[u8], link: &str) -> Result<(), String> {
        let parts = components(link.as_bytes()).map_err(|error| error.to_string())?;
        let mut at = 0;
        for part in &parts {
            at = self.nodes[at as usize]
                .child(part)
                .ok_or("is a link to what is not in this layer")?;
        }
        if matches!(self.nodes[at as usize].kind, Kind::Directory { .. } | Kind::Whiteout) {
            return Err("is a link to a directory".into());
        }
        match self.nodes[parent as usize].child(name) {
            Some(known) if known == at => return Ok(()),
            Some(known) if self.nodes[known as usize].kind != Kind::Whiteout => return Err("comes twice".into()),
            _ => {}
        }
        self.nodes[at as usize].links += 1;
        self.name(parent, name, at);
        Ok(())
    }

    fn whiteout(&mut self, parent: u32, hidden: &[u8]) {
        if let Some(known) = self.nodes[parent as usize].child(hidden) {
            if let Kind::Directory { opaque, .. } = &mut self.nodes[known as usize].kind {
                *opaque = true;
            }
            return;
        }
        let mut node = Node::implied(parent, hidden.to_vec());
        (node.kind, node.mode) = (Kind::Whiteout, 0);
        // There is room: a name is never there twice.
        let _ = self.insert(parent, hidden, node);
    }

    /// Puts chunks together that lie beside each other.
    fn group(&mut self, end: u64) -> Result<(), String> {
        let all = 0..u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let mut order: Vec<u32> = all.filter(|at| self.chunks[*at as usize].group != ZEROS).collect();
        order.sort_by_key(|at| {
            let chunk = &self.chunks[*at as usize];
            (chunk.offset, chunk.inner)
        });
        for at in order {
            let offset = self.chunks[at as usize].offset;
            let full = match self.groups.last_mut() {
                // The members of one group are read to their ends.
                Some(group) if offset < group.from + GROUP || offset < group.end => {
                    group.end = group.end.max(offset + 1);
                    group.chunks.push(at);
                    false
                }
                Some(group) => {
                    group.end = offset;
                    true
                }
                None => true,
            };
            if full {
                self.groups.push(Group {
                    from: offset,
                    end: offset + 1,
                    chunks: vec![at],
                });
            }
            self.chunks[at as usize].group = u32::try_from(self.groups.len() - 1).unwrap_or(u32::MAX);
        }
        if let Some(last) = self.groups.last_mut() {
            last.end = end;
        }
        match self.groups.iter().find(|group| group.end - group.from > MAX_GROUP) {
            Some(group) => Err(format!("its content at {} is too far from the next", group.from)),
            None => Ok(()),
        }
    }

    /// The path of a node below the layer's root, without a leading slash.
    pub fn path(&self, mut node: u32) -> Vec<u8> {
        let mut parts = Vec::new();
        while node != 0 {
            let this = &self.nodes[node as usize];
            parts.push(this.name.as_slice());
            node = this.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// Whether `node` has content.
    pub fn is_file(&self, node: u32) -> bool {
        self.nodes
            .get(node as usize)
            .is_some_and(|node| matches!(node.kind, Kind::File { .. }))
    }

    /// The node at `path`, if it is here; follows no symlink.
    pub fn find(&self, path: &str) -> Option<u32> {
        let mut at = 0;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            at = self.nodes[at as usize].child(part.as_bytes())?;
        }
        Some(at)
    }
}

/// A file whose pieces are being read.
struct Open {
    name: String,
    /// Bytes that are missing.
    left: u64,
}

impl Node {
    /// A directory that nothing was said about.
    pub(super) fn implied(parent: u32, name: Vec<u8>) -> Self {
        Self {
            kind: Kind::Directory {
                names: BTreeMap::new(),
                opaque: false,
            },
            mode: 0o755,
            owner: (0, 0),
            time: (0, 0),
            links: 1,
            xattrs: Vec::new(),
            parent,
            name,
        }
    }

    /// What is called `name` in this directory.
    pub fn child(&self, name: &[u8]) -> Option<u32> {
        match &self.kind {
            Kind::Directory { names, .. } => names.get(name).copied(),
            _ => None,
        }
    }

    fn describe(&mut self, entry: &Entry) -> Result<(), String> {
        // The upper bits are the type, which is said beside it.
        self.mode = u32::try_from(entry.mode & 0o7777).map_err(|_| "has no mode")?;
        self.owner = (entry.uid, entry.gid);
        self.time = (0, 0);
        if !entry.modtime.is_empty() {
            let time: jiff::Timestamp = entry.modtime.parse().map_err(|_| "has no time that can be read")?;
            let nanoseconds = time.as_nanosecond();
            let seconds = nanoseconds.div_euclid(1_000_000_000);
            let rest = nanoseconds.rem_euclid(1_000_000_000);
            self.time = (
                i64::try_from(seconds).unwrap_or_default(),
                u32::try_from(rest).unwrap_or_default(),
            );
        }
        self.xattrs = Vec::with_capacity(entry.xattrs.len());
        for (name, value) in &entry.xattrs {
            // With these overlayfs would be steered; the unpacker leaves them out too.
            if name.starts_with("trusted.overlay.") || name.starts_with("user.overlay.") {
                continue;
            }
            let value = base64::engine::general_purpose::STANDARD.decode(value);
            let value = value.map_err(|_| "has an extended attribute that is not base64")?;
            if name.is_empty() || name.len() > 255 || name.contains('\0') || value.len() > 65_536 {
                return Err("has an extended attribute that no file can have".into());
            }
            self.xattrs.push((name.clone().into_bytes(), value));
        }
        self.xattrs.sort();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
