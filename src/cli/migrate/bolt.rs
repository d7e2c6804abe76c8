//! Reads a bbolt database, in which containerd keeps what it knows, without opening it: its daemon may hold the lock.
//!
//! bbolt never writes over what its newest transaction reaches before the next one is complete. So a copy is whole if no
//! transaction has become complete while it was made.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;
/// Of a page and of an element in it.
const HEADER: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// Flag of an element that is a bucket.
const IS_BUCKET: u32 = 1;
/// Pages one below another.
const MAX_DEPTH: usize = 32;
/// Copies that are made before giving up.
const ATTEMPTS: usize = 20;

/// A copy of a database.
pub struct Db {
    bytes: Vec<u8>,
    page_size: usize,
    root: u64,
}

/// Where a database's newest transaction stands.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Meta {
    page_size: usize,
    root: u64,
    transaction: u64,
}

/// Keys with values and further buckets.
#[derive(Clone, Copy)]
pub struct Bucket<'a> {
    db: &'a Db,
    node: Node<'a>,
}

#[derive(Clone, Copy)]
enum Node<'a> {
    Page(u64),
    /// A small bucket lies in its parent's page.
    Inline(&'a [u8]),
}

/// What a key leads to.
pub enum Item<'a> {
    Bucket(Bucket<'a>),
    Value(&'a [u8]),
}

impl Db {
    /// Copies the database at `path`. Blocking.
    ///
    /// # Errors
    /// When it can't be read, is none, or is written to all the time.
    pub fn copy(path: &Path) -> io::Result<Self> {
        for _ in 0..ATTEMPTS {
            let bytes = fs::read(path)?;
            let meta = newest(&bytes).ok_or_else(|| damaged("it is no bbolt database"))?;
            let mut head = Vec::new();
            fs::File::open(path)?
                .take(2 * meta.page_size as u64)
                .read_to_end(&mut head)?;
            if newest(&head) == Some(meta) {
                return Ok(Self {
                    bytes,
                    page_size: meta.page_size,
                    root: meta.root,
                });
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is written to all the time; stop containerd first",
        ))
    }

    /// The bucket at `path`, from the outermost inwards; `None` if it is absent.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn bucket(&self, path: &[&str]) -> io::Result<Option<Bucket<'_>>> {
        let mut bucket = Bucket {
            db: self,
            node: Node::Page(self.root),
        };
        for name in path {
            match bucket.get(name)? {
                Some(Item::Bucket(inner)) => bucket = inner,
                _ => return Ok(None),
            }
        }
        Ok(Some(bucket))
    }

    /// A page with those behind it that belong to it.
    fn page(&self, number: u64) -> io::Result<&[u8]> {
        let outside = || damaged("a page is outside of the database");
        let at = usize::try_from(number)
            .ok()
            .and_then(|number| number.checked_mul(self.page_size));
        let at = at.ok_or_else(outside)?;
        let rest = self
            .bytes
            .get(at..)
            .filter(|rest| rest.len() >= self.page_size)
            .ok_or_else(outside)?;
        let more = u32_at(rest, 12).ok_or_else(outside)? as usize;
        let length = more.checked_add(1).and_then(|pages| pages.checked_mul(self.page_size));
        rest.get(..length.ok_or_else(outside)?).ok_or_else(outside)
    }
}

impl<'a> Bucket<'a> {
    /// All that is in it, in the order of the keys.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn entries(&self) -> io::Result<Vec<(&'a [u8], Item<'a>)>> {
        let mut found = Vec::new();
        let page = match self.node {
            Node::Page(number) => self.db.page(number)?,
            Node::Inline(page) => page,
        };
        // No tree has more pages than the file.
        let mut left = self.db.bytes.len() / self.db.page_size + 1;
        self.collect(page, MAX_DEPTH, &mut left, &mut found)?;
        Ok(found)
    }

    /// What `key` leads to.
    ///
    /// # Errors
    /// As [`Bucket::entries`].
    pub fn get(&self, key: &str) -> io::Result<Option<Item<'a>>> {
        let entries = self.entries()?;
        Ok(entries
            .into_iter()
            .find(|(name, _)| *name == key.as_bytes())
            .map(|(_, item)| item))
    }

    /// The value of `key`, as text.
    ///
    /// # Errors
    /// As [`Bucket::entries`].
    pub fn text(&self, key: &str) -> io::Result<Option<String>> {
        Ok(match self.get(key)? {
            Some(Item::Value(value)) => String::from_utf8(value.to_vec()).ok(),
            _ => None,
        })
    }

    fn collect(
        &self,
        page: &'a [u8],
        depth: usize,
        left: &mut usize,
        found: &mut Vec<(&'a [u8], Item<'a>)>,
    ) -> io::Result<()> {
        let broken = || damaged("a page is malformed");
        *left = left
            .checked_sub(1)
            .ok_or_else(|| damaged("its pages are in a circle"))?;
        let flags = u16_at(page, 8).ok_or_else(broken)?;
        let count = usize::from(u16_at(page, 10).ok_or_else(broken)?);
        for number in 0..count {
            let at = HEADER + number * HEADER;
            match flags {
                BRANCH => {
                    let below = u64_at(page, at + 8).ok_or_else(broken)?;
                    let depth = depth
                        .checked_sub(1)
                        .ok_or_else(|| damaged("its pages are nested too deep"))?;
                    self.collect(self.db.page(below)?, depth, left, found)?;
                }
                LEAF => {
                    let field = |offset| u32_at(page, at + offset).map(|value| value as usize);
                    let is_bucket = u32_at(page, at).ok_or_else(broken)? & IS_BUCKET != 0;
                    let (position, key, value) = (
                        field(4).ok_or_else(broken)?,
                        field(8).ok_or_else(broken)?,
                        field(12).ok_or_else(broken)?,
                    );
                    let rest = page.get(at + position..).ok_or_else(broken)?;
                    let (key, rest) = rest.split_at_checked(key).ok_or_else(broken)?;
                    let value = rest.get(..value).ok_or_else(broken)?;
                    let item = match is_bucket {
                        true => Item::Bucket(self.inner(value).ok_or_else(broken)?),
                        false => Item::Value(value),
                    };
                    found.push((key, item));
                }
                _ => return Err(broken()),
            }
        }
        Ok(())
    }

    fn inner(&self, value: &'a [u8]) -> Option<Bucket<'a>> {
        let node = match u64_at(value, 0)? {
            0 => Node::Inline(value.get(HEADER..)?),
            page => Node::Page(page),
        };
        Some(Bucket { db: self.db, node })
    }
}

