//! The person's own registry credentials: Docker's `config.json`, and the `docker-credential-*` programs it names.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use wharf_proto::cri;

use super::error::{Error, Result};

/// Docker Hub's name in references and in the file.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper may take: somebody may have to unlock the place where it keeps secrets.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest answer of a helper, in bytes; tokens of clouds have a few thousand.
const MAX_ANSWER: usize = 1 << 20;

/// The file, as it is.
pub struct DockerConfig {
    path: PathBuf,
    content: Map<String, Value>,
}

impl DockerConfig {
    /// Reads `$REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; absent is empty.
    pub fn load() -> Result<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let path = set("REGISTRY_AUTH_FILE")
            .or_else(|| set("DOCKER_CONFIG").map(|directory| directory.join("config.json")))
            .or_else(|| set("HOME").map(|home| home.join(".docker/config.json")))
            .ok_or_else(|| Error::new("neither HOME nor DOCKER_CONFIG says where credentials are kept"))?;
        Self::read(path)
    }

    fn read(path: PathBuf) -> Result<Self> {
        let content = match fs::read(&path) {
            Ok(bytes) => return Self::parse(path, &bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(Error::new(format!("read {}: {error}", path.display()))),
        };
        Ok(Self { path, content })
    }

    pub(super) fn parse(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        // The parser's message would quote what it read.
        let content = serde_json::from_slice(bytes)
            .map_err(|error| Error::new(format!("{} is no JSON object (line {})", path.display(), error.line())))?;
        Ok(Self { path, content })
    }

    /// The credentials for `repository` in `registry`, if there are any.
    ///
    /// # Errors
    /// When the program that keeps them fails, does not answer in time or makes no sense.
    pub async fn get(&self, registry: &str, repository: &str) -> Result<Option<cri::AuthConfig>> {
        let mut found = None;
        if let Some(helper) = self.helper(registry) {
            found = ask(&helper, key(registry)).await?;
        }
        if found.is_none() {
            found = self.stored(registry, repository);
        }
        Ok(found.map(|auth| cri::AuthConfig {
            server_address: registry.to_owned(),
            ..auth
        }))
    }

    /// Keeps credentials; returns where.
    pub async fn put(&mut self, registry: &str, user: &str, password: &str) -> Result<String> {
        if let Some(helper) = self.helper(registry) {
            let message = json!({"ServerURL": key(registry), "Username": user, "Secret": password});
            let (status, _) = call(&helper, "store", &message.to_string(), PATIENCE).await?;
            ended(&helper, status)?;
            return Ok(format!("docker-credential-{helper}"));
        }
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| Error::new(format!("{}: \"auths\" is no object", self.path.display())))?;
        // Under whatever name it was kept before; entries for parts of the registry stay.
        auths.retain(|name, _| rank(name, registry, "") != Some(0));
        let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
        auths.insert(key(registry).to_owned(), json!({ "auth": auth }));
        self.write()?;
        Ok(self.path.display().to_string())
    }

    /// Forgets the credentials for `registry`; says whether there were any.
    pub async fn remove(&mut self, registry: &str) -> Result<bool> {
        let mut had = false;
        if let Some(helper) = self.helper(registry) {
            had = ask(&helper, key(registry)).await?.is_some();
            if had {
                let (status, _) = call(&helper, "erase", key(registry), PATIENCE).await?;
                ended(&helper, status)?;
            }
        }
        if let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) {
            let before = auths.len();
            auths.retain(|name, _| host(name) != registry);
            if auths.len() != before {
                had = true;
                self.write()?;
            }
        }
        Ok(had)
    }

    /// The program that keeps the credentials for `registry`, if one does.
    pub(super) fn helper(&self, registry: &str) -> Option<String> {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(ToOwned::to_owned);
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|all| all.iter().find(|(name, _)| host(name) == registry));
        own.and_then(|(_, value)| text(value))
            .or_else(|| self.content.get("credsStore").and_then(text))
    }

    /// The entry that fits `repository` best (containers-auth.json(5): a registry, or a path below it).
    pub(super) fn stored(&self, registry: &str, repository: &str) -> Option<cri::AuthConfig> {
        let auths = self.content.get("auths")?.as_object()?;
        let fitting = auths
            .iter()
            .filter_map(|(name, entry)| rank(name, registry, repository).map(|rank| (rank, entry)));
        let (_, entry) = fitting.max_by_key(|(rank, _)| *rank)?;
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let auth = cri::AuthConfig {
            username: text("username"),
            password: text("password"),
            auth: text("auth"),
            identity_token: text("identitytoken"),
            registry_token: text("registrytoken"),
            ..Default::default()
        };
        (auth != cri::AuthConfig::default()).then_some(auth)
    }

    /// Replaces the file, readable by its owner only. A link stays one.
    fn write(&self) -> Result<()> {
        let wrong = |path: &Path, error: std::io::Error| Error::new(format!("write {}: {error}", path.display()));
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let parent = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|error| wrong(parent, error))?;
        let new = target.with_extension(format!("new.{}", std::process::id()));
        let mut text = serde_json::to_vec_pretty(&self.content).map_err(|error| Error::new(error.to_string()))?;
        text.push(b'\n');
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &text))
            .and_then(|()| fs::rename(&new, &target));
        written.map_err(|error| {
            let _ = fs::remove_file(&new);
            wrong(&self.path, error)
        })
    }
}

