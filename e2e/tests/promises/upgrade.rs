//! One version after another on the same state: what the next one takes over, and what an older one leaves alone.
//!
//! Debug builds play another version by the environment: `WHARF_NEXT_SCHEMA` is one whose records have a schema of their
//! own, `WHARF_PROTOCOL_VERSION` one that speaks another version of the monitors' protocol. Monitors are started without an
//! environment, so that they are always of this version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri::{ContainerState, PodSandboxState};
use wharf_proto::record;

/// Every file below a directory but sockets and what containers write, with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !["rootfs", "work", "fs"].iter().any(|name| entry.file_name() == *name) {
                todo.push(entry.path());
            } else if kind.is_file() && entry.file_name() != "lock" {
                found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn container_record(daemon: &Daemon, pod: &str, id: &str) -> record::Container {
    let path = daemon
        .state_dir
        .join("pods")
        .join(pod)
        .join("containers")
        .join(id)
        .join("record");
    prost::Message::decode(std::fs::read(path).unwrap().as_slice()).unwrap()
}

#[tokio::test]
async fn the_next_version_takes_state_and_monitors_over_and_this_one_then_refuses_them_untouched() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon
        .running("before", "trap 'exit 7' TERM; while :; do sleep 0.1; done")
        .await;
    let image = daemon.busybox().await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    assert_eq!(container_record(&daemon, &pod, &id).schema, 1);
    assert!(
        std::fs::read_to_string(daemon.state_dir.join("schema"))
            .unwrap()
            .starts_with("schema 1\n")
    );

    // The next version: the same pod, container, image, served by a monitor of this version.
    daemon.environment([("WHARF_NEXT_SCHEMA", "1"), ("WHARF_PROTOCOL_VERSION", "2")]);
    daemon.start_again().await.unwrap();
    assert_eq!(
        daemon.cri.pod_status(&pod).await.unwrap().state(),
        PodSandboxState::SandboxReady
    );
    assert_eq!(daemon.cri.shell(&id, "echo served").await.unwrap(), "served\n");
    assert!(daemon.cri.image(&image).await.unwrap().is_some());
    // Without metadata it is that of any pod.
    let config = wharf_proto::cri::PodSandboxConfig::default();
    let second = daemon
        .started(&pod, &config, &container("second", &image, "sleep 1000"))
        .await;
    daemon.cri.stop(&id, 10).await.unwrap();
    assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 7);
    for id in [&id, &second] {
        assert_eq!(
            container_record(&daemon, &pod, id).schema,
            2,
            "what was changed has the new form"
        );
    }
    assert!(
        std::fs::read_to_string(daemon.state_dir.join("schema"))
            .unwrap()
            .starts_with("schema 2\n")
    );

    // This version again: it names file and versions, and touches nothing.
    daemon.end(Signal::SIGTERM).await.unwrap();
    let before = files(&daemon.state_dir);
    daemon.environment([]);
    let error = daemon
        .start_again()
        .await
        .expect_err("it can't know what schema 2 means")
        .to_string();
    for part in ["state/schema has schema 2", "knows 1", "run the newer version again"] {
        assert!(error.contains(part), "{part:?} is missing: {error}");
    }
    // The record too, where the mark of the directory got lost.
    std::fs::write(daemon.state_dir.join("schema"), "schema 1\n").unwrap();
    let error = daemon
        .start_again()
        .await
        .expect_err("the record says it as well")
        .to_string();
    assert!(
        error.contains("has schema 2") && error.contains(&id[..12]) | error.contains(&second[..12]),
        "{error}"
    );
    std::fs::write(
        daemon.state_dir.join("schema"),
        &before[&daemon.state_dir.join("schema")],
    )
    .unwrap();
    assert_eq!(files(&daemon.state_dir), before);

    daemon.environment([("WHARF_NEXT_SCHEMA", "1")]);
    daemon.start_again().await.unwrap();
    assert_eq!(
        daemon.cri.status(&second).await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    daemon.finish().await;
}

