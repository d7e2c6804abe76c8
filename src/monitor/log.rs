//! The CRI log format and the file it goes to: `TIME STREAM P|F CONTENT`, one line each.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

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
pub struct Stamp([u8; 31]);

impl Stamp {
    /// The time `nanos` nanoseconds after the epoch; years before 1970 and after 9999 are not for logs.
    #[must_use]
    pub fn at(nanos: i64) -> Stamp {
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
        Stamp(out)
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

/// A container's log file. Without a path it takes lines and forgets them.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: Option<File>,
    /// Lines not yet written; whole lines only. Empty between two wake-ups.
    batch: Vec<u8>,
    /// The file ends in the middle of a line that could not be taken back.
    torn: bool,
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
            batch: Vec::new(),
            torn: false,
        })
    }

    /// A log that takes nothing.
    #[must_use]
    pub fn none() -> Log {
        Log {
            path: PathBuf::new(),
            file: None,
            batch: Vec::new(),
            torn: false,
        }
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
        if self.file.is_none() {
            return;
        }
        let length = stamp.0.len() + stream.len() + 4 + content[0].len() + content[1].len();
        if self.batch.len() + length > BATCH {
            self.flush();
        }
        self.batch.extend_from_slice(&stamp.0);
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
        }
        self.batch.clear();
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.batch = Vec::new();
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

/// Cuts one output stream of a container into log lines.
#[derive(Debug)]
pub struct Lines {
    /// `stdout` or `stderr`.
    stream: &'static str,
    limit: usize,
    /// The beginning of a line whose end has not come; at most `limit` bytes.
    partial: Vec<u8>,
}

impl Lines {
    /// Lines of `stream`, split at `limit` bytes (above 0).
    #[must_use]
    pub fn new(stream: &'static str, limit: usize) -> Lines {
        Lines {
            stream,
            limit,
            partial: Vec::new(),
        }
    }

    /// Takes output and hands the lines in it to `log`.
    pub fn push(&mut self, mut input: &[u8], stamp: Stamp, log: &mut Log) {
        while !input.is_empty() {
            let room = self.limit - self.partial.len();
            let reach = &input[..input.len().min(room + 1)];
            let (line, full, used) = match reach.iter().position(|&b| b == b'\n') {
                Some(at) => (&input[..at], true, at + 1),
                None if input.len() > room => (&input[..room], false, room),
                None => {
                    self.partial.extend_from_slice(input);
                    return;
                }
            };
            log.line(stamp, self.stream, full, [&self.partial, line]);
            self.partial.clear();
            input = &input[used..];
        }
    }

    /// The stream has ended: an unterminated line goes out as a partial one.
    pub fn end(&mut self, stamp: Stamp, log: &mut Log) {
        if !self.partial.is_empty() {
            log.line(stamp, self.stream, false, [&self.partial, b""]);
        }
        self.partial = Vec::new();
    }

