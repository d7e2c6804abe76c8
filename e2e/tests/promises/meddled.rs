//! Pulls and pushes by way of networks, proxies and registries as they are, with a real registry behind them.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::process::Child;
use wharf_e2e::fixtures::layer::Tar;
use wharf_e2e::fixtures::storage::{Storage, architecture, digest, image_config};
use wharf_e2e::registry::{ADDRESS, PASSWORD, USER, WRITABLE};
use wharf_e2e::{Daemon, Options};
use wharf_proto::cri as pb;

use crate::archives::{refused, tool, wharf};

pub(crate) const MEDDLED: &str = "127.0.0.1:5010";
pub(crate) const OTHER: &str = "127.0.0.1:5011";

/// A server between the daemon and a registry; see `wharf_e2e::meddler`.
pub(crate) struct Meddler {
    _server: Child,
    rules: PathBuf,
    log: PathBuf,
}

impl Meddler {
    /// Starts one at `address` before `upstream`, in the daemon's lab.
    pub(crate) async fn start(daemon: &Daemon, address: &str, upstream: &str, rules: Value) -> Self {
        let port = address.rsplit(':').next().unwrap();
        let (rules_file, log) = (
            // The guard knows what belongs to registries by this word.
            daemon.dir().join(format!("registry-rules-{port}")),
            daemon.dir().join(format!("meddled-{port}")),
        );
        std::fs::write(&rules_file, rules.to_string()).unwrap();
        std::fs::write(&log, "").unwrap();
        let [rules_at, log_at] = [&rules_file, &log].map(|path| path.display().to_string());
        let (server, _) = daemon.helper(&["meddle", address, upstream, &rules_at, &log_at]).await;
        Self {
            _server: server,
            rules: rules_file,
            log,
        }
    }

    /// Other rules from now on.
    pub(crate) fn rules(&self, rules: &Value) {
        let new = self.rules.with_extension("new");
        std::fs::write(&new, rules.to_string()).unwrap();
        std::fs::rename(new, &self.rules).unwrap();
    }

    /// What it was asked whose target has `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|one| one["target"].as_str().unwrap().contains(part))
            .collect()
    }
}

fn person(server: &str) -> Option<pb::AuthConfig> {
    Some(pb::AuthConfig {
        username: USER.into(),
        password: PASSWORD.into(),
        server_address: server.into(),
        ..Default::default()
    })
}

async fn without_layers(daemon: &Daemon, image: &str) {
    daemon.cri.remove_image(image).await.unwrap();
    let layers = daemon.state_dir.join("images/layers");
    wharf_e2e::eventually("the layers are gone", async || {
        std::fs::read_dir(&layers).unwrap().count() == 0
    })
    .await;
}

#[tokio::test]
async fn a_pull_gets_through_losses_cuts_waits_and_redirects_and_takes_no_credentials_elsewhere() {
    let daemon = Daemon::start().await;
    let direct = daemon.pull("layers:latest").await;
    let wanted = daemon.cri.image(&direct).await.unwrap().unwrap();
    without_layers(&daemon, &direct).await;
    let rules = json!([
        {"token": 1000, "user": USER, "password": PASSWORD},
        {"path": "/manifests/", "status": 429, "headers": {"retry-after": "1"}, "times": 1},
        {"path": "/manifests/", "cut": 100, "times": 1},
        {"path": "/manifests/", "status": 503, "times": 1},
        {"path": "/blobs/", "cut": 1000, "times": 3},
        {"path": "/blobs/", "cut": 0, "times": 1},
        {"path": "/blobs/", "status": 500, "times": 1},
        {"path": "/blobs/", "status": 408, "times": 1},
        {"path": "/blobs/", "redirect": format!("http://{OTHER}")},
    ]);
    let meddler = Meddler::start(&daemon, MEDDLED, ADDRESS, rules).await;
    let other = Meddler::start(
        &daemon,
        OTHER,
        ADDRESS,
        json!([{"path": "/blobs/", "cut": 100, "times": 2}]),
    )
    .await;
    let image = format!("{MEDDLED}/layers:latest");
    let begun = Instant::now();
    daemon.cri.pull_as(&image, person("")).await.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "the registry asked for a second"
    );
    let pulled = daemon.cri.image(&image).await.unwrap().unwrap();
    assert_eq!(pulled.id, wanted.id);
    let hash = |image: &pb::Image| image.repo_digests[0].split('@').nth(1).unwrap().to_owned();
    assert_eq!(hash(&pulled), hash(&wanted));
    let there = other.seen("/blobs/");
    assert!(
        !there.is_empty() && there.iter().all(|one| one["authorization"] == ""),
        "{there:?}"
    );
    assert!(
        there.iter().any(|one| one["range"] != ""),
        "it goes on where it was cut"
    );
    for one in meddler.seen("/v2/") {
        let shown = one["authorization"].as_str().unwrap();
        assert!(
            shown.is_empty() || shown.starts_with("Bearer "),
            "the password is for the token server: {one}"
        );
    }
    // A registry that asks for more patience than anybody has.
    meddler.rules(&json!([{"status": 503, "headers": {"retry-after": "9999"}}]));
    let begun = Instant::now();
    let error = daemon.cri.pull(&image).await.unwrap_err().to_string();
    assert!(
        error.contains("RegistryUnavailable") && error.contains("9999s"),
        "{error}"
    );
    assert!(begun.elapsed() < wharf_e2e::PATIENCE);
    assert!(!daemon.log().contains(PASSWORD));
    daemon.finish().await;
}

