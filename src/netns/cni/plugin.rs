//! Running one plugin: environment and standard input in, a JSON answer out, within a time limit.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::netns::{Error, Result};

/// No sane answer is longer.
const ANSWER: u64 = 1 << 20;
/// How much of garbage is shown, in characters.
const SHOWN: usize = 200;

/// What all plugins of an operation have in common.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// `ADD` or `DEL`.
    pub(super) command: &'static str,
    pub(super) container_id: &'a str,
    /// Empty if it is gone.
    pub(super) netns: &'a str,
    pub(super) args: &'a str,
    pub(super) bin_dirs: &'a [PathBuf],
    pub(super) limit: Duration,
}

impl Call<'_> {
    /// Runs the plugin `kind` with `config` and gives its answer; an empty one is `null`.
    ///
    /// # Errors
    /// Names the plugin, the namespace, and what the plugin said or failed to say.
    pub(super) async fn run(&self, kind: &str, config: &Value) -> Result<Value> {
        let failed = |reason: String| Error::CniPlugin {
            command: self.command,
            plugin: kind.to_owned(),
            netns: self.netns.to_owned(),
            reason,
        };
        let path = self.find(kind).await.ok_or_else(|| {
            failed(format!(
                "not found in {}",
                self.bin_dirs
                    .iter()
                    .map(|d| d.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            ))
        })?;
        let mut child = self
            .environment(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
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
                judge(status, &answer, &complaint).map_err(failed)
            }
            Ok(Err(source)) => Err(failed(format!("wait: {source}"))),
            Err(_) => Err(Error::CniTimeout {
                command: self.command,
                plugin: kind.to_owned(),
                netns: self.netns.to_owned(),
                limit: self.limit,
                stderr: shown(&complaint),
            }),
        }
    }

    async fn find(&self, kind: &str) -> Option<PathBuf> {
        for dir in self.bin_dirs {
            let path = dir.join(kind);
            if tokio::fs::metadata(&path).await.is_ok_and(|data| data.is_file()) {
                return Some(path);
            }
        }
        None
    }

    fn environment(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        let dirs: Vec<_> = self.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        command
            .env_clear()
            .env(
                "PATH",
                std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()),
            )
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", super::DEVICE)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", dirs.join(":"));
        command
    }
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
pub(super) fn judge(status: ExitStatus, answer: &[u8], complaint: &[u8]) -> std::result::Result<Value, String> {
    let text = String::from_utf8_lossy(answer);
    let value = if text.trim().is_empty() {
        Ok(Value::Null)
    } else {
        serde_json::from_str::<Value>(&text)
    };
    if status.success() {
        return value.map_err(|_| format!("the answer is not JSON: {}", shown(answer)));
    }
    let said = |key: &str| {
        value
            .as_ref()
            .ok()
            .and_then(|v| v.get(key))
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let (message, details) = (said("msg"), said("details"));
    Err(match (message.as_str(), details.as_str()) {
        ("", _) => {
            let rest = if complaint.is_empty() {
                shown(answer)
            } else {
                shown(complaint)
            };
            format!("{status}: {rest}")
        }
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}: {details}"),
    })
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().chars().take(SHOWN).collect()
}
