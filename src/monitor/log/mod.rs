//! The CRI log format and the file it goes to: `TIME STREAM P|F CONTENT`, one line each.

mod journal;
mod lines;
mod rate;
#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

pub use journal::Journal;
pub use lines::Lines;
use rate::Rate;

/// Splits when the request names no length, bytes.
const DEFAULT_MAX_LINE: usize = 16 << 10;
/// No line is longer in memory, whatever the request says, bytes.
const MAX_MAX_LINE: usize = 1 << 20;
/// The batch is written when it would grow beyond this, bytes.
const BATCH: usize = 32 << 10;

/// The length at which lines are split; 0 stands for the default of 16 KiB.
#[must_use]
pub fn line_limit(requested: u32) -> usize {
    match usize::try_from(requested).unwrap_or(MAX_MAX_LINE) {
        0 => DEFAULT_MAX_LINE,
        n => n.min(MAX_MAX_LINE),
    }
}

/// `2016-10-06T00:17:09.669794202Z`, then a space: what stands in front of each log line.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    text: [u8; 31],
    nanos: i64,
}

impl Stamp {
    /// The time `nanos` nanoseconds after the epoch; years before 1970 and after 9999 are not for logs.
    #[must_use]
    pub fn at(nanos: i64) -> Stamp {
        let at = nanos;
        let nanos = nanos.max(0).unsigned_abs();
        let (seconds, fraction) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = date(days);
        let mut out = *b"0000-00-00T00:00:00.000000000Z ";
        digits(&mut out[0..4], year);
        digits(&mut out[5..7], month);
        digits(&mut out[8..10], day);
        digits(&mut out[11..13], of_day / 3600);
        digits(&mut out[14..16], of_day / 60 % 60);
        digits(&mut out[17..19], of_day % 60);
        digits(&mut out[20..29], fraction);
        Stamp { text: out, nanos: at }
    }
}

fn digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Year, month and day of a day after 1970-01-01 in the Gregorian calendar. Years are counted from March so that the
/// leap day comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// What a log has taken and given since it was opened (feature row H6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that the container has written.
    pub bytes_in: u64,
    /// Lines and parts of lines handed to the file.
    pub entries: u64,
    /// Bytes written to the file.
    pub bytes_out: u64,
    /// Parts of lines that were too long, or not ended.
    pub partial: u64,
    /// Lines left out because there were too many.
    pub left_out: u64,
    /// Lines and parts that the file system did not take.
    pub lost: u64,
    /// Lines and parts that the journal did not take.
    pub unjournaled: u64,
}

/// A container's log file. Without a path it takes lines and forgets them.
#[derive(Debug, Default)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Lines not yet written; whole lines only. Empty between two wake-ups.
    batch: Vec<u8>,
    /// The file ends in the middle of a line that could not be taken back.
    torn: bool,
    /// Boxed, as most logs have neither: a monitor's memory counts.
    rate: Option<Box<Rate>>,
    journal: Option<Box<Journal>>,
    pub counters: Counters,
}

impl Log {
    /// Opens the file at `path` for appending, with its directory; an empty path is no log.
    ///
    /// # Errors
    /// When the directory or the file can't be made.
    pub fn open(path: &Path) -> io::Result<Log> {
        let file = if path.as_os_str().is_empty() {
            None
        } else {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir)?;
            }
            Some(append(path)?)
        };
        Ok(Log {
            path: path.to_owned(),
            file,
            ..Log::default()
        })
    }

    /// Lets no more than `bytes` of content a second into the log; 0 lets all. Lines beyond are left out, and the next one
    /// that is not is preceded by one that tells how many.
    pub fn limit(&mut self, bytes: u64) {
        self.rate = (bytes > 0).then(|| Box::new(Rate::new(bytes)));
    }

    /// Copies every line to the journal.
    pub fn copy_to(&mut self, journal: Journal) {
        self.journal = Some(Box::new(journal));
    }

    fn admits(&mut self, stamp: Stamp, length: usize) -> bool {
        match &mut self.rate {
            // The line break counts: empty lines are not for nothing.
            Some(rate) => rate.take(stamp.nanos, length + 1),
            None => true,
        }
    }

    fn leave_out(&mut self) {
        self.counters.left_out += 1;
        if let Some(rate) = &mut self.rate {
            rate.dropped += 1;
        }
    }

    fn take_notice(&mut self) -> Option<String> {
        self.rate.as_mut()?.notice()
    }

    /// Makes the file anew after a rotation. The next line goes to the new file.
    ///
    /// # Errors
    /// When it can't be opened; the old one stays in use.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.flush();
        if self.file.is_some() {
            self.file = Some(append(&self.path)?);
            self.torn = false;
        }
        Ok(())
    }

    fn line(&mut self, stamp: Stamp, stream: &str, full: bool, content: [&[u8]; 2]) {
        if let Some(journal) = &mut self.journal
            && !journal.send(stream, full, content)
        {
            self.counters.unjournaled += 1;
        }
        if self.file.is_none() {
            return;
        }
        self.counters.entries += 1;
        self.counters.partial += u64::from(!full);
        let length = stamp.text.len() + stream.len() + 4 + content[0].len() + content[1].len();
        if self.batch.len() + length > BATCH {
            self.flush();
        }
        self.batch.extend_from_slice(&stamp.text);
        self.batch.extend_from_slice(stream.as_bytes());
        self.batch.extend_from_slice(if full { b" F " } else { b" P " });
        self.batch.extend_from_slice(content[0]);
        self.batch.extend_from_slice(content[1]);
        self.batch.push(b'\n');
    }

    /// Writes the batch. What the file system refuses is lost, so that the container never waits for a full disk; the
    /// file never keeps half a line before another one.
    pub fn flush(&mut self) {
        let Some(file) = &mut self.file else { return };
        if self.batch.is_empty() {
            return;
        }
        if self.torn && file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let mut written = 0;
        while !self.torn && written < self.batch.len() {
            match file.write(&self.batch[written..]) {
                Ok(n) if n > 0 => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        if written < self.batch.len() {
            let whole = self.batch[..written]
                .iter()
                .rposition(|&b| b == b'\n')
                .map_or(0, |at| at + 1);
            if whole < written {
                self.torn |= take_back(file, (written - whole) as u64).is_err();
            }
            let rest = &self.batch[whole..];
            self.counters.lost += rest.iter().filter(|&&b| b == b'\n').count() as u64;
            written = whole;
        }
        self.counters.bytes_out += written as u64;
        self.batch.clear();
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.batch = Vec::new();
        if let Some(journal) = &mut self.journal {
            journal.shrink();
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Cuts the last `count` bytes off the file, if they are what we wrote: a file cut by someone else in between is left.
fn take_back(file: &File, count: u64) -> io::Result<()> {
    let size = file.metadata()?.size();
    let end = size.checked_sub(count).ok_or(io::ErrorKind::InvalidData)?;
    if end > 0 {
        // The file is open for appending only; read through its own descriptor's path would follow a rename anyway.
        let mut before = [0];
        let readable = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
        readable.read_exact_at(&mut before, end - 1)?;
        if before != *b"\n" {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    file.set_len(end)
}
