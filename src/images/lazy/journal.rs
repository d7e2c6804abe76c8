//! The kernel's requests that were read and not answered, in memory that outlives the daemon.
//!
//! Who asks a FUSE file system waits until its request is answered, and no signal ends that once the request has been read. A
//! daemon that is killed in between must not take the question with it: newer kernels would ask again when told to (Linux
//! 6.9), older ones never. So each request is read straight into a file that is mapped, on the run directory's tmpfs, and marked
//! as done there after its answer: the daemon that comes next finds what is open. That an answer is given twice, by a daemon
//! that was killed before it could mark it, is nothing to the kernel: numbers of requests are used once.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use nix::errno::Errno;

/// Requests that can be open at a time.
const SLOTS: usize = 512;
/// Bytes of one: the kernel refuses less room (`FUSE_MIN_READ_BUFFER`). Its first four are the request's length, or zero.
const SLOT: usize = 8192;
/// mlock2(2): pages are locked once they are touched.
const MLOCK_ONFAULT: libc::c_uint = 1;
/// Its header, with which every request begins.
const HEADER: usize = 40;

/// The requests of one file system.
pub(super) struct Journal {
    map: NonNull<u8>,
    /// The last is taken first, so that few pages are touched.
    free: Mutex<Vec<usize>>,
}

// SAFETY: the mapping belongs to this value until it is dropped. What is in a slot is touched by whoever has taken the slot, and
// a slot is taken by one at a time.
unsafe impl Send for Journal {}
// SAFETY: as above; taking and giving back go through the mutex.
unsafe impl Sync for Journal {}

impl Journal {
    /// An empty one at `path`, whatever was there. Blocking.
    ///
    /// # Errors
    /// When the file can't be made or mapped.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(path)?;
        file.set_len((SLOTS * SLOT) as u64)?;
        Self::map(&file)
    }

    /// The one that an earlier daemon has made at `path`. Blocking.
    ///
    /// # Errors
    /// When it is not there, or is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        if file.metadata()?.len() != (SLOTS * SLOT) as u64 {
            return Err(io::Error::other("it has another length than this daemon's"));
        }
        let journal = Self::map(&file)?;
        let open: Vec<usize> = (0..SLOTS).filter(|slot| journal.length(*slot) != 0).collect();
        let mut free = journal.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.retain(|slot| !open.contains(slot));
        drop(free);
        Ok(journal)
    }

    fn map(file: &File) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of an open file, at an address of the kernel's choice. The file keeps its length: only this room
        // knows of it.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                SLOTS * SLOT,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or(Errno::EFAULT)?;
        // What is not in memory would have to be read before a request can be written to it, and a process that is being killed
        // then gives the asker an error; where a limit forbids it, that stays possible.
        // SAFETY: the range was just mapped; nothing is read or written by it.
        unsafe { libc::syscall(libc::SYS_mlock2, map.as_ptr(), SLOTS * SLOT, MLOCK_ONFAULT) };
        Ok(Self {
            map,
            free: Mutex::new((0..SLOTS).rev().collect()),
        })
    }

    /// A place for one more request; none while all are taken.
    pub fn take(&self) -> Option<usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Whether a place is free.
    #[cfg(test)]
    fn has_room(&self) -> bool {
        !self.free.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The request in `slot` is answered, or wants no answer; the place is free.
    pub fn done(&self, slot: usize) {
        self.mark(slot).store(0, Ordering::Release);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
    }

    /// Has `device` write its next request to `slot`, which was taken.
    ///
    /// # Errors
    /// As read(2).
    pub fn read(&self, slot: usize, device: impl AsFd) -> nix::Result<()> {
        // Nothing is open in it until something was read, and its page is there.
        self.mark(slot).store(0, Ordering::Release);
        // SAFETY: the slot is within the mapping and nobody else's now; the kernel writes at most its length.
        let read = unsafe { libc::read(device.as_fd().as_raw_fd(), self.slot(slot).cast(), SLOT) };
        Errno::result(read).map(drop)
    }

    /// What was read to `slot`.
    pub fn request(&self, slot: usize) -> Vec<u8> {
        let length = self.length(slot);
        let mut bytes = vec![0; length];
        // SAFETY: `length` is at most a slot's, and whoever asks has taken the slot.
        unsafe { std::ptr::copy_nonoverlapping(self.slot(slot), bytes.as_mut_ptr(), length) };
        bytes
    }

    /// The places of what an earlier daemon has not answered.
    pub fn open_slots(&self) -> Vec<usize> {
        (0..SLOTS).filter(|slot| self.length(*slot) != 0).collect()
    }

    /// Bytes of the request in `slot`; 0 where there is none.
    fn length(&self, slot: usize) -> usize {
        match self.mark(slot).load(Ordering::Acquire) as usize {
            length @ HEADER..=SLOT => length,
            _ => 0,
        }
    }

    fn slot(&self, slot: usize) -> *mut u8 {
        debug_assert!(slot < SLOTS);
        // SAFETY: numbers of slots come from `free` or a range below SLOTS: the result is within the mapping.
        unsafe { self.map.as_ptr().add(slot * SLOT) }
    }

    fn mark(&self, slot: usize) -> &AtomicU32 {
        // SAFETY: the mapping begins at a page and a slot is a multiple of pages, so this is aligned, mapped as long as
        // `self`, and used as an atomic only, but by the kernel's read.
        unsafe { AtomicU32::from_ptr(self.slot(slot).cast()) }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody has a reference any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), SLOTS * SLOT) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn what_was_read_and_not_answered_is_found_by_the_next_and_the_rest_is_free() {
        let path = std::env::temp_dir().join(format!("wharf-journal-{}", std::process::id()));
        let journal = Journal::create(&path).unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut writer = File::from(writer);
        let mut put = |byte: u8| {
            let mut bytes = vec![byte; 60];
            bytes[..4].copy_from_slice(&60_u32.to_ne_bytes());
            writer.write_all(&bytes).unwrap();
            let slot = journal.take().unwrap();
            journal.read(slot, &reader).unwrap();
            slot
        };
        let (first, second, third) = (put(1), put(2), put(3));
        journal.done(second);
        assert_eq!(journal.request(first)[4..], [1; 56]);
        drop(journal);
        let next = Journal::open(&path).unwrap();
        assert_eq!(next.open_slots(), [first, third]);
        assert_eq!(next.request(third)[4..], [3; 56]);
        let mut taken = Vec::new();
        while let Some(slot) = next.take() {
            taken.push(slot);
        }
        assert_eq!(taken.len(), SLOTS - 2);
        assert!(!taken.contains(&first) && !taken.contains(&third) && !next.has_room());
        next.done(first);
        assert_eq!((next.has_room(), next.open_slots()), (true, vec![third]));
        // Of another version, or cut off.
        std::fs::write(&path, [1; 100]).unwrap();
        assert!(Journal::open(&path).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
