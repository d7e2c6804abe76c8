//! Where images come from and go to as a node's files and people's commands say, with real registries.

use std::process::Stdio;

use serde_json::json;
use wharf_e2e::fixtures::layer::Tar;
use wharf_e2e::fixtures::storage::Storage;
use wharf_e2e::registry::{ADDRESS, WRITABLE, reference};
use wharf_e2e::{Daemon, Options};
use wharf_proto::cri as pb;

use crate::archives::{tool, wharf};
use crate::meddled::{MEDDLED, Meddler, OTHER};

#[tokio::test]
async fn kept_blobs_are_pushed_as_they_came_under_the_same_digest() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        tables: "[pull]\nkeep_blobs = true\n".into(),
        ..Default::default()
    })
    .await;
    let meddler = Meddler::start(
        &daemon,
        MEDDLED,
        ADDRESS,
        json!([{"path": "/blobs/", "cut": 100, "times": 3}]),
    )
    .await;
    for (name, image) in [
        ("layers", format!("{MEDDLED}/layers:latest")),
        ("docker", reference("docker:latest")),
    ] {
        daemon.cri.pull(&image).await.unwrap();
        let pulled = daemon.cri.image(&image).await.unwrap().unwrap();
        let came = pulled.repo_digests[0].split('@').nth(1).unwrap().to_owned();
        let target = format!("{WRITABLE}/kept/{name}:v1");
        let text = wharf(&daemon, &["push", &image, &target]).await;
        assert!(text.contains(&came), "{came}: {text}");
        let there = format!("docker://{target}");
        let seen = tool(
            &daemon,
            "skopeo",
            &["--insecure-policy", "inspect", "--tls-verify=false", &there],
        )
        .await;
        assert!(seen.contains(&came), "{came}: {seen}");
    }
    assert!(meddler.seen("/blobs/").iter().any(|one| one["range"] != ""));
    // What is kept is counted, and goes with its layer.
    let mut images = daemon.cri.images.clone();
    let usage = images
        .image_fs_info(pb::ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    let bytes = usage.image_filesystems[0].used_bytes.unwrap().value;
    let (mut kept, mut last) = (0, None);
    for layer in std::fs::read_dir(daemon.state_dir.join("images/layers")).unwrap() {
        for file in std::fs::read_dir(layer.unwrap().path()).unwrap().flatten() {
            if file.file_name().to_string_lossy().starts_with("blob-") {
                kept += file.metadata().unwrap().len();
                last = Some(file.path());
            }
        }
    }
    assert!(kept > 100_000 && bytes > kept, "{kept} of {bytes}");
    wharf(&daemon, &["fsck"]).await;
    // A blob that is damaged is told, and what a push makes of the files goes in its place.
    let last = last.unwrap();
    let mut bytes = std::fs::read(&last).unwrap();
    bytes[50] ^= 1;
    std::fs::write(&last, bytes).unwrap();
    let name = last.file_name().unwrap().to_string_lossy().into_owned();
    let output = daemon.wharf(&["fsck"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(
        !output.status.success() && text.contains(&name) && text.contains("damaged"),
        "{text}"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn an_archive_may_say_the_same_twice_and_images_may_have_no_layer_or_the_same_one_again() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Default::default()
    })
    .await;
    let storage = Storage::new(&daemon.dir().join("pushed"));
    let (one, two) = (
        Tar::default().file("one", 0o644, b"1").gzip().unwrap(),
        Tar::default().file("two", 0o644, b"2").gzip().unwrap(),
    );
    let empty = Tar::default().gzip().unwrap();
    let config = json!({ "Cmd": ["sh"] });
    for (name, layers) in [
        ("none", vec![]),
        (
            "again",
            vec![one.clone(), one.clone(), two.clone(), empty.clone(), empty, one.clone()],
        ),
    ] {
        storage.image(name, "latest", config.clone(), &layers).unwrap();
        let image = format!("{WRITABLE}/{name}:latest");
        let id = daemon.cri.pull(&image).await.unwrap();
        let target = format!("{WRITABLE}/pushed/{name}:v1");
        wharf(&daemon, &["push", &image, &target]).await;
        let saved = daemon.dir().join(format!("{name}.tar")).display().to_string();
        wharf(&daemon, &["save", "-o", &saved, &image]).await;
        daemon.cri.remove_image(&image).await.unwrap();
        wharf(&daemon, &["load", "-i", &saved]).await;
        assert_eq!(daemon.cri.image(&image).await.unwrap().unwrap().id, id, "{name}");
        assert_eq!(daemon.cri.pull(&target).await.unwrap(), id, "{name}");
    }
    let saved = daemon.dir().join("again.tar").display().to_string();
    let twice = format!(
        "cd {} && mkdir x && tar -xf again.tar -C x && tar --hard-dereference -cf twice.tar -C x $(ls -A x) $(ls -A x)",
        daemon.dir().display()
    );
    tool(&daemon, "sh", &["-c", &twice]).await;
    let text = wharf(&daemon, &["load", "-i", &saved.replace("again", "twice")]).await;
    assert!(text.contains("again:latest"), "{text}");
    daemon.finish().await;
}

#[tokio::test]
async fn mirrors_rewritten_and_short_names_are_as_the_nodes_files_say_at_each_pull() {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let conf = dir.path().join("registries.conf");
    let daemon = Daemon::with(Options {
        tables: format!(
            "[pull]\nregistries_conf = {conf:?}\nhosts_dirs = [{:?}]\n",
            dir.path().join("certs.d")
        ),
        ..Default::default()
    })
    .await;
    let mirror = Meddler::start(&daemon, MEDDLED, ADDRESS, json!([])).await;
    let second = Meddler::start(&daemon, OTHER, ADDRESS, json!([])).await;
    let write = |text: String| std::fs::write(&conf, text).unwrap();
    let refused = async |name: &str| daemon.cri.pull(name).await.unwrap_err().to_string();
    refused("a.wild.invalid/busybox").await;
    write(format!(
        "[[registry]]\nprefix = \"*.wild.invalid\"\nlocation = \"{ADDRESS}\"\ninsecure = true\n\
         [[registry]]\nprefix = \"team.invalid/x\"\nlocation = \"{ADDRESS}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{MEDDLED}\"\ninsecure = true\npull-from-mirror = \"digest-only\"\n\
         [[registry]]\nlocation = \"evil.invalid\"\nblocked = true\n[aliases]\n\"short\" = \"a.wild.invalid/busybox\"\n"
    ));
    let id = daemon.cri.pull("a.wild.invalid/busybox").await.unwrap();
    let listed = daemon.cri.image("a.wild.invalid/busybox").await.unwrap().unwrap();
    assert_eq!(listed.repo_tags, ["a.wild.invalid/busybox:latest"]);
    // By tag nothing is asked of that mirror, by digest all.
    daemon.cri.pull("team.invalid/x/layers").await.unwrap();
    assert!(mirror.seen("/manifests/").is_empty() && !mirror.seen("/blobs/").is_empty());
    let error = refused("evil.invalid/any/thing").await;
    assert!(error.contains("blocks") && error.contains("evil.invalid"), "{error}");
    assert_eq!(daemon.cri.pull("short").await.unwrap(), id);
    assert_eq!(daemon.cri.image("short").await.unwrap().unwrap().id, id);
    // Drop-ins add to the file and replace what it says.
    std::fs::create_dir(dir.path().join("registries.conf.d")).unwrap();
    let drop_in = dir.path().join("registries.conf.d/50-search.conf");
    std::fs::write(
        &drop_in,
        format!("unqualified-search-registries = [\"{OTHER}\", \"{ADDRESS}\"]\n"),
    )
    .unwrap();
    let error = refused("docker").await;
    assert!(error.contains("short-name-mode") && error.contains(OTHER), "{error}");
    std::fs::write(
        &drop_in,
        format!("short-name-mode = \"permissive\"\nunqualified-search-registries = [\"{OTHER}\"]\n"),
    )
    .unwrap();
    daemon.cri.pull("docker").await.unwrap();
    assert!(!second.seen("/v2/docker/manifests/latest").is_empty());
    std::fs::write(&drop_in, "[[registry]]\nlocation = \"https://team.invalid\"\n").unwrap();
    let error = refused("short").await;
    assert!(error.contains("50-search.conf") && error.contains("scheme"), "{error}");
    std::fs::remove_file(&drop_in).unwrap();

    // A tree of hosts.toml: the host's own directory, with its port in one form or the other, before the one for all.
    let hosts = |name: &str, text: String| {
        let place = dir.path().join("certs.d").join(name);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("hosts.toml"), text).unwrap();
    };
    let host = |address: &str, more: &str| format!("[host.\"http://{address}{more}");
    hosts("_default", host(OTHER, "\"]\n"));
    let asked = second.seen("ns=").len();
    daemon.cri.pull("any.invalid:5000/busybox:other-tag").await.unwrap();
    assert!(second.seen("ns=any.invalid:5000").len() > asked);
    hosts(
        "any.invalid_5000_",
        host(MEDDLED, "/v2\"]\noverride_path = true\ncapabilities = [\"resolve\"]\n")
            + &host(OTHER, "\"]\ncapabilities = [\"pull\"]\n"),
    );
    let (by_tag, blobs) = (
        mirror.seen("/v2/nested/path/to/image/manifests/v1.2?ns=any.invalid:5000"),
        mirror.seen("/blobs/").len(),
    );
    assert!(by_tag.is_empty());
    daemon
        .cri
        .pull("any.invalid:5000/nested/path/to/image:v1.2")
        .await
        .unwrap();
    assert_eq!(
        mirror
            .seen("/v2/nested/path/to/image/manifests/v1.2?ns=any.invalid:5000")
            .len(),
        1
    );
    assert_eq!(mirror.seen("/blobs/").len(), blobs);
    daemon.finish().await;
}

