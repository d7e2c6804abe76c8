//! Running one plugin: environment and standard input in, a JSON answer out, within a time limit.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::netns::{Error, Result};

/// No sane answer is longer.
const ANSWER: u64 = 1 << 20;
/// How much of garbage is shown, in characters.
const SHOWN: usize = 200;
/// CNI's error code for a version that the plugin does not speak.
const INCOMPATIBLE: u64 = 1;
/// How often and how long apart a program that is just being replaced is tried (ETXTBSY), as libcni does.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Where plugins are, and how long they may take.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    pub(super) bin_dirs: Vec<PathBuf>,
    pub(super) limit: Duration,
}

/// What all plugins of an operation have in common. Empty is unset: STATUS, GC and VERSION are about no pod.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Call<'a> {
    /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC` or `VERSION`.
    pub(super) command: &'static str,
    pub(super) container_id: &'a str,
    /// Empty for DEL if it is gone.
    pub(super) netns: &'a str,
    /// The pod's device.
    pub(super) device: &'a str,
    pub(super) args: &'a str,
}

/// A plugin's own complaint.
#[derive(Debug)]
pub(super) struct Complaint {
    /// CNI's number for it; 0 if it gave none.
    code: u64,
    text: String,
}

impl Runner {
    /// Runs the plugin `kind` with `config` and gives its answer; an empty one is `null`.
    ///
    /// # Errors
    /// Names the plugin, the namespace, and what the plugin said or failed to say.
    pub(super) async fn run(&self, call: Call<'_>, kind: &str, config: &Value) -> Result<Value> {
        let failed = |reason: String| call.failed(kind, reason);
        match self.finish(call, kind, config).await? {
            Ok(answer) => Ok(answer),
            Err(complaint) if complaint.code == INCOMPATIBLE && call.command != "VERSION" => {
                let known = self.versions(kind).await.unwrap_or_default();
                Err(failed(match known.is_empty() {
                    true => complaint.text,
                    false => format!("{} (it speaks {})", complaint.text, known.join(", ")),
                }))
            }
            Err(complaint) => Err(failed(complaint.text)),
        }
    }

    /// The versions of the protocol that the plugin speaks.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub(super) async fn versions(&self, kind: &str) -> Result<Vec<String>> {
        let call = Call {
            command: "VERSION",
            ..Call::default()
        };
        let answer = match self.finish(call, kind, &json!({"cniVersion": "1.0.0"})).await? {
            Ok(answer) => answer,
            Err(complaint) => return Err(call.failed(kind, complaint.text)),
        };
        let versions = answer.get("supportedVersions").and_then(Value::as_array);
        Ok(versions
            .into_iter()
            .flatten()
            .filter_map(|version| version.as_str().map(str::to_owned))
            .collect())
    }

    async fn finish(
        &self,
        call: Call<'_>,
        kind: &str,
        config: &Value,
    ) -> Result<std::result::Result<Value, Complaint>> {
        let failed = |reason: String| call.failed(kind, reason);
        let path = self
            .find(kind)
            .await
            .ok_or_else(|| failed(format!("not found in {}", join(&self.bin_dirs, ", "))))?;
        let mut child = self
            .start(call, &path)
            .await
            .map_err(|source| failed(format!("start {}: {source}", path.display())))?;
        let mut group = Group(child.id());
        let input = config.to_string();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut complaint = Vec::new();
        let finished = tokio::time::timeout(self.limit, async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A plugin may answer without reading its input.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            let mut answer = Vec::new();
            let ((), (), ()) = tokio::join!(feed, read(stdout, &mut answer), read(stderr, &mut complaint));
            child.wait().await.map(|status| (status, answer))
        })
        .await;
        match finished {
            Ok(Ok((status, answer))) => {
                // Its number may belong to others from now on.
                group.0 = None;
                Ok(judge(status, &answer, &complaint))
            }
            Ok(Err(source)) => Err(failed(format!("wait: {source}"))),
            Err(_) => Err(Error::CniTimeout {
                command: call.command,
                plugin: kind.to_owned(),
                netns: call.netns.to_owned(),
                limit: self.limit,
                stderr: shown(&complaint),
            }),
        }
    }

    /// Starts the program. One that is being written to is tried again: plugins are replaced while nodes run.
    async fn start(&self, call: Call<'_>, path: &Path) -> std::io::Result<Child> {
        let mut tries = 0;
        loop {
            let started = self
                .command(call, path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0)
                .kill_on_drop(true)
                .spawn();
            match started {
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) && tries < BUSY_TRIES => {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    async fn find(&self, kind: &str) -> Option<PathBuf> {
        for dir in &self.bin_dirs {
            let path = dir.join(kind);
            if tokio::fs::metadata(&path).await.is_ok_and(|data| data.is_file()) {
                return Some(path);
            }
        }
        None
    }

    fn command(&self, call: Call<'_>, path: &Path) -> Command {
        let mut command = Command::new(path);
        command
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("CNI_COMMAND", call.command)
            .env("CNI_PATH", join(&self.bin_dirs, ":"));
        if !call.container_id.is_empty() {
            command
                .env("CNI_CONTAINERID", call.container_id)
                // Set for DEL even when it is empty: that says that it is gone.
                .env("CNI_NETNS", call.netns)
                .env("CNI_IFNAME", call.device)
                .env("CNI_ARGS", call.args);
        }
        command
    }
}

impl Call<'_> {
    pub(super) fn failed(&self, kind: &str, reason: String) -> Error {
        Error::CniPlugin {
            command: self.command,
            plugin: kind.to_owned(),
            netns: self.netns.to_owned(),
            reason,
        }
    }
}

fn join(dirs: &[PathBuf], separator: &str) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(separator)
}

/// The process group of a plugin that was not waited for; it is killed when nobody waits any more or the time is over.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn read(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) {
    if let Some(from) = from {
        // What was read before an error is what there is.
        let _ = from.take(ANSWER).read_to_end(into).await;
    }
}

/// What a plugin said, from its end and its outputs.
pub(super) fn judge(status: ExitStatus, answer: &[u8], complaint: &[u8]) -> std::result::Result<Value, Complaint> {
    let text = String::from_utf8_lossy(answer);
    let value = if text.trim().is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_str::<Value>(&text)
    };
    let wrote = match shown(complaint) {
        text if text.is_empty() => text,
        text => format!("; it wrote: {text}"),
    };
    if status.success() {
        return value.map_err(|_| Complaint {
            code: 0,
            text: format!("the answer is not JSON: {}{wrote}", shown(answer)),
        });
    }
    let value = value.unwrap_or_default();
    let said = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
    let text = match (said("msg").as_str(), said("details").as_str()) {
        ("", _) if complaint.is_empty() => format!("{status}: {}", shown(answer)),
        ("", _) => format!("{status}: {}", shown(complaint)),
        (message, "") => format!("{message}{wrote}"),
        (message, details) => format!("{message}: {details}{wrote}"),
    };
    Err(Complaint {
        code: value.get("code").and_then(Value::as_u64).unwrap_or(0),
        text,
    })
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(SHOWN).collect()
}