#[tokio::test]
async fn an_image_of_a_newer_version_is_left_alone_and_named() {
    let mut daemon = Daemon::start().await;
    daemon.busybox().await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    let images = daemon.state_dir.join("images");
    let records = ["records", "layers"].map(|kind| {
        let first = std::fs::read_dir(images.join(kind)).unwrap().next().unwrap().unwrap();
        first.path().join("record")
    });
    for record in records {
        let before = std::fs::read(&record).unwrap();
        // Field 1, schema: the last of two counts. Field 2, a text for this version, is a number there.
        std::fs::write(&record, [before.as_slice(), &[0x08, 99, 0x10, 1]].concat()).unwrap();
        let whole = files(&images);
        let error = daemon
            .start_again()
            .await
            .expect_err("what it means is not known")
            .to_string();
        assert!(
            error.contains("schema 99") && error.contains(&record.display().to_string()),
            "{error}"
        );
        assert_eq!(files(&images), whole);
        std::fs::write(&record, before).unwrap();
    }
    daemon.start_again().await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_monitor_of_a_newer_version_is_left_alone_and_its_pod_can_be_taken_down() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("newer", "sleep 1000").await;
    let (other, in_other) = daemon.running("other", "sleep 1000").await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    daemon.environment([("WHARF_PROTOCOL_VERSION", "0")]);
    daemon.start_again().await.unwrap();
    assert_eq!(
        daemon.cri.status(&id).await.unwrap().state(),
        ContainerState::ContainerRunning
    );
    let error = daemon
        .cri
        .exec(&id, &["true"], 5)
        .await
        .expect_err("nobody knows its words");
    assert_eq!(error.code(), Code::FailedPrecondition);
    for part in ["speaks version 1", "serves", "run a newer version of wharf"] {
        assert!(error.message().contains(part), "{error}");
    }
    assert_eq!(code(daemon.cri.run_pod(&daemon.pod("none"), "").await), Code::Internal);
    // One that can't wait for the newer version goes down whole.
    daemon.gone(&other).await;
    assert!(daemon.cri.status(&in_other).await.is_err());
    // And the version that knows them finds the rest as it was.
    daemon.end(Signal::SIGTERM).await.unwrap();
    daemon.environment([]);
    daemon.start_again().await.unwrap();
    assert_eq!(daemon.cri.shell(&id, "echo still here").await.unwrap(), "still here\n");
    daemon.gone(&pod).await;
    daemon.finish().await;
}

/// State of schema 1, as this test's `WHARF_WRITE_STATE=1` has written it. It is never written anew: a later schema gets a
/// file of its own beside it.
const SCHEMA_1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/state/schema-1.tar.gz");

