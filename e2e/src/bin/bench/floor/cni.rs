//! What the CNI programs take by themselves: the same programs with the same configuration, called one after another for a new
//! network namespace each, by nobody who does anything else. Runtimes that use them can't be faster than that.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use wharf_e2e::Result;

use crate::cycle::Steps;

/// How it is called among the endpoints.
pub const NAME: &str = "CNI programs";
const BIN: &str = "/usr/lib/cni";

/// A list of plugins.
#[derive(Clone)]
pub struct Programs {
    plugins: Vec<Value>,
    dir: PathBuf,
}

impl Programs {
    /// Those of the list at `path`; namespaces are held below `dir`.
    ///
    /// # Errors
    /// When it is no list.
    pub fn of(path: &Path, dir: &Path) -> Result<Self> {
        let list: Value = serde_json::from_slice(&std::fs::read(path)?)?;
        let plugins = list["plugins"].as_array().ok_or("the list has no plugins")?;
        let whole = |plugin: &Value| {
            let mut plugin = plugin.clone();
            plugin["cniVersion"] = list["cniVersion"].clone();
            plugin["name"] = list["name"].clone();
            plugin
        };
        Ok(Self {
            plugins: plugins.iter().map(whole).collect(),
            dir: dir.to_owned(),
        })
    }

    /// `pods` times ADD and DEL, one after another; the first is not counted.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn sequential(&self, pods: usize) -> Result<Vec<Steps>> {
        let mut all = Vec::new();
        for n in 0..=pods {
            all.push(self.life(format!("floor-{n}")).await?);
        }
        all.remove(0);
        Ok(all)
    }

    /// `count` times ADD and DEL at once.
    ///
    /// # Errors
    /// When a program fails.
    pub async fn parallel(&self, count: usize) -> Result<Vec<Steps>> {
        let mut set = tokio::task::JoinSet::new();
        for n in 0..count {
            let programs = self.clone();
            set.spawn(async move { programs.life(format!("floor-parallel-{n}")).await });
        }
        let mut all = Vec::new();
        while let Some(done) = set.join_next().await {
            all.push(done??);
        }
        Ok(all)
    }

    async fn life(&self, id: String) -> Result<Steps> {
        let netns = self.dir.join(&id);
        let begin = Instant::now();
        let held = netns.clone();
        tokio::task::spawn_blocking(move || hold_new_namespace(&held)).await??;
        let mut result = Value::Null;
        for plugin in &self.plugins {
            result = call("ADD", &id, &netns, plugin, &result).await?;
        }
        let added = Instant::now();
        for plugin in self.plugins.iter().rev() {
            call("DEL", &id, &netns, plugin, &result).await?;
        }
        umount2(&netns, MntFlags::MNT_DETACH)?;
        std::fs::remove_file(&netns)?;
        let ms = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1000.0;
        let end = Instant::now();
        Ok(vec![
            ("RunPodSandbox".to_owned(), ms(begin, added)),
            ("StopPodSandbox".to_owned(), ms(added, end)),
            ("**both**".to_owned(), ms(begin, end)),
        ])
    }
}

/// A new network namespace that `path` refers to.
fn hold_new_namespace(path: &Path) -> Result {
    File::create(path)?;
    let path = path.to_owned();
    // A thread of its own: it stays in the namespace.
    let made = std::thread::spawn(move || -> nix::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let none: Option<&str> = None;
        mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)
    });
    made.join().map_err(|_| "the thread died")??;
    Ok(())
}

async fn call(command: &str, id: &str, netns: &Path, plugin: &Value, previous: &Value) -> Result<Value> {
    let kind = plugin["type"].as_str().ok_or("a plugin has no type")?;
    let mut config = plugin.clone();
    if !previous.is_null() {
        config["prevResult"] = previous.clone();
    }
    let mut child = tokio::process::Command::new(Path::new(BIN).join(kind))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", id)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", BIN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().ok_or("no standard input")?;
    input.write_all(config.to_string().as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        return Err(format!("{kind} {command}: {}: {said}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout).unwrap_or(json!(null)))
}