/// The newer of the two pages that say where a transaction stands.
fn newest(bytes: &[u8]) -> Option<Meta> {
    let first = meta(bytes);
    // Where the second lies follows from the first; if that is damaged, from what pages are mostly like.
    let page_size = first.map_or(4096, |meta| meta.page_size);
    let second = bytes.get(page_size..).and_then(meta);
    [first, second]
        .into_iter()
        .flatten()
        .max_by_key(|meta| meta.transaction)
}

fn meta(page: &[u8]) -> Option<Meta> {
    let meta = page.get(HEADER..HEADER + 64)?;
    let sum = meta[..56].iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let page_size = u32_at(meta, 8)? as usize;
    let good = u32_at(meta, 0)? == MAGIC
        && u32_at(meta, 4)? == VERSION
        && u64_at(meta, 56)? == sum
        && page_size.is_power_of_two()
        && (512..=1 << 20).contains(&page_size);
    Some(Meta {
        page_size,
        root: u64_at(meta, 16)?,
        transaction: u64_at(meta, 48)?,
    })
    .filter(|_| good)
}

fn damaged(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A database of one page: the root bucket with a small bucket `b` in it, which has `k` = `v`.
    fn database() -> Vec<u8> {
        let leaf = |entries: &[(u32, &[u8], Vec<u8>)]| {
            let mut page = vec![0; HEADER];
            page[8] = 2;
            page[10] = entries.len() as u8;
            let mut data = Vec::new();
            for (number, (flags, key, value)) in entries.iter().enumerate() {
                let position = (entries.len() - number) * HEADER + data.len();
                for field in [*flags, position as u32, key.len() as u32, value.len() as u32] {
                    page.extend_from_slice(&field.to_le_bytes());
                }
                data.extend_from_slice(key);
                data.extend_from_slice(value);
            }
            page.extend_from_slice(&data);
            page
        };
        let inline = [vec![0; 16], leaf(&[(0, b"k", b"v".to_vec())])].concat();
        let root = leaf(&[(0, b"a", b"1".to_vec()), (1, b"b", inline)]);
        let meta = |transaction: u64| {
            let mut meta = Vec::new();
            for field in [MAGIC, VERSION, 512, 0] {
                meta.extend_from_slice(&field.to_le_bytes());
            }
            for field in [2, 0, 0, 3, transaction] {
                meta.extend_from_slice(&field.to_le_bytes());
            }
            let sum = meta.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
            });
            let mut page = vec![0; HEADER];
            page.extend_from_slice(&meta);
            page.extend_from_slice(&sum.to_le_bytes());
            page.resize(512, 0);
            page
        };
        let mut bytes = [meta(1), meta(2), root].concat();
        bytes.resize(3 * 512, 0);
        bytes
    }

    fn read(bytes: &[u8], name: &str) -> io::Result<Db> {
        let path = std::env::temp_dir().join(format!("wharf-bolt-{name}-{}", std::process::id()));
        fs::write(&path, bytes)?;
        let db = Db::copy(&path);
        fs::remove_file(&path)?;
        db
    }

    #[test]
    fn buckets_and_values_are_found() {
        let db = read(&database(), "good").unwrap();
        let bucket = db.bucket(&["b"]).unwrap().unwrap();
        assert_eq!(bucket.text("k").unwrap().as_deref(), Some("v"));
        assert!(db.bucket(&["a"]).unwrap().is_none() && db.bucket(&["c"]).unwrap().is_none());
        assert_eq!(
            db.bucket(&[]).unwrap().unwrap().text("a").unwrap().as_deref(),
            Some("1")
        );
    }

    #[test]
    fn a_half_written_transaction_does_not_count_and_damage_is_an_error_not_a_panic() {
        let mut bytes = database();
        bytes[512 + HEADER + 20] ^= 1;
        assert!(read(&bytes, "half").unwrap().bucket(&["b"]).unwrap().is_some());
        bytes[HEADER + 20] ^= 1;
        assert!(read(&bytes, "none").is_err());
        let good = database();
        for at in 1024..1024 + 120 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Ok(db) = read(&bytes, "damaged")
                    && let Ok(Some(bucket)) = db.bucket(&["b"])
                {
                    let _ = bucket.entries();
                }
            }
        }
        // A branch that is its own child.
        let mut bytes = good;
        bytes[1024 + 8] = 1;
        bytes[1024 + HEADER + 8..1024 + HEADER + 16].copy_from_slice(&2_u64.to_le_bytes());
        assert!(read(&bytes, "circle").unwrap().bucket(&["b"]).is_err());
    }
}