#[tokio::test]
async fn state_as_schema_1_was_written_opens() {
    let mut daemon = Daemon::with(Options {
        settings: "pinned_images = ['registry.example/*']".into(),
        ..Options::default()
    })
    .await;
    if std::env::var_os("WHARF_WRITE_STATE").is_some() {
        return write_state(daemon).await;
    }
    daemon.end(Signal::SIGTERM).await.unwrap();
    std::fs::remove_dir_all(&daemon.state_dir).unwrap();
    std::fs::create_dir(&daemon.state_dir).unwrap();
    let state = daemon.state_dir.display().to_string();
    daemon
        .lab
        .output(
            "tar",
            &["-z", "--xattrs", "--xattrs-include=*", "-xpf", SCHEMA_1, "-C", &state],
        )
        .await
        .unwrap();
    daemon.start_again().await.unwrap();

    // What ran when it was packed has ended with its boot; what had ended says how.
    let mut pods = daemon.cri.pods(None).await.unwrap();
    pods.sort_by_key(|pod| pod.created_at);
    let names: Vec<_> = pods.iter().map(|pod| pod.metadata.clone().unwrap().name).collect();
    assert_eq!(names, ["with-network", "host-network"]);
    assert!(
        pods.iter().all(|pod| pod.state() == PodSandboxState::SandboxNotready),
        "{pods:?}"
    );
    let mut ends = BTreeMap::new();
    for one in daemon.cri.containers(None).await.unwrap() {
        let status = daemon.cri.status(&one.id).await.unwrap();
        ends.insert(
            one.metadata.unwrap().name,
            (status.state(), status.exit_code, status.reason),
        );
    }
    let exited = |code, reason: &str| (ContainerState::ContainerExited, code, reason.to_owned());
    let wanted = BTreeMap::from([
        (
            "created".to_owned(),
            (ContainerState::ContainerCreated, 0, String::new()),
        ),
        ("ended".to_owned(), exited(3, "Error")),
        ("running".to_owned(), exited(255, "Unknown")),
    ]);
    assert_eq!(ends, wanted);
    let images = daemon.cri.image_list().await.unwrap();
    let tags: Vec<_> = images.iter().flat_map(|image| image.repo_tags.clone()).collect();
    assert_eq!(tags, ["registry.example/small:1", "registry.example/small:2"]);
    // Each layer can be given back as it came.
    let saved = daemon
        .wharf(&["save", "registry.example/small:2"])
        .output()
        .await
        .unwrap();
    assert!(
        saved.status.success() && saved.stdout.len() > 1024,
        "{}",
        String::from_utf8_lossy(&saved.stderr)
    );
    daemon.finish().await;
}

/// Packs the state of a daemon with one of everything.
async fn write_state(mut daemon: Daemon) {
    let busybox = std::fs::read("/bin/busybox")
        .or_else(|_| std::fs::read("/usr/bin/busybox"))
        .unwrap();
    // As small as can be: the program lies on a volume, not in the image.
    let tree = daemon.dir().join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::write(tree.join("bin/marker"), "a file of the image\n").unwrap();
    std::os::unix::fs::symlink("marker", tree.join("bin/link")).unwrap();
    let programs = daemon.dir().join("programs");
    std::fs::create_dir(&programs).unwrap();
    std::fs::write(programs.join("busybox"), busybox).unwrap();
    std::fs::set_permissions(
        programs.join("busybox"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let tree = tree.display().to_string();
    for args in [
        vec!["import", "-c", "ENV A=b", &tree, "registry.example/small:1"],
        vec!["tag", "registry.example/small:1", "registry.example/small:2"],
    ] {
        let output = daemon.wharf(&args).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let mut config = daemon.pod("with-network");
    config.hostname = "small".into();
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    for (name, line) in [("created", ""), ("ended", "exit 3"), ("running", "sleep 1000")] {
        let mut wish = container(name, "registry.example/small:1", line);
        wish.command = ["/programs/busybox", "sh", "-c", line].map(str::to_owned).to_vec();
        wish.mounts.push(wharf_proto::cri::Mount {
            container_path: "/programs".into(),
            host_path: programs.display().to_string(),
            ..Default::default()
        });
        let id = daemon.cri.create(&pod, &wish, &config).await.unwrap();
        if name != "created" {
            daemon.cri.start(&id).await.unwrap();
        }
        if name == "ended" {
            daemon.cri.exited(&id).await.unwrap();
        }
    }
    let mut host = daemon.pod("host-network");
    wharf_e2e::specs::namespaces(&mut host).network = wharf_proto::cri::NamespaceMode::Node.into();
    daemon.cri.run_pod(&host, "").await.unwrap();
    daemon.end(Signal::SIGTERM).await.unwrap();
    let state = daemon.state_dir.display().to_string();
    let excluded = ["--exclude=./lock", "--exclude=./pods/*/containers/*/rootfs/*"];
    let mut args = vec![
        "-z",
        "--xattrs",
        "--xattrs-include=*",
        "--sort=name",
        "--one-file-system",
    ];
    args.extend(excluded);
    args.extend(["-cpf", SCHEMA_1, "-C", &state, "."]);
    daemon.lab.output("tar", &args).await.unwrap();
    daemon.start_again().await.unwrap();
    daemon.finish().await;
}
