//! Registries with a will of their own: proxies before the real one. One sends a byte a second, and lets through as they come
//! manifests, and the parts of a blob that are asked for by their first and last byte; one lets all through; one knows no ranges.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::Result;

/// Bodies up to this size come at once: manifests, configurations, errors.
const SMALL: usize = 4 << 10;

/// What such a registry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// A byte a second.
    Trickle,
    /// Nothing.
    Forward,
    /// Answers with the whole, whatever part is asked for.
    Rangeless,
}

impl Manner {
    /// Its name as an argument of `lab`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Trickle => "trickle",
            Self::Forward => "forward",
            Self::Rangeless => "rangeless",
        }
    }
}

/// Serves what `upstream` has at `address` until the process is ended. `told` hears `ready`, then `trickles` for each body that comes slowly, and
/// `gone` when its reader has left.
///
/// # Errors
/// When it can't listen.
pub fn serve(address: &str, upstream: &str, manner: Manner, told: fn(&str)) -> Result {
    let listener = TcpListener::bind(address)?;
    told("ready");
    for client in listener.incoming() {
        let (client, upstream) = (client?, upstream.to_owned());
        std::thread::spawn(move || {
            // A client that leaves is an error here, and none of the server.
            let _ = answer(client, &upstream, manner, told);
        });
    }
    Ok(())
}

/// Answers one request and closes the connection.
fn answer(mut client: TcpStream, upstream: &str, manner: Manner, told: fn(&str)) -> std::io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let kept = head.lines().filter(|line| {
        let line = line.to_ascii_lowercase();
        let ours = ["connection:", "host:"].iter().any(|name| line.starts_with(name));
        let range = manner == Manner::Rangeless && line.starts_with("range:");
        !line.is_empty() && !ours && !range
    });
    let request: Vec<&str> = kept.collect();
    let is_part = head.lines().any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("range:") && !line.trim_end().ends_with('-')
    });
    let host = upstream;
    let mut upstream = TcpStream::connect(host)?;
    write!(
        upstream,
        "{}\r\nHost: {host}\r\nConnection: close\r\n\r\n",
        request.join("\r\n")
    )?;
    let mut response = Vec::new();
    upstream.read_to_end(&mut response)?;
    let body = response
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map_or(response.len(), |at| at + 4);
    let (head, body) = response.split_at(body);
    client.write_all(head)?;
    if manner != Manner::Trickle || is_part || body.len() <= SMALL {
        return client.write_all(body);
    }
    told("trickles");
    let sent = body.iter().try_for_each(|byte| {
        client.write_all(std::slice::from_ref(byte))?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    });
    told("gone");
    sent
}
