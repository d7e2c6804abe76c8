//! Reads CRI log files: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`.

use std::path::{Path, PathBuf};

use crate::Result;

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// `true` for `F`: the container's line ends here.
    pub full: bool,
    pub text: String,
}

/// Reads a log file to its end.
///
/// # Errors
/// When it can't be read, or a line is torn or not of CRI's form.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("read log {}: {error}", path.display()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(format!("log {} ends within a line: {:?}", path.display(), text.lines().last()).into());
    }
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<Line> {
    let mut parts = line.splitn(4, ' ');
    let mut next = || parts.next().ok_or_else(|| format!("not a CRI log line: {line:?}"));
    let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
    let timed = time.len() >= 20 && time.as_bytes()[10] == b'T' && time.as_bytes()[4] == b'-';
    if !timed || !["stdout", "stderr"].contains(&stream) || !["P", "F"].contains(&tag) {
        return Err(format!("not a CRI log line: {line:?}").into());
    }
    Ok(Line {
        stream: stream.into(),
        full: tag == "F",
        text: text.into(),
    })
}

/// What a container wrote to one stream, put together again.
///
/// # Errors
/// As [`read`].
pub fn text(path: &Path, stream: &str) -> Result<String> {
    let mut whole = String::new();
    for line in read(path)?.into_iter().filter(|line| line.stream == stream) {
        whole += &line.text;
        if line.full {
            whole.push('\n');
        }
    }
    Ok(whole)
}

/// One line of a log file, with whatever bytes the container wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `stdout` or `stderr`.
    pub stream: &'static str,
    /// `true` for `F`: the container's line ends here.
    pub full: bool,
    pub content: Vec<u8>,
}

/// As [`read`], for large logs and for content that is no text.
///
/// # Errors
/// As [`read`].
pub fn parts(path: &Path) -> Result<Vec<Part>> {
    let bytes = std::fs::read(path).map_err(|error| format!("read log {}: {error}", path.display()))?;
    let Some(bytes) = bytes.strip_suffix(b"\n") else {
        return match bytes.is_empty() {
            true => Ok(Vec::new()),
            false => Err(format!("log {} ends within a line", path.display()).into()),
        };
    };
    let part = |line: &[u8]| {
        let (time, rest) = line.split_at_checked("2016-10-06T00:17:09.669794202Z ".len())?;
        let timed = time
            .iter()
            .zip(b"0000-00-00T00:00:00.000000000Z ")
            .all(|(found, form)| match form {
                b'0' => found.is_ascii_digit(),
                other => found == other,
            });
        let stream = ["stdout", "stderr"]
            .into_iter()
            .find(|name| rest.starts_with(name.as_bytes()))?;
        let (tag, content) = rest.get(stream.len()..)?.split_at_checked(3)?;
        let full = match tag {
            b" F " => true,
            b" P " => false,
            _ => return None,
        };
        timed.then(|| Part {
            stream,
            full,
            content: content.to_vec(),
        })
    };
    bytes
        .split(|byte| *byte == b'\n')
        .map(|line| part(line).ok_or_else(|| format!("not a CRI log line: {:?}", String::from_utf8_lossy(line)).into()))
        .collect()
}

/// Where a container of that pod logs.
pub fn path(pod: &wharf_proto::cri::PodSandboxConfig, container: &wharf_proto::cri::ContainerConfig) -> PathBuf {
    Path::new(&pod.log_directory).join(&container.log_path)
}
