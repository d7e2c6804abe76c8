//! A proxy before a real registry that does to its answers what networks, load balancers and registries do: it loses, delays, cuts,
//! redirects and rewrites them, wants tokens, and writes down what it was asked.
//!
//! What it does stands in a file of JSON, a [`Rule`] each, which is read for every request. The first rule that fits and was not
//! used up counts. It also is an HTTP proxy, for requests with whole addresses and for CONNECT, whatever host they name.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::Result;

/// A request or an answer: its first line, its headers, its body.
struct Message {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

struct Meddler {
    address: String,
    upstream: String,
    rules: PathBuf,
    log: PathBuf,
    /// How often a rule was used, by its text.
    used: Mutex<HashMap<String, u64>>,
    /// Tokens that were given out, and how many requests they are good for.
    tokens: Mutex<HashMap<String, u64>>,
}

/// Serves at `address` what `upstream` has until the process is ended, by the rules in the file `rules`; what it is asked goes to
/// `log`, an object of JSON a line. `told` hears `ready`.
///
/// A rule has `method` and `path` (a part of it, with the query), for which it counts, `times` (for ever without), and one of
/// - `status` with `headers`: the answer.
/// - `cut`: bytes of the answer's body after which the connection ends; `close`: it ends after so many bytes of the request's
///   body have gone on to the registry.
/// - `slow`: bytes of the body that come in a second.
/// - `redirect`: what the path is put behind, for an answer 307.
/// - `location`: `relative` or `foreign`, what becomes of the answer's Location.
/// - `token`: wants a token, which is good for so many requests, of the realm `/token` of this server; `user` and `password` get
///   one there, as does `identity`, a refresh token.
///
/// # Errors
/// When it can't listen.
pub fn serve(address: &str, upstream: &str, rules: &Path, log: &Path, told: fn(&str)) -> Result {
    let listener = TcpListener::bind(address)?;
    told("ready");
    let meddler = Arc::new(Meddler {
        address: address.to_owned(),
        upstream: upstream.to_owned(),
        rules: rules.to_owned(),
        log: log.to_owned(),
        used: Mutex::default(),
        tokens: Mutex::default(),
    });
    for client in listener.incoming() {
        let (client, meddler) = (client?, meddler.clone());
        std::thread::spawn(move || {
            // A client that leaves is an error here, and none of the server.
            let _ = meddler.answer(client);
        });
    }
    Ok(())
}

impl Meddler {
    fn answer(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut request = Message::read(&mut client)?;
        let mut words = request.line.split(' ').map(ToOwned::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        self.write_down(&method, &target, &request)?;
        if method == "CONNECT" {
            let upstream = TcpStream::connect(&self.upstream)?;
            client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
            return both_ways(client, upstream);
        }
        let path = match target.strip_prefix("http://") {
            Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]).to_owned(),
            None => target.clone(),
        };
        request.line = format!("{method} {path} HTTP/1.1");
        let rules: Vec<Value> = serde_json::from_slice(&std::fs::read(&self.rules)?).unwrap_or_default();
        if let Some(rule) = rules.iter().find(|rule| !rule["token"].is_null())
            && let Some(answer) = self.authenticate(rule, &path, &request)
        {
            return client.write_all(&answer.bytes(method == "HEAD"));
        }
        let rule = rules.iter().find(|rule| self.takes(rule, &method, &path));
        let nothing = Value::Null;
        let rule = rule.unwrap_or(&nothing);
        if let Some(status) = rule["status"].as_u64() {
            let mut answer = Message::answer(status, b"{}");
            for (name, value) in rule["headers"].as_object().into_iter().flatten() {
                answer
                    .headers
                    .push((name.clone(), value.as_str().unwrap_or_default().to_owned()));
            }
            return client.write_all(&answer.bytes(method == "HEAD"));
        }
        if let Some(place) = rule["redirect"].as_str() {
            let mut answer = Message::answer(307, b"");
            answer.headers.push(("location".into(), format!("{place}{path}")));
            return client.write_all(&answer.bytes(method == "HEAD"));
        }
        let mut upstream = TcpStream::connect(&self.upstream)?;
        if let Some(bytes) = rule["close"].as_u64() {
            // The registry hears what has come until then, and has dealt with it before the client hears of the end.
            let whole = request.bytes(false);
            let end = whole.len() - request.body.len() + usize::try_from(bytes).unwrap_or(0).min(request.body.len());
            upstream.write_all(&whole[..end])?;
            upstream.shutdown(Shutdown::Write)?;
            let _ = upstream.read_to_end(&mut Vec::new());
            return Ok(());
        }
        upstream.write_all(&request.bytes(false))?;
        let mut answer = Message::read_answer(&mut upstream, method == "HEAD")?;
        for (name, value) in &mut answer.headers {
            if name.eq_ignore_ascii_case("location") && !rule["location"].is_null() {
                let path = value.find("/v2/").map_or("", |at| &value[at..]).to_owned();
                *value = match rule["location"].as_str() {
                    Some("relative") => path,
                    _ => format!("http://{}{path}", self.upstream),
                };
            }
        }
        let bytes = answer.bytes(method == "HEAD");
        let end = match rule["cut"].as_u64() {
            Some(cut) => {
                bytes.len().saturating_sub(answer.body.len()) + usize::try_from(cut).unwrap_or(0).min(answer.body.len())
            }
            None => bytes.len(),
        };
        let Some(speed) = rule["slow"].as_u64() else {
            return client.write_all(&bytes[..end]);
        };
        let (head, body) = bytes[..end].split_at(bytes.len().saturating_sub(answer.body.len()).min(end));
        client.write_all(head)?;
        for piece in body.chunks((usize::try_from(speed).unwrap_or(1) / 20).max(1)) {
            client.write_all(piece)?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Whether `rule` counts for the request, which uses it.
    fn takes(&self, rule: &Value, method: &str, path: &str) -> bool {
        let fits = |name: &str, has: &dyn Fn(&str) -> bool| rule[name].as_str().is_none_or(has);
        if !rule["token"].is_null() || !fits("method", &|one| one == method) || !fits("path", &|one| path.contains(one))
        {
            return false;
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let count = used.entry(rule.to_string()).or_default();
        *count += 1;
        rule["times"].as_u64().is_none_or(|times| *count <= times)
    }

    /// The answer to one who has no token, or wants one.
    fn authenticate(&self, rule: &Value, path: &str, request: &Message) -> Option<Message> {
        use base64::Engine as _;
        let text = |name: &str| rule[name].as_str().unwrap_or_default().to_owned();
        let shown = request.header("authorization");
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if path.starts_with("/token") {
            let pair = base64::prelude::BASE64_STANDARD.encode(format!("{}:{}", text("user"), text("password")));
            let form = String::from_utf8_lossy(&request.body).into_owned();
            let identity = format!("refresh_token={}", text("identity"));
            if shown != format!("Basic {pair}")
                && !(form.contains("grant_type=refresh_token") && form.contains(&identity))
            {
                return Some(Message::answer(401, b"{}"));
            }
            let token = format!("token-{}", tokens.len());
            tokens.insert(token.clone(), rule["token"].as_u64().unwrap_or(u64::MAX));
            let json = json!({ "access_token": token, "expires_in": 300 }).to_string();
            return Some(Message::answer(200, json.as_bytes()));
        }
        let left = shown.strip_prefix("Bearer ").and_then(|token| tokens.get_mut(token));
        if let Some(left) = left.filter(|left| **left > 0) {
            *left -= 1;
            return None;
        }
        let mut answer = Message::answer(401, b"{}");
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"e2e\"", self.address);
        answer.headers.push(("www-authenticate".into(), challenge));
        Some(answer)
    }

    fn write_down(&self, method: &str, target: &str, request: &Message) -> std::io::Result<()> {
        let line = json!({
            "at": self.address, "method": method, "target": target, "host": request.header("host"),
            "authorization": request.header("authorization"), "proxy": request.header("proxy-authorization"),
            "range": request.header("range"), "bytes": request.body.len(),
        });
        let mut file = std::fs::File::options().create(true).append(true).open(&self.log)?;
        file.write_all(format!("{line}\n").as_bytes())
    }
}

impl Message {
    fn answer(status: u64, body: &[u8]) -> Self {
        Self {
            line: format!("HTTP/1.1 {status} Meddled"),
            headers: vec![("content-type".into(), "application/json".into())],
            body: body.to_vec(),
        }
    }

