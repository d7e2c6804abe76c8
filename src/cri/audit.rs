//! Who asked for what: a line of JSON for each call that changes something (`[audit]`).
//!
//! Whoever may use the socket is root on this node, so this is no fence; it tells afterwards who it was. A line has the process
//! behind the connection as the kernel knew it when it connected (SO_PEERCRED), the method, the object, and the answer's
//! code. Nothing else of a request is written: environments, commands' arguments and credentials stay out.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    time::Duration,
};

use serde_json::{Map, Value, json};
use tokio::net::unix::UCred;
use wharf_proto::json as proto_json;

use crate::store;

/// Lines that may wait for the disk. What comes when they are that many is not written, and counted.
const WAITING: usize = 4096;

/// Bytes before a message on the wire: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Fields of requests that name what they are about, one level deep. No field with a secret has such a name.
const NAMES: [&str; 10] = [
    "podSandboxId",
    "containerId",
    "image",
    "images",
    "name",
    "registry",
    "signal",
    "repair",
    "timeout",
    "runtimeHandler",
];

/// The file's writer. Clones write to the same file.
#[derive(Debug, Clone)]
pub(super) struct Audit {
    lines: SyncSender<Line>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Line {
    Call {
        time: i64,
        peer: Option<UCred>,
        method: String,
        object: Value,
        code: u16,
        taken: Duration,
    },
    /// The file may have been moved away.
    Reopen,
}

/// One call that has been answered.
#[derive(Debug)]
pub(super) struct Call {
    pub peer: Option<UCred>,
    /// The request's path.
    pub path: String,
    /// By [`object`].
    pub object: Value,
    pub code: u16,
    pub taken: Duration,
}

impl Audit {
    /// Opens `file` for lines at its end, mode 0600, and starts the thread that writes. The thread ends when the last clone is
    /// dropped.
    ///
    /// # Errors
    /// When the file can't be opened, or there can't be a thread.
    pub fn open(file: &Path) -> io::Result<Audit> {
        let (lines, waiting) = mpsc::sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            path: file.to_owned(),
            file: open(file)?,
            lost: Arc::clone(&lost),
        };
        std::thread::Builder::new()
            .name("wharf-audit".into())
            .spawn(move || writer.run(&waiting))?;
        Ok(Audit { lines, lost })
    }

    /// Writes a line about a call. Waits for nothing.
    pub fn tell(&self, call: Call) {
        self.send(Line::Call {
            time: store::now(),
            peer: call.peer,
            method: call.path.rsplit('/').next().unwrap_or_default().to_owned(),
            object: call.object,
            code: call.code,
            taken: call.taken,
        });
    }

    /// Opens the file anew: a rotation has moved the old one away.
    pub fn reopen(&self) {
        self.send(Line::Reopen);
    }

