//! Checkpoints of running containers. Where CRIU can work (the kernel decides; `make vm-test` has one where it can), they
//! are made by it; where it can't, its reasons must arrive. What happens around it is the same everywhere, and is tested
//! with a program of that name that does as the test wants.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use wharf_e2e::{Daemon, Options, container, eventually, logs};
use wharf_proto::cri as pb;

/// Counts in a file, after some changes to its root file system.
const COUNT: &str = "echo counting; echo written >/written; rm /etc/group; i=0; \
                     while true; do i=$((i+1)); echo $i >/count.new; mv /count.new /count; sleep 0.02; done";

pub(crate) async fn checkpoint(daemon: &Daemon, id: &str, location: &Path, timeout: i64) -> Result<(), Status> {
    let request = pb::CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.to_str().expect("a plain path").to_owned(),
        timeout,
    };
    daemon.cri.runtime.clone().checkpoint_container(request).await.map(drop)
}

/// Runs the handlers' daemons with `criu` as a script: it makes the file `called`, and then does not end.
async fn with_criu_that_never_ends(body: impl AsyncFn(Daemon, PathBuf)) {
    let dir = tempfile::tempdir().expect("make a directory");
    let called = dir.path().join("called");
    let criu = dir.path().join("criu");
    let script = format!("#!/bin/sh\n: >'{}'\nexec /bin/sleep 1000\n", called.display());
    std::fs::write(&criu, script).expect("write criu");
    std::fs::set_permissions(&criu, std::fs::Permissions::from_mode(0o755)).expect("make criu a program");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    // crun of Debian is built without CRIU.
    for handler in crate::handlers().filter(|handler| handler != "crun") {
        println!("---- handler {handler}");
        let _ = std::fs::remove_file(&called);
        let options = Options {
            path: Some(path.clone()),
            ..Options::handler(&handler)
        };
        body(Daemon::with(options).await, called.clone()).await;
    }
}

