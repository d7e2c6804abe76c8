//! The log as a file: its form, and what a rotation and a full disk leave of it.

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
        assert_eq!(std::str::from_utf8(&Stamp::at(nanos).text).unwrap(), text);
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
        ..Log::default()
    };
    text(b"lost\n", &mut full);
    assert!(full.batch.is_empty(), "what can't be written is dropped");
    assert_eq!((full.counters.lost, full.counters.bytes_out), (1, 0));
}

#[test]
fn beyond_its_rate_a_log_leaves_out_whole_lines_and_says_so() {
    let scratch = Scratch::new("rate");
    let mut log = Log::open(&scratch.file()).unwrap();
    log.limit(10);
    let (mut out, mut err) = (Lines::new("stdout", 4), Lines::new("stderr", 4));
    let at = |seconds: i64| Stamp::at(NANOS + seconds * 1_000_000_000);
    out.push(b"one\n", at(0), &mut log);
    // Its first part still fits; the rest would join another line if it were not ended.
    out.push(b"abcdefghijkl\n", at(0), &mut log);
    out.push(b"not this\nnor this\n", at(0), &mut log);
    err.push(b"nor that\n", at(0), &mut log);
    out.push(b"late\n", at(5), &mut log);
    out.end(at(5), &mut log);
    err.end(at(5), &mut log);
    log.flush();
    let text = fs::read_to_string(scratch.file()).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| &line[TIME.len() + 1..]).collect();
    assert_eq!(
        lines,
        [
            "stdout F one",
            "stdout P abcd",
            "stdout P efgh",
            "stdout F ",
            "stdout F wharf: 4 lines left out, more than 10 bytes a second",
            "stdout F late",
        ]
    );
    assert_eq!((log.counters.left_out, log.counters.entries), (4, 6));
}

#[test]
fn what_went_in_and_out_is_counted() {
    let scratch = Scratch::new("count");
    let mut log = Log::open(&scratch.file()).unwrap();
    let mut lines = Lines::new("stdout", 4);
    lines.push(b"abcdef\ngh", Stamp::at(NANOS), &mut log);
    lines.end(Stamp::at(NANOS), &mut log);
    log.flush();
    let expected = Counters {
        bytes_in: 9,
        entries: 3,
        bytes_out: fs::metadata(scratch.file()).unwrap().len(),
        partial: 2,
        ..Counters::default()
    };
    assert_eq!(log.counters, expected);
}
