//! What the process keeps of the machine's memory. Below all rooms, as [`crate::sys`] is.
//!
//! The allocator keeps what was freed, for the next burst; and pages of the program stay mapped after the code in them has
//! run for the last time, as most of what a start needs. Both are given back when they are worth it.

/// Free memory that the allocator may keep: giving it back and taking it anew costs time too.
const SPARE: usize = 4 << 20;
const PAGE: usize = 4096;

/// Gives back what is not needed, if that is much. Takes milliseconds.
pub fn tidy() {
    if spare().is_none_or(|spare| spare > SPARE) {
        give_back();
    }
}

/// Gives back what is not needed.
pub fn give_back() {
    trim_allocator();
    release_program();
}

/// Memory that is the process's own and not in use. None where nobody can tell.
fn spare() -> Option<usize> {
    // Pages: size, resident, of these shared with files.
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut fields = statm
        .split_whitespace()
        .skip(1)
        .map_while(|field| field.parse::<usize>().ok());
    let own = fields.next()?.saturating_sub(fields.next()?) * PAGE;
    Some(own.saturating_sub(in_use()?))
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

    #[test]
    fn what_was_freed_is_seen_and_given_back() {
        let blocks: Vec<_> = (0..4000).map(|n| vec![1_u8; 4000 + n % 7]).collect();
        // Not at the end of the heap, where the allocator gives back by itself.
        let keep: Vec<_> = blocks.iter().map(|block| block[..8].to_vec()).collect();
        let full = spare().unwrap();
        drop(blocks);
        let freed = spare().unwrap();
        assert!(freed > full + (12 << 20), "{full} {freed}");
        tidy();
        let tidied = spare().unwrap();
        assert!(tidied < freed - (8 << 20), "{freed} {tidied}");
        assert_eq!(keep.len(), 4000);
    }
}
