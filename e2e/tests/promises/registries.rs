//! Registries as a node's files describe them, and people's credentials.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::AsyncWriteExt as _;
use wharf_e2e::registry::{PASSWORD, PRIVATE, USER};
use wharf_e2e::{Daemon, Options, eventually, fixtures};

/// Runs `wharf` with a home of its own and `input` on stdin.
async fn wharf(daemon: &Daemon, home: &Path, args: &[&str], input: &str) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = daemon
        .wharf(args)
        .env("HOME", home)
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE")
        .env("PATH", format!("{}:{path}", home.display()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(wharf_e2e::PATIENCE * 2, child.wait_with_output());
    output
        .await
        .unwrap_or_else(|_| panic!("wharf {args:?} does not end"))
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[tokio::test]
async fn login_keeps_what_the_registry_accepts_and_pulls_use_it_until_logout() {
    let daemon = Daemon::with(Options {
        private_registry: true,
        ..Default::default()
    })
    .await;
    let home = daemon.dir().join("home");
    std::fs::create_dir(&home).unwrap();
    let file = home.join(".docker/config.json");
    let image = format!("{PRIVATE}/busybox:latest");
    let refused = wharf(&daemon, &home, &["pull", &image], "").await;
    assert!(
        !refused.status.success() && text(&refused).contains("denied"),
        "{}",
        text(&refused)
    );
    let wrong = wharf(&daemon, &home, &["login", "-u", USER, PRIVATE], "wrong-one\n").await;
    assert!(!wrong.status.success() && !file.exists(), "{}", text(&wrong));
    let right = wharf(
        &daemon,
        &home,
        &["login", "-u", USER, PRIVATE],
        &format!("{PASSWORD}\n"),
    )
    .await;
    assert!(right.status.success(), "{}", text(&right));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let pulled = wharf(&daemon, &home, &["pull", &image], "").await;
    assert!(pulled.status.success(), "{}", text(&pulled));
    let out = wharf(&daemon, &home, &["logout", PRIVATE], "").await;
    assert!(out.status.success() && text(&out).contains("Removed"), "{}", text(&out));
    assert!(!wharf(&daemon, &home, &["pull", &image], "").await.status.success());
    for shown in [daemon.log(), text(&wrong), text(&right), text(&refused)] {
        assert!(!shown.contains(PASSWORD) && !shown.contains("wrong-one"), "{shown}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_credential_helper_is_asked_for_its_registry() {
    let daemon = Daemon::with(Options {
        private_registry: true,
        ..Default::default()
    })
    .await;
    let home = daemon.dir().join("home");
    std::fs::create_dir_all(home.join(".docker")).unwrap();
    let helper = home.join("docker-credential-e2e");
    let script = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >> {0}/asked\n\
         if [ \"$1\" = get ]; then cat {0}/secret 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         elif [ \"$1\" = store ]; then echo '{{\"ServerURL\":\"\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}' > {0}/secret\n\
         else rm {0}/secret; fi\n",
        home.display()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(r#"{{"credHelpers": {{"{PRIVATE}": "e2e"}}}}"#);
    std::fs::write(home.join(".docker/config.json"), &config).unwrap();
    let image = format!("{PRIVATE}/busybox:latest");
    let refused = wharf(&daemon, &home, &["pull", &image], "").await;
    assert!(text(&refused).contains("denied"), "{}", text(&refused));
    let kept = wharf(&daemon, &home, &["login", "-u", USER, PRIVATE], PASSWORD).await;
    assert!(
        kept.status.success() && text(&kept).contains("docker-credential-e2e"),
        "{}",
        text(&kept)
    );
    assert_eq!(
        std::fs::read_to_string(home.join(".docker/config.json")).unwrap(),
        config
    );
    let pulled = wharf(&daemon, &home, &["pull", &image], "").await;
    assert!(pulled.status.success(), "{}", text(&pulled));
    let asked = std::fs::read_to_string(home.join("asked")).unwrap();
    assert!(asked.contains(&format!("get {PRIVATE}\n")), "{asked}");
    wharf(&daemon, &home, &["logout", PRIVATE], "").await;
    assert!(!home.join("secret").exists());
    daemon.finish().await;
}

#[tokio::test]
async fn a_registry_that_wants_a_client_certificate_is_reached_by_its_hosts_file() {
    const ADDRESS: &str = "127.0.0.1:5443";
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let certs = dir.path().join("certs.d").join(ADDRESS);
    let daemon = Daemon::with(Options {
        tables: format!("[pull]\nhosts_dirs = [{:?}]\n", at("certs.d")),
        ..Default::default()
    })
    .await;
    std::fs::write(
        dir.path().join("san"),
        "subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n",
    )
    .unwrap();
    let script = "set -e; cd \"$0\"
        key() { openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $1.key; }
        key ca; openssl req -x509 -new -key ca.key -subj /CN=ca -days 2 -out ca.pem
        for name in server client; do
            key $name; openssl req -new -key $name.key -subj /CN=$name -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out $name.pem
        done";
    daemon.lab.output("sh", &["-c", script, &at("")]).await.unwrap();
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  maintenance:\n    readonly: {{ enabled: true }}\n\
         http:\n  addr: {ADDRESS}\n  tls: {{ certificate: {}, key: {}, clientcas: [{}] }}\n",
        fixtures::storage().unwrap().display(),
        at("server.pem"),
        at("server.key"),
        at("ca.pem")
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
    let image = format!("{ADDRESS}/busybox:latest");
    std::fs::create_dir_all(&certs).unwrap();
    let write = |text: String| std::fs::write(certs.join("hosts.toml"), text).unwrap();
    // Without a certificate of the client, and the file is read for each pull.
    write(format!("ca = {:?}\n", at("ca.pem")));
    eventually("the registry refuses who shows no certificate", async || {
        let error = daemon.cri.pull(&image).await.unwrap_err().to_string();
        error.contains("ertificate")
    })
    .await;
    write(format!(
        "ca = {:?}\nclient = [[{:?}, {:?}]]\n",
        at("ca.pem"),
        at("client.pem"),
        at("client.key")
    ));
    daemon.cri.pull(&image).await.unwrap();
    // Another authority than the server's.
    write(format!("ca = {:?}\n", at("client.pem")));
    assert!(daemon.cri.pull(&image).await.is_err());
    write("skip_verify = true\ncapabilities = [\"fly\"]\n".into());
    let error = daemon.cri.pull(&image).await.unwrap_err().to_string();
    assert!(error.contains("hosts.toml") && error.contains("fly"), "{error}");
    daemon.finish().await;
}