    /// Gives memory back while nothing happens.
    pub fn shrink(&mut self) {
        self.partial.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2016-10-06T00:17:09.669794202Z";
    const NANOS: i64 = 1_475_713_029_669_794_202;

    struct Scratch(PathBuf);
    impl Scratch {
        fn new(name: &str) -> Scratch {
            let dir = std::env::temp_dir().join(format!("wharf-log-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }
        fn file(&self) -> PathBuf {
            self.0.join("sub/0.log")
        }
    }
    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What the log holds after the pieces came in one by one.
    fn logged(name: &str, limit: usize, pieces: &[&[u8]]) -> Vec<String> {
        let scratch = Scratch::new(name);
        let mut log = Log::open(&scratch.file()).unwrap();
        let mut lines = Lines::new("stdout", limit);
        for piece in pieces {
            lines.push(piece, Stamp::at(NANOS), &mut log);
        }
        lines.end(Stamp::at(NANOS), &mut log);
        log.flush();
        let text = fs::read(scratch.file()).unwrap();
        let prefix = format!("{TIME} stdout ");
        String::from_utf8(text)
            .unwrap()
            .split_terminator('\n')
            .map(|line| line.strip_prefix(&prefix).expect(line).to_owned())
            .collect()
    }

    #[test]
    fn times_are_utc_with_nine_digits() {
        for (nanos, text) in [
            (0, "1970-01-01T00:00:00.000000000Z "),
            (NANOS, "2016-10-06T00:17:09.669794202Z "),
            (951_782_399_000_000_001, "2000-02-28T23:59:59.000000001Z "),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z "),
            (1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999999Z "),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z "),
        ] {
            assert_eq!(std::str::from_utf8(&Stamp::at(nanos).0).unwrap(), text);
        }
    }

    #[test]
    fn lines_are_whole_however_the_output_comes() {
        assert_eq!(logged("whole", 100, &[b"one\ntwo\n"]), ["F one", "F two"]);
        assert_eq!(logged("pieces", 100, &[b"o", b"ne", b"\n", b"\n"]), ["F one", "F "]);
        assert_eq!(logged("crlf", 100, &[b"a\r\nb\r\n"]), ["F a\r", "F b\r"]);
    }

    #[test]
    fn a_long_line_is_split_into_partial_ones() {
        assert_eq!(logged("exact", 4, &[b"abcd\n"]), ["F abcd"]);
        assert_eq!(
            logged("split", 4, &[b"abcdefghij\nk\n"]),
            ["P abcd", "P efgh", "F ij", "F k"]
        );
        assert_eq!(
            logged("split-pieces", 4, &[b"abc", b"de", b"fgh", b"\n"]),
            ["P abcd", "F efgh"]
        );
    }

    #[test]
    fn an_unterminated_line_is_partial() {
        assert_eq!(
            logged("unterminated", 100, &[b"one\nprompt> "]),
            ["F one", "P prompt> "]
        );
        assert_eq!(logged("empty", 100, &[]), Vec::<String>::new());
    }

    #[test]
    fn many_lines_outgrow_the_batch_without_loss() {
        let text: String = (0..20_000).map(|n| format!("{n}\n")).collect();
        let lines = logged("many", 100, &[text.as_bytes()]);
        assert_eq!(lines.len(), 20_000);
        assert!(lines.iter().enumerate().all(|(n, line)| *line == format!("F {n}")));
    }

    #[test]
    fn a_reopened_log_loses_and_tears_nothing() {
        let scratch = Scratch::new("reopen");
        let mut log = Log::open(&scratch.file()).unwrap();
        let mut lines = Lines::new("stderr", 100);
        lines.push(b"one\ntw", Stamp::at(NANOS), &mut log);
        let rotated = scratch.0.join("sub/0.log.1");
        fs::rename(scratch.file(), &rotated).unwrap();
        log.reopen().unwrap();
        assert_eq!(fs::read(scratch.file()).unwrap(), b"");
        lines.push(b"o\n", Stamp::at(NANOS), &mut log);
        log.flush();
        assert_eq!(fs::read_to_string(rotated).unwrap(), format!("{TIME} stderr F one\n"));
        assert_eq!(
            fs::read_to_string(scratch.file()).unwrap(),
            format!("{TIME} stderr F two\n")
        );
        fs::remove_dir_all(scratch.0.join("sub")).unwrap();
        log.reopen().unwrap_err();
    }

    #[test]
    fn a_full_disk_costs_lines_but_leaves_no_half_line() {
        let scratch = Scratch::new("full");
        let mut log = Log::open(&scratch.file()).unwrap();
        let mut lines = Lines::new("stdout", 100);
        let mut text = |text: &[u8], log: &mut Log| {
            lines.push(text, Stamp::at(NANOS), log);
            log.flush();
        };
        text(b"one\n", &mut log);
        // Half a line, as a disk that fills up leaves it.
        let half = b"2016-10-06T00:17";
        log.file.as_mut().unwrap().write_all(half).unwrap();
        take_back(log.file.as_ref().unwrap(), half.len() as u64).unwrap();
        text(b"two\n", &mut log);
        assert_eq!(
            fs::read_to_string(scratch.file()).unwrap(),
            format!("{TIME} stdout F one\n{TIME} stdout F two\n")
        );
        // A file that takes nothing.
        let mut full = Log {
            path: PathBuf::from("/dev/full"),
            file: Some(append(Path::new("/dev/full")).unwrap()),
            batch: Vec::new(),
            torn: false,
        };
        text(b"lost\n", &mut full);
        assert!(full.batch.is_empty(), "what can't be written is dropped");
    }
}