/// The name of a registry in the file.
fn key(registry: &str) -> &str {
    if registry == HUB { HUB_KEY } else { registry }
}

/// The registry of a name in the file, which may be a URL.
fn host(name: &str) -> &str {
    let rest = name.split_once("://").map_or(name, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        other => other,
    }
}

/// How well an entry's name fits: the bytes of its path below the registry; `None` if it is of something else. Names that are
/// URLs, as older clients of Docker wrote them, are of the whole registry.
fn rank(name: &str, registry: &str, repository: &str) -> Option<usize> {
    if host(name) != registry {
        return None;
    }
    let path = match name.split_once('/') {
        Some((_, path)) if !name.contains("://") && !path.ends_with('/') => path,
        _ => "",
    };
    let rest = repository.strip_prefix(path)?;
    (path.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

async fn ask(helper: &str, server: &str) -> Result<Option<cri::AuthConfig>> {
    let (status, output) = call(helper, "get", server, PATIENCE).await?;
    if !status.success() {
        // Helpers tell on stdout, in this sentence, that they have nothing.
        if String::from_utf8_lossy(&output).contains("credentials not found") {
            return Ok(None);
        }
        return ended(helper, status).map(|()| None);
    }
    let answer: Value = serde_json::from_slice(&output)
        .map_err(|_| Error::new(format!("docker-credential-{helper} answered something that is no JSON")))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Some(cri::AuthConfig {
        username: text("Username"),
        password: text("Secret"),
        ..Default::default()
    }))
}

/// Runs a helper; returns how it ended and what it printed. One that takes longer than `patience` is killed.
async fn call(helper: &str, verb: &str, input: &str, patience: Duration) -> Result<(ExitStatus, Vec<u8>)> {
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(Error::new(format!("{program} is not the name of a program")));
    }
    call_at(&program, verb, input, patience).await
}

async fn call_at(program: &str, verb: &str, input: &str, patience: Duration) -> Result<(ExitStatus, Vec<u8>)> {
    let failed = |error: std::io::Error| Error::new(format!("run {program}: {error}"));
    let mut child = Command::new(program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that does not read its input says why by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            let mut limited = stdout.take(MAX_ANSWER as u64 + 1);
            limited.read_to_end(&mut answer).await.map_err(failed)?;
        }
        if answer.len() > MAX_ANSWER {
            return Err(Error::new(format!("{program} answered more than {MAX_ANSWER} bytes")));
        }
        Ok((child.wait().await.map_err(failed)?, answer))
    };
    match tokio::time::timeout(patience, talk).await {
        Ok(done) => done,
        Err(_) => Err(Error::new(format!("{program} {verb} did not end within {patience:?}"))),
    }
}