#[tokio::test]
async fn a_push_gets_through_to_a_registry_that_loses_redirects_and_wants_a_new_token_in_between() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Default::default()
    })
    .await;
    let image = daemon.pull("layers:latest").await;
    let wanted = daemon.cri.image(&image).await.unwrap().unwrap().id;
    let rules = json!([
        {"token": 8, "user": USER, "password": PASSWORD, "identity": "refresh-me"},
        {"method": "POST", "path": "/uploads/", "location": "relative", "times": 3},
        {"method": "POST", "path": "/uploads/", "location": "foreign", "times": 2},
        {"method": "PATCH", "close": 1000, "times": 2},
        {"method": "PATCH", "close": 0, "times": 1},
        {"method": "PATCH", "status": 416, "times": 1},
        {"method": "PATCH", "status": 404, "times": 1},
        {"method": "PATCH", "status": 429, "headers": {"retry-after": "1"}, "times": 1},
        {"method": "PATCH", "redirect": format!("http://{WRITABLE}"), "times": 2},
        {"method": "PATCH", "location": "relative", "times": 4},
        {"method": "PUT", "path": "/uploads/", "status": 500, "times": 1},
        {"method": "GET", "path": "/uploads/", "status": 405, "times": 1},
        {"method": "PUT", "path": "/manifests/", "status": 503, "times": 1},
    ]);
    let meddler = Meddler::start(&daemon, MEDDLED, WRITABLE, rules).await;
    let target = format!("{MEDDLED}/team/app:v1");
    let creds = format!("{USER}:{PASSWORD}");
    let text = refused(&daemon, &["push", &image, &target]).await;
    assert!(text.contains("push access") && text.contains("denied"), "{text}");
    let text = wharf(&daemon, &["push", "--creds", &creds, &image, &target]).await;
    let sent = text
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .unwrap()
        .to_owned();
    let asked = meddler.seen("/token");
    assert!(asked.len() > 3, "tokens run out: {asked:?}");
    assert!(
        asked[0]["target"]
            .as_str()
            .unwrap()
            .contains("scope=repository%3Ateam%2Fapp%3Apull%2Cpush"),
        "{asked:?}"
    );
    let there = format!("docker://{WRITABLE}/team/app:v1");
    let seen = tool(
        &daemon,
        "skopeo",
        &["--insecure-policy", "inspect", "--tls-verify=false", &there],
    )
    .await;
    assert!(seen.contains(&sent), "{sent}: {seen}");
    daemon.cri.pull(&format!("{WRITABLE}/team/app:v1")).await.unwrap();
    let again = daemon
        .cri
        .image(&format!("{WRITABLE}/team/app:v1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(again.id, wanted);
    // By a refresh token, and pulled as it was pushed.
    let identity = pb::AuthConfig {
        identity_token: "refresh-me".into(),
        ..Default::default()
    };
    daemon.cri.pull_as(&target, Some(identity)).await.unwrap();
    let pulled = daemon.cri.image(&target).await.unwrap().unwrap();
    assert!(
        pulled.repo_digests.contains(&format!("{MEDDLED}/team/app@{sent}")),
        "{pulled:?}"
    );
    let wrong = pb::AuthConfig {
        identity_token: "no-such".into(),
        ..Default::default()
    };
    let error = daemon.cri.pull_as(&target, Some(wrong)).await.unwrap_err().to_string();
    assert!(error.contains("denied") && !error.contains("no-such"), "{error}");
    assert!(meddler.seen("/token").iter().any(|one| one["method"] == "POST"));
    daemon.finish().await;
}

#[tokio::test]
async fn a_login_asks_for_no_repository_and_a_mirror_gets_only_what_names_it() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let daemon = Daemon::with(Options {
        tables: format!("[pull]\nhosts_dirs = [{:?}]\n", dir.path()),
        ..Default::default()
    })
    .await;
    let rules = json!([{"token": 1000, "user": USER, "password": PASSWORD}]);
    let meddler = Meddler::start(&daemon, MEDDLED, ADDRESS, rules).await;
    let mut login = daemon.wharf(&["login", "-u", USER, MEDDLED]);
    login
        .env("HOME", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut login = login.spawn().unwrap();
    let mut stdin = login.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, PASSWORD.as_bytes())
        .await
        .unwrap();
    drop(stdin);
    let output = login.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let asked = meddler.seen("/token");
    assert!(
        asked.len() == 1 && !asked[0]["target"].as_str().unwrap().contains("scope"),
        "{asked:?}"
    );

    let hosts = dir.path().join("registry.invalid");
    std::fs::create_dir(&hosts).unwrap();
    let text = format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{MEDDLED}\"]\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]\n"
    );
    std::fs::write(hosts.join("hosts.toml"), text).unwrap();
    let image = "registry.invalid/busybox:latest";
    for for_another in [person(""), person("registry.invalid")] {
        assert!(daemon.cri.pull_as(image, for_another).await.is_err());
    }
    assert!(meddler.seen("/token")[1..].iter().all(|one| one["authorization"] == ""));
    daemon.cri.pull_as(image, person(MEDDLED)).await.unwrap();
    assert!(meddler.seen("/v2/busybox/manifests/latest?ns=registry.invalid").len() > 1);
    daemon.finish().await;
}