#[tokio::test]
async fn a_pull_that_is_interrupted_on_a_terminal_goes_on_where_it_stood() {
    let daemon = Daemon::start().await;
    let slow = json!([{"path": "/blobs/", "slow": 200_000}]);
    let meddler = Meddler::start(&daemon, MEDDLED, ADDRESS, slow).await;
    let image = format!("{MEDDLED}/busybox:latest");
    // A terminal of 80 columns around the command.
    let pull = |daemon: &Daemon| {
        let mut command = daemon.lab.command("script");
        let line = format!(
            "stty cols 80; exec {} --endpoint unix://{} pull {image}",
            wharf_e2e::lab::program("wharf").unwrap().display(),
            daemon.socket.display()
        );
        command
            .args(["-qfec", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut child = pull(&daemon);
    let mut shown = String::new();
    let mut output = child.stdout.take().unwrap();
    while !shown.contains("kB/") || !shown.contains("/s") {
        let mut bytes = [0; 4096];
        let read = tokio::time::timeout(
            wharf_e2e::PATIENCE,
            tokio::io::AsyncReadExt::read(&mut output, &mut bytes),
        );
        let read = read
            .await
            .unwrap_or_else(|_| panic!("no rate is shown: {shown}"))
            .unwrap();
        assert!(read > 0, "it ended: {shown}");
        shown += &String::from_utf8_lossy(&bytes[..read]);
    }
    assert!(
        shown.contains("Downloading") && shown.contains(&format!("Pulling {image}")),
        "{shown}"
    );
    // Ctrl-C.
    let mut keys = child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut keys, b"\x03").await.unwrap();
    tokio::time::timeout(wharf_e2e::PATIENCE, child.wait())
        .await
        .expect("it ends")
        .unwrap();
    wharf_e2e::eventually("the pull has ended", async || {
        crate::operations::shown(&daemon).await.is_empty()
    })
    .await;
    meddler.rules(&json!([]));
    let again = tokio::time::timeout(wharf_e2e::PATIENCE, pull(&daemon).wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(
        again.status.success() && text.contains(&format!("Pulled {image}")),
        "{text}"
    );
    let asked = meddler.seen("/blobs/");
    assert!(
        asked
            .iter()
            .any(|one| one["range"].as_str().unwrap().starts_with("bytes=") && one["range"] != "bytes=0-"),
        "{asked:?}"
    );
    daemon.finish().await;
}
