//! The person's own registry credentials: Docker's `config.json`, and the `docker-credential-*` programs it names.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use wharf_proto::cri;

use super::error::{Error, Result};

/// Docker Hub's name in references and in the file.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

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

    /// The credentials for `registry`, if there are any.
    pub async fn get(&self, registry: &str) -> Result<Option<cri::AuthConfig>> {
        let mut found = None;
        if let Some(helper) = self.helper(registry) {
            found = ask(&helper, key(registry)).await?;
        }
        if found.is_none() {
            found = self.stored(registry);
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
            call(&helper, "store", &message.to_string())
                .await
                .and_then(|output| ended(&helper, &output))?;
            return Ok(format!("docker-credential-{helper}"));
        }
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        let auths = auths
            .as_object_mut()
            .ok_or_else(|| Error::new(format!("{}: \"auths\" is no object", self.path.display())))?;
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
                call(&helper, "erase", key(registry))
                    .await
                    .and_then(|output| ended(&helper, &output))?;
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

    pub(super) fn stored(&self, registry: &str) -> Option<cri::AuthConfig> {
        let auths = self.content.get("auths")?.as_object()?;
        let (_, entry) = auths.iter().find(|(name, _)| host(name) == registry)?;
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

    /// Replaces the file, readable by its owner only.
    fn write(&self) -> Result<()> {
        let wrong = |path: &Path, error: std::io::Error| Error::new(format!("write {}: {error}", path.display()));
        let parent = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|error| wrong(parent, error))?;
        let new = self.path.with_extension(format!("new.{}", std::process::id()));
        let mut text = serde_json::to_vec_pretty(&self.content).map_err(|error| Error::new(error.to_string()))?;
        text.push(b'\n');
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| std::io::Write::write_all(&mut file, &text))
            .and_then(|()| fs::rename(&new, &self.path));
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

async fn ask(helper: &str, server: &str) -> Result<Option<cri::AuthConfig>> {
    let output = call(helper, "get", server).await?;
    if !output.status.success() {
        // Helpers tell on stdout, in this sentence, that they have nothing.
        if String::from_utf8_lossy(&output.stdout).contains("credentials not found") {
            return Ok(None);
        }
        return ended(helper, &output).map(|()| None);
    }
    let answer: Value = serde_json::from_slice(&output.stdout)
        .map_err(|_| Error::new(format!("docker-credential-{helper} answered something that is no JSON")))?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Some(cri::AuthConfig {
        username: text("Username"),
        password: text("Secret"),
        ..Default::default()
    }))
}

async fn call(helper: &str, verb: &str, input: &str) -> Result<Output> {
    let program = format!("docker-credential-{helper}");
    if helper.contains('/') {
        return Err(Error::new(format!("{program} is not the name of a program")));
    }
    let failed = |error: std::io::Error| Error::new(format!("run {program}: {error}"));
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input says why by its exit code.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await.map_err(failed)
}

fn ended(helper: &str, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(Error::new(format!(
        "docker-credential-{helper} failed: {}",
        output.status
    )))
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
        let hub = config.get("docker.io").await.unwrap().unwrap();
        assert_eq!((hub.auth.as_str(), hub.server_address.as_str()), ("dTpw", "docker.io"));
        assert_eq!(config.get("h:5000").await.unwrap().unwrap().identity_token, "i");
        assert!(config.get("e").await.unwrap().is_none() && config.get("h").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_stored_is_read_back_and_other_keys_stay() {
        let mut config = config(r#"{"HttpHeaders": {"a": "b"}}"#);
        config.put("docker.io", "u", "p:q").await.unwrap();
        config.put("h:5000", "v", "w").await.unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&config.path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut again = DockerConfig::read(config.path.clone()).unwrap();
        assert_eq!(again.get("docker.io").await.unwrap().unwrap().auth, "dTpwOnE=");
        assert!(again.content.contains_key("HttpHeaders"));
        assert!(again.remove("h:5000").await.unwrap() && !again.remove("h:5000").await.unwrap());
        fs::remove_dir_all(config.path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_registry_s_own_helper_comes_before_the_store() {
        let config = config(r#"{"credsStore": "all", "credHelpers": {"h:1": "own", "x": ""}}"#);
        assert_eq!(config.helper("h:1").as_deref(), Some("own"));
        assert_eq!(config.helper("x").as_deref(), Some("all"));
    }
}
