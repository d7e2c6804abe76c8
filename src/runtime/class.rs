//! Classes of cache and memory bandwidth: a process belongs to the one in whose `tasks` its number was written, and hands
//! it down to what it starts (Documentation/filesystems/resctrl.rst).

use std::io::Write as _;
use std::path::Path;

use super::Result;
use super::error::Context as _;

/// Puts the calling process into the class. To be done by a helper, before it starts anything.
pub fn join(tasks: Option<&Path>) -> Result<()> {
    let Some(tasks) = tasks else { return Ok(()) };
    let open = std::fs::OpenOptions::new().append(true).create(false).open(tasks);
    open.and_then(|mut file| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
        .context(|| format!("join the RDT class of {}", tasks.display()))
}
