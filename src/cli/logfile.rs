//! The CRI log format, and reading a log file that is still written and may be rotated.
//!
//! A line is `TIME STREAM TAGS CONTENT`: RFC 3339 with nanoseconds, `stdout` or `stderr`, tags separated by colons of
//! which `P` says that the next line of the same stream goes on with this one's text, and the text itself.

mod follow;
mod tail;

use std::io::{self, Write};

use jiff::Timestamp;

pub use follow::Follower;
pub use tail::start_of_last;

/// Which of the two outputs a line was written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written, RFC 3339.
    pub time: &'a str,
    /// Where the container wrote it.
    pub stream: Stream,
    /// More of the same line follows.
    pub partial: bool,
    /// What the container wrote, without its newline.
    pub content: &'a [u8],
}

impl<'a> Line<'a> {
    /// Takes a line apart; `None` if it isn't in the format, as after a crash in mid-write.
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?)
            .ok()
            .filter(|time| time.len() >= 20)?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let tags = parts.next()?;
        let partial = tags.split(|byte| *byte == b':').any(|tag| tag == b"P");
        Some(Self {
            time,
            stream,
            partial,
            content: parts.next().unwrap_or_default(),
        })
    }
}

/// What of a log is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Show {
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Lines before this are left out.
    pub since: Option<Timestamp>,
}

/// Writes log lines to two outputs, joining parts.
pub struct Printer<O, E> {
    show: Show,
    stdout: Side<O>,
    stderr: Side<E>,
}

struct Side<W> {
    to: W,
    /// The last line was a part: what follows belongs to the same line.
    within: bool,
}

impl<O: Write, E: Write> Printer<O, E> {
    /// A printer to these outputs.
    pub fn new(show: Show, stdout: O, stderr: E) -> Self {
        Self {
            show,
            stdout: Side {
                to: stdout,
                within: false,
            },
            stderr: Side {
                to: stderr,
                within: false,
            },
        }
    }

    /// Writes one line of the file; a line out of format is passed over.
    ///
    /// # Errors
    /// When an output can't be written.
    pub fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(line) = Line::parse(line) else { return Ok(()) };
        // A time that can't be read must not hide a line.
        if let (Some(since), Ok(time)) = (self.show.since, line.time.parse::<Timestamp>())
            && time < since
        {
            return Ok(());
        }
        match line.stream {
            Stream::Stdout => self.stdout.write(&line, self.show.timestamps),
            Stream::Stderr => self.stderr.write(&line, self.show.timestamps),
        }
    }

    /// Hands everything on.
    ///
    /// # Errors
    /// When an output can't be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stdout.to.flush()?;
        self.stderr.to.flush()
    }
}

impl<W: Write> Side<W> {
    fn write(&mut self, line: &Line<'_>, timestamps: bool) -> io::Result<()> {
        if timestamps && !self.within {
            write!(self.to, "{} ", line.time)?;
        }
        self.to.write_all(line.content)?;
        self.within = line.partial;
        if line.partial { Ok(()) } else { self.to.write_all(b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "2026-01-31T12:00:00.123456789Z";

    fn print(show: Show, lines: &[&str]) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(show, &mut out, &mut err);
        for line in lines {
            printer.line(line.as_bytes()).unwrap();
        }
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_line_has_time_stream_tags_and_content() {
        let text = format!("{T} stderr F a  b ");
        let line = Line::parse(text.as_bytes()).unwrap();
        assert_eq!(
            line,
            Line {
                time: T,
                stream: Stream::Stderr,
                partial: false,
                content: b"a  b "
            }
        );
        let text = format!("{T} stdout P:X ");
        assert!(Line::parse(text.as_bytes()).unwrap().partial);
        let text = format!("{T} stdout F");
        assert_eq!(Line::parse(text.as_bytes()).unwrap().content, b"");
        for wrong in [
            "",
            "x stdout F a",
            "2026-01-31T12:00:00.123456789Z stdin F a",
            "\0\0\0\0",
        ] {
            assert_eq!(Line::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn parts_are_joined_for_each_stream_by_itself() {
        let lines = [
            format!("{T} stdout P one"),
            format!("{T} stderr F error"),
            format!("{T} stdout P two"),
            format!("{T} stdout F three"),
            format!("{T} stdout F "),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (out, err) = print(Show::default(), &lines);
        assert_eq!((out.as_str(), err.as_str()), ("onetwothree\n\n", "error\n"));
        let (out, _) = print(
            Show {
                timestamps: true,
                since: None,
            },
            &lines,
        );
        assert_eq!(out, format!("{T} onetwothree\n{T} \n"));
    }

    #[test]
    fn lines_before_since_are_left_out() {
        let since = Some("2026-01-31T12:00:01Z".parse().unwrap());
        let (out, _) = print(
            Show {
                timestamps: false,
                since,
            },
            &[&format!("{T} stdout F old"), "2026-01-31T13:00:01.0+01:00 stdout F new"],
        );
        assert_eq!(out, "new\n");
    }
}