#[tokio::test]
async fn registries_are_reached_by_the_proxy_of_the_environment_except_what_no_proxy_names() {
    const TLS: &str = "127.0.0.1:5443";
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let daemon = Daemon::with(Options {
        tables: format!(
            "[pull]\nhosts_dirs = [{:?}]\n[registries.\"far.invalid\"]\nplain_http = true\n\
             [registries.\"near.invalid:5000\"]\nplain_http = true\n",
            at("certs.d")
        ),
        environment: vec![
            ("HTTP_PROXY", "http://some:one%21@127.0.0.1:5010"),
            ("HTTPS_PROXY", "http://some:one%21@127.0.0.1:5011"),
            ("NO_PROXY", "other.invalid, near.invalid:5000"),
        ],
        ..Default::default()
    })
    .await;
    let plain = Meddler::start(&daemon, MEDDLED, ADDRESS, json!([])).await;
    let tunnel = Meddler::start(&daemon, OTHER, TLS, json!([])).await;
    daemon.cri.pull("far.invalid/busybox:latest").await.unwrap();
    let seen = plain.seen("http://far.invalid/v2/busybox/");
    // "some:one!", and nothing for the registry.
    assert!(
        seen.iter()
            .all(|one| one["proxy"] == "Basic c29tZTpvbmUh" && one["authorization"] == ""),
        "{seen:?}"
    );
    assert!(!seen.is_empty());
    let error = daemon
        .cri
        .pull("near.invalid:5000/busybox:latest")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("RegistryUnavailable: near.invalid:5000"), "{error}");
    assert!(plain.seen("near.invalid").is_empty() && tunnel.seen("near.invalid").is_empty());
    // This machine's registries are never the proxy's.
    daemon.busybox().await;
    assert!(plain.seen(ADDRESS).is_empty());

    std::fs::write(
        at("san"),
        "subjectAltName = DNS:tls.invalid\nbasicConstraints = CA:FALSE\n",
    )
    .unwrap();
    let script = "set -e; cd \"$0\"
        for name in ca server; do
            openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $name.key
        done
        openssl req -x509 -new -key ca.key -subj /CN=ca -days 2 -out ca.pem
        openssl req -new -key server.key -subj /CN=server -out server.csr
        openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem";
    daemon.lab.output("sh", &["-c", script, &at("")]).await.unwrap();
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  maintenance:\n    readonly: {{ enabled: true }}\n\
         http:\n  addr: {TLS}\n  tls: {{ certificate: {}, key: {} }}\n",
        wharf_e2e::fixtures::storage().unwrap().display(),
        at("server.pem"),
        at("server.key"),
    );
    std::fs::write(at("registry.yml"), config).unwrap();
    let _registry = daemon
        .lab
        .command("docker-registry")
        .args(["serve", &at("registry.yml")])
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let certs = dir.path().join("certs.d/tls.invalid");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::copy(at("ca.pem"), certs.join("ca.crt")).unwrap();
    wharf_e2e::eventually("the registry behind TLS answers", async || {
        daemon.cri.pull("tls.invalid/busybox:latest").await.is_ok()
    })
    .await;
    let seen = tunnel.seen("tls.invalid:443");
    assert!(
        seen.iter()
            .all(|one| one["method"] == "CONNECT" && one["proxy"] == "Basic c29tZTpvbmUh"),
        "{seen:?}"
    );
    assert!(!seen.is_empty());
    let log = daemon.log();
    assert!(!log.contains("one%21") && !log.contains("c29tZTpvbmUh"));
    daemon.finish().await;
}

