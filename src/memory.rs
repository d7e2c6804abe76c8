//! What the process keeps of the machine's memory. Below all rooms, as [`crate::sys`] is.
//!
//! The allocator keeps what was freed, for the next burst; and pages of the program stay mapped after the code in them has
//! run for the last time, as most of what a start needs. Both are given back when they are worth it: once a burst of work
//! is over, and now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Free memory that the allocator may keep: giving it back and taking it anew costs time too.
const SPARE: usize = 1 << 20;
/// Pages of the program that may stay: about what an idle daemon uses now and then.
const PROGRAM: usize = 3 << 20;
const PAGE: usize = 4096;
/// So long nothing is begun or ended after a burst.
const QUIET: Duration = Duration::from_secs(1);
/// How often it is looked at without a burst, and in one that does not end.
const PERIOD: Duration = Duration::from_secs(30);

/// Gives back what is not needed, of each kind if that is much. Takes milliseconds.
pub fn tidy() {
    let Some(kept) = Kept::now() else {
        return give_back();
    };
    if kept.spare > SPARE {
        trim_allocator();
    }
    if kept.program > PROGRAM {
        release_program();
    }
}

/// The process's work, as far as it leaves memory behind that is of no use afterwards.
#[derive(Debug, Clone, Default)]
pub struct Work(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    running: AtomicUsize,
    /// Rises with each beginning and each end.
    changes: AtomicU64,
    /// That [`keep_tidy`] knows of work; nobody has to wake it while it does.
    known: AtomicBool,
    begun: Notify,
}

impl Work {
    /// Counts a piece of work until what is returned is dropped.
    #[must_use]
    pub fn begin(&self) -> Piece {
        self.0.running.fetch_add(1, Ordering::SeqCst);
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        if !self.0.known.swap(true, Ordering::SeqCst) {
            self.0.begun.notify_one();
        }
        Piece(Arc::clone(&self.0))
    }

    /// Waits until a burst of work is over, or for a while when none comes or it does not end.
    async fn over(&self) {
        let counts = &self.0;
        // None comes: that is looked at all the same.
        let _ = tokio::time::timeout(PERIOD, counts.begun.notified()).await;
        let end = Instant::now() + PERIOD;
        loop {
            let before = counts.changes.load(Ordering::SeqCst);
            tokio::time::sleep(QUIET).await;
            let still = before == counts.changes.load(Ordering::SeqCst) && counts.running.load(Ordering::SeqCst) == 0;
            if still || Instant::now() >= end {
                // What begins from here on is told, and what did just now is seen here.
                counts.known.store(false, Ordering::SeqCst);
                if !still || before == counts.changes.load(Ordering::SeqCst) {
                    return;
                }
            }
        }
    }
}

/// Work that goes on.
#[derive(Debug)]
pub struct Piece(Arc<Counts>);

impl Drop for Piece {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        // Nobody is woken: what began it was told.
    }
}

/// Gives back what `work` leaves behind, and what the start has left, for as long as the process runs.
pub async fn keep_tidy(work: Work) {
    tokio::time::sleep(QUIET).await;
    let mut give_back: fn() = give_back;
    loop {
        let done = std::mem::replace(&mut give_back, tidy);
        let _ = tokio::task::spawn_blocking(done).await;
        work.over().await;
    }
}

/// Gives back what is not needed.
pub fn give_back() {
    trim_allocator();
    release_program();
}

/// Bytes that could be given back.
struct Kept {
    /// Of memory that is the process's own: what is not in use.
    spare: usize,
    /// Of the program.
    program: usize,
}

impl Kept {
    /// None where nobody can tell.
    fn now() -> Option<Self> {
        // Pages: size, resident, of these shared with files.
        let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
        let mut fields = statm
            .split_whitespace()
            .skip(1)
            .map_while(|field| field.parse::<usize>().ok());
        let (resident, of_files) = (fields.next()?, fields.next()?);
        Some(Self {
            spare: (resident.saturating_sub(of_files) * PAGE).saturating_sub(in_use()?),
            program: of_files * PAGE,
        })
    }
}

/// Bytes that the allocator has given out.
pub fn in_use() -> Option<usize> {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no precondition.
        let info = unsafe { libc::mallinfo2() };
        Some(info.uordblks + info.hblkhd)
    }
    #[cfg(not(target_env = "gnu"))]
    None
}

/// So much that was freed at the end of an arena stays there for the next moment: [`tidy`] gives it back when the burst is over.
const REST: i32 = 8 << 20;
/// From this size on, a piece of memory comes from the kernel and goes back to it by itself: more than a read of the network
/// takes, which a pull makes thousands of.
const OF_ITS_OWN: i32 = 1 << 20;

/// Sets how the allocator shares and keeps memory; to be called before there is a second thread.
pub fn set_up() {
    share_arenas();
    #[cfg(target_env = "gnu")]
    // SAFETY: no precondition. They can't fail with these values.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, REST);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OF_ITS_OWN);
    }
}

/// Lets all threads share two of the allocator's arenas, before there is a second thread. By itself it makes one for each of
/// the threads that come and go, eight for a processor, and what is left in each can't be used by the others: some MB with
/// fifty pods. Threads have small pieces of their own all the same.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no precondition. It can't fail with this parameter.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives free memory back to the system.
pub fn trim_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's code and constants until they are used again. They stay in the page cache, from where a page
/// comes back in a microsecond; but while a process sleeps, it has none of them to its name.
pub fn release_program() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let start = (&raw const __executable_start).addr().next_multiple_of(PAGE);
    let end = (&raw const etext).addr() & !(PAGE - 1);
    if start < end {
        // SAFETY: the linker puts nothing writable between these symbols, so each page is the file's and is read from
        // it again when needed, the page of this code first.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spare() -> usize {
        Kept::now().unwrap().spare
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_over_when_nothing_has_moved_for_a_while() {
        let work = Work::default();
        let began = Instant::now();
        let waiter = tokio::spawn({
            let work = work.clone();
            async move {
                work.over().await;
                Instant::now()
            }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        let long = work.begin();
        for _ in 0..8 {
            tokio::time::sleep(QUIET / 2).await;
            drop(work.begin());
        }
        tokio::time::sleep(QUIET * 3).await;
        assert!(!waiter.is_finished(), "the long one runs still");
        let ended = Instant::now();
        drop(long);
        let over = waiter.await.unwrap();
        assert!(over >= ended + QUIET && over <= ended + QUIET * 2, "{:?}", over - began);
        // Nothing comes.
        let before = Instant::now();
        work.over().await;
        assert!(before.elapsed() >= PERIOD);
        // It does not end.
        let _long = work.begin();
        let before = Instant::now();
        work.over().await;
        assert!(before.elapsed() >= PERIOD && before.elapsed() < PERIOD + QUIET * 2);
    }

    #[test]
    fn what_was_freed_is_seen_and_given_back() {
        let blocks: Vec<_> = (0..4000).map(|n| vec![1_u8; 4000 + n % 7]).collect();
        // Not at the end of the heap, where the allocator gives back by itself.
        let keep: Vec<_> = blocks.iter().map(|block| block[..8].to_vec()).collect();
        let full = spare();
        drop(blocks);
        let freed = spare();
        assert!(freed > full + (12 << 20), "{full} {freed}");
        tidy();
        let tidied = spare();
        assert!(tidied < freed - (8 << 20), "{freed} {tidied}");
        assert_eq!(keep.len(), 4000);
    }
}