    fn read(stream: &mut TcpStream) -> std::io::Result<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut message = Self {
            line,
            headers,
            body: Vec::new(),
        };
        message.body = vec![0; message.header("content-length").parse().unwrap_or(0)];
        if message.line.starts_with("HTTP/") {
            return Ok(message);
        }
        stream.read_exact(&mut message.body)?;
        Ok(message)
    }

    /// An answer of a server that closes the connection behind it.
    fn read_answer(stream: &mut TcpStream, head: bool) -> std::io::Result<Self> {
        let mut message = Self::read(stream)?;
        let promised = message.body.len();
        message.body.clear();
        if head {
            message.body.resize(promised, 0);
        } else {
            stream.read_to_end(&mut message.body)?;
        }
        Ok(message)
    }

    fn header(&self, name: &str) -> String {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// As it is sent, closing the connection; without the body, whose length is told, to one who wants only the head.
    fn bytes(&self, head: bool) -> Vec<u8> {
        let mut text = format!(
            "{}\r\nconnection: close\r\ncontent-length: {}\r\n",
            self.line,
            self.body.len()
        );
        for (name, value) in &self.headers {
            let own = [
                "connection",
                "content-length",
                "transfer-encoding",
                "proxy-authorization",
            ];
            if !own.contains(&name.to_ascii_lowercase().as_str()) {
                text += &format!("{name}: {value}\r\n");
            }
        }
        let mut bytes = format!("{text}\r\n").into_bytes();
        if !head {
            bytes.extend_from_slice(&self.body);
        }
        bytes
    }
}

/// Passes bytes on until both have closed.
fn both_ways(mut client: TcpStream, mut upstream: TcpStream) -> std::io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(60)))?;
    let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
    let there = std::thread::spawn(move || {
        let done = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
        done
    });
    std::io::copy(&mut upstream, &mut client)?;
    client.shutdown(Shutdown::Write)?;
    let _ = there.join();
    Ok(())
}
