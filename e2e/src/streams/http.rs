//! HTTP up to the upgrade.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{connect_url, split};
use crate::{Result, lab::Lab};

/// What a server said to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
}

impl Answer {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Sends a request to the URL's server, and reads the answer up to its headers.
///
/// # Errors
/// When nobody answers.
pub async fn upgrade(lab: &Lab, method: &str, url: &str, headers: &[(&str, &str)]) -> Result<(TcpStream, Answer)> {
    let (host, path) = split(url);
    let mut stream = connect_url(lab, url).await?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        // One by one: what follows belongs to another protocol.
        text.push(stream.read_u8().await?);
    }
    let text = String::from_utf8(text)?;
    let mut lines = text.lines();
    let code = lines.next().and_then(|line| line.split(' ').nth(1));
    let code = code.and_then(|code| code.parse().ok()).ok_or("no status line")?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Ok((stream, Answer { code, headers }))
}
