//! Finding the last lines of a log without reading all of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::Line;

/// Bytes read at a time, backwards.
const BLOCK: usize = 64 * 1024;

/// Offset at which the last `count` whole lines begin; parts of one line count once.
///
/// # Errors
/// When the file can't be read.
pub fn start_of_last(file: &File, count: usize) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    if count == 0 {
        return Ok(end);
    }
    let mut seen = 0;
    let mut start = end;
    // The bytes of the line whose beginning is not read yet.
    let mut rest: Vec<u8> = Vec::new();
    while end > 0 {
        let size = usize::try_from(end).unwrap_or(usize::MAX).min(BLOCK);
        let mut block = vec![0; size];
        file.read_exact_at(&mut block, end - size as u64)?;
        end -= size as u64;
        block.append(&mut rest);
        let mut until = block.len();
        while let Some(newline) = block[..until.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n') {
            if !take(&block[newline + 1..until], &mut seen, count) {
                return Ok(start);
            }
            start = end + newline as u64 + 1;
            until = newline + 1;
        }
        rest = block;
        rest.truncate(until);
    }
    if take(&rest, &mut seen, count) {
        Ok(0)
    } else {
        Ok(start)
    }
}

/// Counts a line in, from the end; false when it belongs to one more than is wanted.
fn take(line: &[u8], seen: &mut usize, count: usize) -> bool {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let partial = Line::parse(line).is_some_and(|line| line.partial);
    // A part goes with the line after it; as the very last one it stands for a line that is still written.
    if !partial || *seen == 0 {
        *seen += 1;
    }
    *seen <= count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek as _, SeekFrom, Write as _};

    fn last(lines: &[String], count: usize) -> Vec<String> {
        let path = std::env::temp_dir().join(format!(
            "wharf-tail-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        for line in lines {
            writeln!(file, "{line}").unwrap();
        }
        let start = start_of_last(&file, count).unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        io::read_to_string(file).unwrap().lines().map(str::to_owned).collect()
    }

    fn line(tag: &str, text: &str) -> String {
        format!("2026-01-31T12:00:00.123456789Z stdout {tag} {text}")
    }

    #[test]
    fn the_last_lines_are_found_across_blocks() {
        let lines: Vec<String> = (0..5000).map(|n| line("F", &format!("line {n}"))).collect();
        for count in [0, 1, 2, 1500, 4999, 5000, 6000] {
            assert_eq!(last(&lines, count), lines[5000 - count.min(5000)..], "{count}");
        }
        assert!(last(&[], 3).is_empty());
    }

    #[test]
    fn a_line_longer_than_a_block_is_one_line() {
        let lines = [line("F", "a"), line("F", &"x".repeat(3 * BLOCK)), line("F", "b")];
        assert_eq!(last(&lines, 2), lines[1..]);
    }

    #[test]
    fn parts_count_once() {
        let lines = [
            line("F", "a"),
            line("P", "b"),
            line("P", "c"),
            line("F", "d"),
            line("P", "e"),
            line("P", "f"),
        ];
        assert_eq!(last(&lines, 1), lines[4..]);
        assert_eq!(last(&lines, 2), lines[1..]);
        assert_eq!(last(&lines, 3), lines[..]);
    }
}