fn ended(helper: &str, status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    Err(Error::new(format!("docker-credential-{helper} failed: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        DockerConfig {
            path: std::env::temp_dir().join(format!("wharf-docker-{}/config.json", std::process::id())),
            content: serde_json::from_str(text).unwrap(),
        }
    }

    #[tokio::test]
    async fn every_form_of_entry_is_found_by_its_registry() {
        let config = config(
            r#"{"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}, "h:5000": {"identitytoken": "i"}, "e": {}}}"#,
        );
        let hub = config.get("docker.io", "library/a").await.unwrap().unwrap();
        assert_eq!((hub.auth.as_str(), hub.server_address.as_str()), ("dTpw", "docker.io"));
        assert_eq!(config.get("h:5000", "a").await.unwrap().unwrap().identity_token, "i");
        assert!(config.get("e", "a").await.unwrap().is_none() && config.get("h", "a").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_stored_is_read_back_and_other_keys_stay() {
        let mut config = config(r#"{"HttpHeaders": {"a": "b"}}"#);
        config.put("docker.io", "u", "p:q").await.unwrap();
        config.put("h:5000", "v", "w").await.unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&config.path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = DockerConfig::read(config.path.clone()).unwrap();
        assert_eq!(again.get("docker.io", "a").await.unwrap().unwrap().auth, "dTpwOnE=");
        assert!(again.content.contains_key("HttpHeaders"));
        assert!(again.remove("h:5000").await.unwrap() && !again.remove("h:5000").await.unwrap());
        fs::remove_dir_all(config.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn the_entry_counts_whose_path_is_closest_to_the_repository() {
        let config = config(
            r#"{"auths": {"h": {"auth": "all"}, "h/team": {"auth": "team"}, "h/team/app": {"auth": "app"}, "o/x": {"auth": "x"},
                "https://u/v1/": {"auth": "url"}, "v/v2/": {"auth": "old"}}}"#,
        );
        for (registry, repository, expected) in [
            ("h", "other", "all"),
            ("h", "teamwork", "all"),
            ("h", "team/x", "team"),
            ("h", "team/app", "app"),
            ("h", "team/app/y", "app"),
            ("o", "x", "x"),
            ("o", "y", ""),
            ("u", "y", "url"),
            ("v", "y", "old"),
        ] {
            let found = config.stored(registry, repository).unwrap_or_default().auth;
            assert_eq!(found, expected, "{registry}/{repository}");
        }
    }

    #[tokio::test]
    async fn a_new_entry_takes_the_place_of_one_under_an_older_name_and_a_link_stays() {
        let mut config =
            config(r#"{"auths": {"https://h:5000/v1/": {"auth": "old"}, "h:5000/team": {"auth": "team"}}}"#);
        let directory = std::env::temp_dir().join(format!("wharf-docker-link-{}", std::process::id()));
        fs::create_dir_all(directory.join("real")).unwrap();
        fs::write(directory.join("real/config.json"), "{}").unwrap();
        config.path = directory.join("config.json");
        std::os::unix::fs::symlink("real/config.json", &config.path).unwrap();
        config.put("h:5000", "u", "p").await.unwrap();
        assert!(fs::symlink_metadata(&config.path).unwrap().is_symlink());
        let again = DockerConfig::read(directory.join("real/config.json")).unwrap();
        let auth = |repository: &str| again.stored("h:5000", repository).unwrap_or_default().auth;
        assert_eq!((auth("a").as_str(), auth("team/a").as_str()), ("dTpw", "team"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_helper_that_hangs_or_floods_is_ended_and_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("wharf-helper-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let begun = std::time::Instant::now();
        for (name, script, patience, expected) in [
            (
                "hangs",
                "exec sleep 1000",
                Duration::from_millis(50),
                "did not end within 50ms",
            ),
            ("floods", "exec cat /dev/zero", PATIENCE, "more than"),
        ] {
            let program = directory.join(format!("docker-credential-{name}"));
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            let error = call_at(&program.to_string_lossy(), "get", "h", patience)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
        assert!(begun.elapsed() < PATIENCE);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_registry_s_own_helper_comes_before_the_store() {
        let config = config(r#"{"credsStore": "all", "credHelpers": {"h:1": "own", "x": ""}}"#);
        assert_eq!(config.helper("h:1").as_deref(), Some("own"));
        assert_eq!(config.helper("x").as_deref(), Some("all"));
    }
}