    fn send(&self, line: Line) {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.lines.try_send(line) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

struct Writer {
    path: PathBuf,
    file: File,
    lost: Arc<AtomicU64>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Line>) {
        while let Ok(line) = waiting.recv() {
            let done = match line {
                Line::Reopen => open(&self.path).map(|file| self.file = file),
                Line::Call {
                    time,
                    peer,
                    method,
                    object,
                    code,
                    taken,
                } => {
                    let pid = peer.and_then(|peer| peer.pid());
                    let line = json!({
                        "time": stamp(time),
                        "pid": pid,
                        "uid": peer.map(|peer| peer.uid()),
                        "gid": peer.map(|peer| peer.gid()),
                        "program": pid.and_then(program),
                        "method": method,
                        "object": object,
                        "code": code,
                        "milliseconds": u64::try_from(taken.as_millis()).unwrap_or(u64::MAX),
                    });
                    self.write(&line)
                }
            };
            if let Err(error) = done {
                tracing::error!(file = %self.path.display(), %error, "a line of the audit log is lost");
            }
        }
    }

    fn write(&mut self, line: &Value) -> io::Result<()> {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut text = String::new();
        if lost > 0 {
            text = format!("{}\n", json!({ "time": stamp(store::now()), "lost": lost }));
        }
        text.push_str(&format!("{line}\n"));
        // One write, so that a line is never in another.
        self.file.write_all(text.as_bytes())
    }
}

/// RFC 3339, UTC.
fn stamp(nanos: i64) -> String {
    jiff::Timestamp::from_nanosecond(nanos.into()).map_or_else(|_| String::new(), |time| time.to_string())
}

/// The name of a process that may have ended; None then.
fn program(pid: i32) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// What a request of the method at `path` is about, from its bytes on the wire. Null where that is not known.
pub(super) fn object(path: &str, bytes: &[u8]) -> Value {
    let Some((0, message)) = bytes.split_at_checked(PREFIX).map(|(prefix, rest)| (prefix[0], rest)) else {
        return Value::Null;
    };
    let Some(Value::Object(request)) = proto_json::request(path, message) else {
        return Value::Null;
    };
    let mut found = Map::new();
    for name in NAMES {
        match request.get(name) {
            Some(Value::Object(image)) => {
                if let Some(image) = image.get("image") {
                    found.insert(name.to_owned(), image.clone());
                }
            }
            Some(value) => drop(found.insert(name.to_owned(), value.clone())),
            None => {}
        }
    }
    // Of a command the program alone: arguments may be secrets.
    if let Some(first) = request.get("cmd").and_then(|cmd| cmd.get(0)) {
        found.insert("program".to_owned(), first.clone());
    }
    if let Some(Value::Object(config)) = request.get("config") {
        for (name, value) in config.get("metadata").and_then(Value::as_object).into_iter().flatten() {
            found.insert(name.clone(), value.clone());
        }
        if let Some(image) = config.get("image").and_then(|image| image.get("image")) {
            found.insert("image".to_owned(), image.clone());
        }
    }
    Value::Object(found)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use wharf_proto::cri as pb;

    use super::*;

    fn wire(message: &impl prost::Message) -> Vec<u8> {
        let mut bytes = vec![0; PREFIX];
        bytes.extend(message.encode_to_vec());
        bytes
    }

    #[test]
    fn a_request_is_told_by_what_it_is_about_and_no_secret() {
        let pull = pb::PullImageRequest {
            image: Some(pb::ImageSpec {
                image: "r.example/a:1".into(),
                ..Default::default()
            }),
            auth: Some(pb::AuthConfig {
                password: "hidden".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = object("/runtime.v1.ImageService/PullImage", &wire(&pull));
        assert_eq!(told, json!({ "image": "r.example/a:1" }));
        let exec = pb::ExecSyncRequest {
            container_id: "c1".into(),
            cmd: vec!["login".into(), "--password=hidden".into()],
            ..Default::default()
        };
        let told = object("/runtime.v1.RuntimeService/ExecSync", &wire(&exec));
        assert_eq!(told, json!({ "containerId": "c1", "program": "login" }));
        let create = pb::CreateContainerRequest {
            pod_sandbox_id: "p1".into(),
            config: Some(pb::ContainerConfig {
                metadata: Some(pb::ContainerMetadata {
                    name: "web".into(),
                    attempt: 0,
                }),
                envs: vec![pb::KeyValue {
                    key: "TOKEN".into(),
                    value: "hidden".into(),
                }],
                ..Default::default()
            }),
            ..Default::default()
        };
        let told = object("/runtime.v1.RuntimeService/CreateContainer", &wire(&create));
        assert_eq!(told, json!({ "podSandboxId": "p1", "name": "web" }));
        assert_eq!(object("/runtime.v1.RuntimeService/Nothing", &wire(&exec)), Value::Null);
        assert_eq!(object("/runtime.v1.RuntimeService/ExecSync", b"\x01"), Value::Null);
    }

    #[test]
    fn lines_go_to_the_file_that_is_there_after_a_rotation() {
        let dir = std::env::temp_dir().join(format!("wharf-audit-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = dir.join("audit.log");
        let audit = Audit::open(&file).unwrap();
        let call = |path: &str| Call {
            peer: None,
            path: path.into(),
            object: Value::Null,
            code: 0,
            taken: Duration::ZERO,
        };
        audit.tell(call("/a/First"));
        std::fs::rename(&file, dir.join("old")).unwrap();
        audit.reopen();
        audit.tell(call("/a/Second"));
        drop(audit);
        let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
        // The thread ends after the last line.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while !read("audit.log").contains("Second") {
            assert!(
                std::time::Instant::now() < end,
                "{} | {}",
                read("old"),
                read("audit.log")
            );
            std::thread::yield_now();
        }
        assert!(format!("{}{}", read("old"), read("audit.log")).contains("\"method\":\"First\""));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