async fn goes_on_counting(daemon: &Daemon, id: &str) {
    let count = async || daemon.cri.shell(id, "cat /count").await.expect("exec in the container");
    let before = count().await;
    eventually("the container counts on", async || count().await != before).await;
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("list a directory").flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A daemon whose default handler can restore here; says so if it can't.
pub(crate) async fn restoring(handler: &str) -> Option<Daemon> {
    let daemon = Daemon::with(Options::handler(handler)).await;
    let works = complaint(&daemon).await.is_none() && handler != "crun";
    println!("---- handler {handler}, criu works: {works}");
    if !works {
        daemon.finish().await;
        return None;
    }
    Some(daemon)
}

/// What `criu check` has against this machine.
pub(crate) async fn complaint(daemon: &Daemon) -> Option<String> {
    let output = daemon
        .lab
        .command("criu")
        .arg("check")
        .output()
        .await
        .expect("run criu");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let first = text
        .lines()
        .find_map(|line| line.split_once("): ").map(|(_, what)| what.trim().to_owned()));
    (!output.status.success()).then(|| first.unwrap_or(text))
}

#[tokio::test]
async fn a_checkpoint_is_whole_or_leaves_nothing_and_the_container_runs_on() {
    crate::on_each_handler(async |daemon| {
        let config = daemon.pod("checkpoint");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = container("main", &daemon.busybox().await, COUNT);
        let id = daemon.started(&pod, &config, &main).await;
        eventually("it counts", async || daemon.cri.shell(&id, "cat /count").await.is_ok()).await;
        let place = daemon.dir().join("checkpoints");
        std::fs::create_dir(&place).unwrap();
        let location = place.join("c.tar");
        let made = checkpoint(&daemon, &id, &location, 0).await;
        let handler = daemon.handler().to_owned();
        match complaint(&daemon).await {
            _ if handler == "crun" && !has_criu(&daemon).await => {
                let error = made.expect_err("this crun has no CRIU");
                assert!(error.message().contains("crun: "), "{error}");
                assert_eq!(files(&place), [""; 0]);
            }
            Some(complaint) => {
                let error = made.expect_err("criu can't work here");
                assert_eq!(error.code(), Code::Internal, "{error}");
                assert!(error.message().contains("criu: ") || handler != "builtin", "{error}");
                assert!(
                    error.message().contains(&complaint) || handler != "builtin",
                    "{complaint}: {error}"
                );
                assert_eq!(files(&place), [""; 0]);
            }
            None => {
                made.unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(files(&place), ["c.tar"]);
                assert_eq!(location.metadata().unwrap().permissions().mode() & 0o777, 0o600);
                whole(&daemon, &id, &location, &logs::path(&config, &main)).await;
            }
        }
        goes_on_counting(&daemon, &id).await;
        nothing_is_left(&daemon, &pod, &id);
        daemon.finish().await;
    })
    .await;
}

/// The directory in which a checkpoint is made has gone.
fn nothing_is_left(daemon: &Daemon, pod: &str, id: &str) {
    let left = daemon
        .state_dir
        .join("pods")
        .join(pod)
        .join("containers")
        .join(id)
        .join("checkpoint");
    assert!(!left.exists(), "{} is left", left.display());
}

async fn has_criu(daemon: &Daemon) -> bool {
    let version = daemon.lab.output("/usr/bin/crun", &["--version"]).await;
    version.expect("run crun").contains("+CRIU")
}

/// The archive has what checkpointctl and the peers look for, and that is true.
async fn whole(daemon: &Daemon, id: &str, archive: &Path, log: &Path) {
    let dir = daemon.dir().join("opened");
    std::fs::create_dir(&dir).unwrap();
    let (archive, target) = (archive.display().to_string(), dir.display().to_string());
    daemon
        .lab
        .output("tar", &["-xf", &archive, "-C", &target])
        .await
        .unwrap();
    let json = |name: &str| -> serde_json::Value {
        let text = std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let config = json("config.dump");
    assert_eq!(
        (&config["id"], &config["runtime"]),
        (&id.into(), &daemon.handler().into())
    );
    assert_eq!(config["rootfsImageName"], "127.0.0.1:5000/busybox:latest");
    assert!(
        config["rootfsImageRef"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:5000/busybox@sha256:")
    );
    assert!(config["checkpointedTime"].as_str().unwrap() > config["createdTime"].as_str().unwrap());
    assert_eq!(
        json("spec.dump")["annotations"]["io.kubernetes.cri.container-name"],
        "main"
    );
    assert_eq!(json("status.dump")["metadata"]["name"], "main");
    assert_eq!(json("deleted.files"), serde_json::json!(["etc/group"]));
    assert_eq!(json("checkpoint/descriptors.json").as_array().unwrap().len(), 3);
    let binds = json("bind.mounts");
    let hosts = binds
        .as_array()
        .unwrap()
        .iter()
        .find(|bind| bind["destination"] == "/etc/hosts");
    assert_eq!(hosts.unwrap()["file_type"], "file");
    for name in [
        "checkpoint/inventory.img",
        "checkpoint/pstree.img",
        "stats-dump",
        "dump.log",
    ] {
        assert!(dir.join(name).is_file(), "{name} is missing");
    }
    assert!(
        std::fs::read_to_string(dir.join("container.log"))
            .unwrap()
            .contains("counting")
    );
    assert!(std::fs::read_to_string(log).unwrap().contains("counting"));
    let changes = dir.join("rootfs-diff.tar").display().to_string();
    let list = daemon.lab.output("tar", &["-tf", &changes]).await.unwrap();
    assert!(list.lines().any(|name| name == "written"), "{list}");
    assert!(!list.lines().any(|name| name == "etc/hosts"), "{list}");
    let written = daemon.lab.output("tar", &["-xOf", &changes, "written"]).await.unwrap();
    assert_eq!(written, "written\n");
}

#[tokio::test]
async fn a_checkpoint_without_criu_says_what_to_install() {
    let options = Options {
        path: Some("/nowhere".into()),
        ..Default::default()
    };
    let daemon = Daemon::with(options).await;
    let (_, id) = daemon.running("without", "sleep 1000").await;
    let location = daemon.dir().join("c.tar");
    let error = checkpoint(&daemon, &id, &location, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(
        error.message().contains("criu") && error.message().contains("package"),
        "{error}"
    );
    assert!(!location.exists());
    assert_eq!(daemon.cri.shell(&id, "echo runs").await.unwrap(), "runs\n");
    daemon.finish().await;
}

#[tokio::test]
async fn a_checkpoint_that_takes_too_long_is_given_up_and_the_container_runs_on() {
    with_criu_that_never_ends(async |daemon, called| {
        let (pod, id) = daemon.running("late", COUNT).await;
        eventually("it counts", async || daemon.cri.shell(&id, "cat /count").await.is_ok()).await;
        let location = daemon.dir().join("c.tar");
        let error = checkpoint(&daemon, &id, &location, 1).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(called.exists(), "criu was not called");
        assert!(!location.exists());
        goes_on_counting(&daemon, &id).await;
        nothing_is_left(&daemon, &pod, &id);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_checkpoint() {
    with_criu_that_never_ends(async |daemon, called| {
        let (_, id) = daemon.running("stopped", COUNT).await;
        let location = daemon.dir().join("c.tar");
        let begun = async {
            eventually("criu is called", async || called.exists()).await;
            let second = checkpoint(&daemon, &id, &location, 600).await.unwrap_err();
            assert_eq!(second.code(), Code::FailedPrecondition, "{second}");
            let before = Instant::now();
            daemon.cri.stop(&id, 0).await.unwrap();
            assert!(
                before.elapsed() < Duration::from_secs(10),
                "took {:?}",
                before.elapsed()
            );
        };
        let (made, ()) = tokio::join!(checkpoint(&daemon, &id, &location, 600), begun);
        let error = made.unwrap_err();
        assert!(
            [Code::FailedPrecondition, Code::Internal].contains(&error.code()),
            "{error}"
        );
        assert!(!location.exists());
        assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 137);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_container_goes_on_when_the_daemon_is_killed_during_its_checkpoint() {
    with_criu_that_never_ends(async |mut daemon, called| {
        let (_, id) = daemon.running("killed", COUNT).await;
        let location = daemon.dir().join("c.tar");
        let (request, client) = (id.clone(), daemon.cri.clone());
        let place = location.to_str().unwrap().to_owned();
        let asked = tokio::spawn(async move {
            let request = pb::CheckpointContainerRequest {
                container_id: request,
                location: place,
                timeout: 600,
            };
            client.runtime.clone().checkpoint_container(request).await
        });
        eventually("criu is called", async || called.exists()).await;
        daemon.crash().await;
        asked.await.unwrap().unwrap_err();
        goes_on_counting(&daemon, &id).await;
        assert!(!location.exists());
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_checkpoint_that_makes_no_sense_is_refused() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("refused");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let runs = daemon
        .started(&pod, &config, &container("runs", &image, "sleep 1000"))
        .await;
    let ended = daemon.started(&pod, &config, &container("ended", &image, "true")).await;
    eventually("it ends", async || {
        daemon.cri.status(&ended).await.unwrap().state() == pb::ContainerState::ContainerExited
    })
    .await;
    let mut tty = container("tty", &image, "sleep 1000");
    tty.tty = true;
    let tty = daemon.started(&pod, &config, &tty).await;
    let good = daemon.dir().join("c.tar");
    let nowhere = daemon.dir().join("no/such/c.tar");
    let cases: [(&str, &Path, i64, Code, &str); 8] = [
        ("unknown", &good, 0, Code::NotFound, "unknown"),
        (&ended, &good, 0, Code::FailedPrecondition, "not running"),
        (&tty, &good, 0, Code::Unimplemented, "terminal"),
        (&runs, Path::new(""), 0, Code::InvalidArgument, "empty"),
        (&runs, Path::new("c.tar"), 0, Code::InvalidArgument, "absolute"),
        (&runs, daemon.dir(), 0, Code::InvalidArgument, "directory"),
        (&runs, &nowhere, 0, Code::InvalidArgument, "does not exist"),
        (&runs, &good, -1, Code::InvalidArgument, "timeout"),
    ];
    for (id, location, timeout, code, words) in cases {
        let error = checkpoint(&daemon, id, location, timeout).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    assert!(!good.exists());
    daemon.finish().await;
}

/// A counter that goes on where it stood, in the old files, with the old descriptors.
#[tokio::test]
async fn a_container_comes_back_from_its_checkpoint() {
    for handler in crate::handlers() {
        let daemon = Daemon::with(Options::handler(&handler)).await;
        let works = complaint(&daemon).await.is_none() && (handler != "crun" || has_criu(&daemon).await);
        println!("---- handler {handler}, criu works: {works}");
        let config = daemon.pod("first");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let line = format!(
            "export MARK=kept; {}",
            COUNT.replace("echo $i >", "[ $i = 40 ] && echo forty; echo $i >")
        );
        let main = container("main", &daemon.busybox().await, &line);
        let id = daemon.started(&pod, &config, &main).await;
        eventually("it counts to forty", async || {
            logs::text(&logs::path(&config, &main), "stdout").is_ok_and(|text| text.contains("forty"))
        })
        .await;
        let archive = daemon.dir().join("c.tar");
        let made = checkpoint(&daemon, &id, &archive, 0).await;
        if !works {
            made.unwrap_err();
            daemon.finish().await;
            continue;
        }
        made.unwrap_or_else(|error| panic!("{error}"));
        daemon.gone(&pod).await;

        let config = daemon.pod("second");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut again = container("main", archive.to_str().unwrap(), "false");
        let id = daemon.started(&pod, &config, &again).await;
        let count = async || -> u64 {
            daemon
                .cri
                .shell(&id, "cat /count")
                .await
                .unwrap()
                .trim()
                .parse()
                .unwrap()
        };
        assert!(count().await >= 40, "it began anew");
        goes_on_counting(&daemon, &id).await;
        assert_eq!(
            daemon
                .cri
                .shell(&id, "cat /written; ls /etc/group 2>&1; true")
                .await
                .unwrap(),
            "written\nls: /etc/group: No such file or directory\n"
        );
        let beside = container("beside", &daemon.busybox().await, "sleep 1000");
        let beside = daemon.started(&pod, &config, &beside).await;
        let line = "hostname; for ns in uts ipc net; do readlink /proc/self/ns/$ns; done";
        let shared = async |id: &str| daemon.cri.shell(id, line).await;
        assert_eq!(shared(&id).await.unwrap(), shared(&beside).await.unwrap());
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.state(), pb::ContainerState::ContainerRunning);
        assert!(
            status.image_ref.starts_with("127.0.0.1:5000/busybox@sha256:"),
            "{}",
            status.image_ref
        );
        let log = logs::text(&logs::path(&config, &again), "stdout").unwrap();
        assert_eq!(log.matches("forty").count(), 1, "{log}");
        daemon.cri.stop(&id, 0).await.unwrap();
        assert_eq!(daemon.cri.status(&id).await.unwrap().exit_code, 137);

        again.metadata.get_or_insert_default().attempt = 1;
        again.mounts.push(pb::Mount {
            container_path: "/more".into(),
            host_path: daemon.dir().to_str().unwrap().into(),
            ..Default::default()
        });
        let error = daemon.cri.create(&pod, &again, &config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("/more"), "{error}");
        daemon.finish().await;
    }
}

#[tokio::test]
async fn what_is_no_checkpoint_archive_is_not_restored() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("none");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let file = daemon.dir().join("file");
    for (content, words) in [("no tar at all", "checkpoint archive"), ("", "config.dump")] {
        std::fs::write(&file, content).unwrap();
        let error = daemon
            .cri
            .create(&pod, &container("main", file.to_str().unwrap(), "true"), &config)
            .await
            .unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(words), "{error}");
    }
    daemon.finish().await;
}
