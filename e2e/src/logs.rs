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

/// Where a container of that pod logs.
pub fn path(pod: &wharf_proto::cri::PodSandboxConfig, container: &wharf_proto::cri::ContainerConfig) -> PathBuf {
    Path::new(&pod.log_directory).join(&container.log_path)
}