#[tokio::test]
async fn what_a_descriptor_has_within_it_is_not_asked_for_and_wrong_data_does_not_count() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Default::default()
    })
    .await;
    let storage = Storage::new(&daemon.dir().join("pushed"));
    let layer = Tar::default().file("file", 0o644, b"content").gzip().unwrap();
    let base64 = |bytes: &[u8]| base64::prelude::BASE64_STANDARD.encode(bytes);
    let config = image_config(json!({ "Cmd": ["sh"] }), std::slice::from_ref(&layer))
        .to_string()
        .into_bytes();
    let descriptor = |kind: &str, bytes: &[u8], data: &str| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len(), "data": data});
    let manifest = |config_data: &str, layer_data: &str| {
        json!({
            "schemaVersion": 2,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config, config_data),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer.blob, layer_data)],
        })
        .to_string()
        .into_bytes()
    };
    // Neither the manifest nor what it points at is in the registry.
    let whole = manifest(&base64(&config), &base64(&layer.blob));
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &whole, &base64(&whole));
    entry["platform"] = json!({"os": "linux", "architecture": architecture()});
    let index =
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]});
    storage
        .manifest("within", Some("v1"), index.to_string().as_bytes())
        .unwrap();
    let meddler = Meddler::start(&daemon, MEDDLED, WRITABLE, json!([])).await;
    let name = format!("{MEDDLED}/within:v1");
    assert_eq!(daemon.cri.pull(&name).await.unwrap(), digest(&config));
    assert_eq!(meddler.seen("/v2/within/").len(), 1, "only the index was asked for");
    without_layers(&daemon, &name).await;
    // Data that is something else: what the digest names is fetched.
    let wrong = manifest(&base64(b"{}"), &base64(b"not the layer"));
    storage.blob("wrong", &config).unwrap();
    storage.blob("wrong", &layer.blob).unwrap();
    storage.manifest("wrong", Some("v1"), &wrong).unwrap();
    assert_eq!(
        daemon.cri.pull(&format!("{MEDDLED}/wrong:v1")).await.unwrap(),
        digest(&config)
    );
    assert_eq!(meddler.seen("/v2/wrong/blobs/").len(), 2);
    daemon.finish().await;
}
