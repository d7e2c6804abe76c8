//! A real monitor process, driven as the daemon does it. Needs root.

mod monitor_lab;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    time::Duration,
};

use monitor_lab::{LIMIT, Lab, Pod, within};
use wharf::monitor::{Client, Event};
use wharf_proto::{monitor::ErrorKind, record};

#[tokio::test]
async fn a_monitor_serves_the_newest_connection_and_ends_on_shutdown() {
    let lab = Lab::new("newest");
    let Pod {
        client,
        hello,
        mut events,
    } = lab.monitor(false).await;
    assert_eq!(
        (hello.pod_id.as_str(), hello.pod_init, hello.containers.len()),
        ("pod", 0, 0)
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(lab.socket()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let status = fs::read_to_string(format!("/proc/{}/status", hello.pid)).unwrap();
    assert!(
        status.contains("Name:\twharf-monitor\n") && status.contains("Threads:\t1\n"),
        "{status}"
    );
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", hello.pid)).unwrap();
    assert!(
        cgroups.lines().any(|line| line.ends_with(":/wharf-monitors")),
        "{cgroups}"
    );

    let (newer, again, _events) = Client::connect(&lab.socket(), LIMIT).await.unwrap();
    assert_eq!(again.pid, hello.pid);
    assert_eq!(
        within(events.recv()).await,
        None,
        "the older connection is told by its end"
    );
    assert!(client.is_closed());
    client.kill("none", 9, false).await.unwrap_err();
    assert_eq!(
        newer.kill("none", 9, false).await.unwrap_err().kind(),
        Some(ErrorKind::NotFound)
    );
    newer.delete("none").await.unwrap();
    newer.kill_exec("none").await.unwrap();

    within(newer.shutdown()).await.unwrap();
    assert!(!lab.socket().exists());
}

#[tokio::test]
async fn a_shared_pid_namespace_has_an_init_that_ends_with_the_monitor() {
    let lab = Lab::new("pidns");
    let Pod {
        client,
        hello,
        mut events,
    } = lab.monitor(true).await;
    assert!(hello.pod_init > 0);
    let proc = format!("/proc/{}", hello.pod_init);
    // It begins as a copy of the monitor.
    within(lab.wait(|| fs::read_to_string(format!("{proc}/comm")).unwrap() == "wharf-pod-init\n")).await;
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    assert!(
        status
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")),
        "{status}"
    );
    assert_eq!(
        fs::read_dir(format!("{proc}/fd")).unwrap().count(),
        0,
        "it holds no descriptor"
    );
    assert_ne!(
        fs::read_link(format!("{proc}/ns/pid")).unwrap(),
        fs::read_link("/proc/self/ns/pid").unwrap()
    );

    // A container that joins the namespace and leaves a process behind.
    let start = lab.container_with("joins", &["/bin/sh", "-c", "sleep 98 & echo $$; exit 0"], |config| {
        config["linux"]["namespaces"][0]["path"] = format!("{proc}/ns/pid").into();
    });
    within(client.start(start.clone())).await.unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 0));
    assert_ne!(lab.log_lines("joins"), ["stdout F 1"]);
    lab.wait(|| lab.cgroup_pids(&start.cgroup_path).is_empty()).await;
    within(client.delete("joins")).await.unwrap();
    within(client.shutdown()).await.unwrap();
    assert!(!fs::exists(&proc).unwrap());
}

#[tokio::test]
async fn a_terminal_carries_output_as_it_is() {
    let lab = Lab::new("terminal");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let mut start = lab.container_with(
        "t",
        &["/bin/sh", "-c", "echo out; echo err >&2; test -t 0 && echo yes"],
        |config| {
            config["process"]["terminal"] = true.into();
        },
    );
    start.terminal = true;
    within(client.start(start)).await.unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 0));
    assert_eq!(
        lab.log_lines("t"),
        ["stdout F out\r", "stdout F err\r", "stdout F yes\r"]
    );
    within(client.delete("t")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_container_inherits_no_signal_setting_and_no_descriptor() {
    let lab = Lab::new("inherits");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let script = "while read a; do echo $a; done < /proc/self/status; echo /proc/self/fd/*";
    within(client.start(lab.container("i", script))).await.unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 0));
    let lines = lab.log_lines("i");
    assert!(
        lines.contains(&"stdout F SigBlk: 0000000000000000".into()),
        "{lines:#?}"
    );
    // SIGQUIT is the shell's own doing.
    let ignored = |set: &str| lines.contains(&format!("stdout F SigIgn: 000000000000000{set}"));
    assert!(ignored("0") || ignored("4"), "{lines:#?}");
    // 3 is the shell's own, for the directory it lists.
    let descriptors: Vec<_> = lines.last().unwrap().split(' ').skip(2).collect();
    assert!(descriptors.len() <= 4, "{descriptors:?}");
    within(client.delete("i")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn the_kernels_oom_killer_is_named() {
    let lab = Lab::new("oom");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let start = lab.container_with(
        "o",
        &["/bin/sh", "-c", "x=aaaaaaaa; while :; do x=$x$x; done"],
        |config| {
            config["linux"]["resources"] = serde_json::json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
        },
    );
    within(client.start(start)).await.unwrap();
    let Some(Event::ContainerExited(exited)) = within(events.recv()).await else {
        panic!("no exit was told")
    };
    assert_eq!((exited.code, exited.oom_killed), (137, true));
    let record: record::Exit = wharf::store::read_record(&lab.exit_file("o")).unwrap().unwrap();
    assert_eq!(record.reason, "OOMKilled");
    within(client.delete("o")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_runtime_command_is_driven_as_the_built_in_one() {
    for name in ["runc", "crun"] {
        let path = std::path::Path::new("/usr/sbin").join(name);
        let path = if path.exists() {
            path
        } else {
            std::path::Path::new("/usr/bin").join(name)
        };
        if !path.exists() {
            continue;
        }
        let lab = Lab::new(name);
        let Pod { client, mut events, .. } = lab.monitor(false).await;
        let mut start = lab.container("c", "echo up; trap 'exit 4' TERM; while :; do sleep 0.05; done");
        start.container_id = format!("wharf-monitor-{}", std::process::id());
        let id = start.container_id.clone();
        let root = lab.rootfs("c").with_file_name("state");
        start.handler = Some(wharf_proto::monitor::Handler {
            path: path.display().to_string(),
            root: root.display().to_string(),
            arguments: Vec::new(),
        });
        if let Err(error) = within(client.start(start)).await {
            // crun refuses machines where cgroup v1 and v2 are mixed.
            assert!(error.to_string().contains("cgroup"), "{name}: {error}");
        } else {
            lab.wait_for_log("c", "stdout F up").await;
            let null = || OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").unwrap());
            within(client.exec(lab.exec("e", &id, "exit 6"), vec![null(), null(), null()]))
                .await
                .unwrap();
            assert!(matches!(within(events.recv()).await, Some(Event::ExecExited(exited)) if exited.code == 6));
            within(client.kill(&id, libc::SIGTERM, false)).await.unwrap();
            assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 4));
            within(client.delete(&id)).await.unwrap();
        }
        within(client.shutdown()).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_disk_does_not_stop_the_container() {
    let lab = Lab::new("full");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let _disk = lab.small_disk_for_logs();
    let filler = lab.log("filler");
    fs::write(&filler, vec![0; 32 << 10]).unwrap();
    // More than the disk and the pipe hold, then a word when there is room again.
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; : > /done; \
                  while ! [ -e /more ]; do sleep 0.01; done; echo after";
    within(client.start(lab.container("c", script))).await.unwrap();
    lab.wait(|| lab.rootfs("c").join("done").exists()).await;
    fs::remove_file(&filler).unwrap();
    fs::write(lab.rootfs("c").join("more"), "").unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 0));
    let lines = lab.log_lines("c");
    let (last, before) = lines.split_last().unwrap();
    assert_eq!(last, "stdout F after");
    assert!(before.len() < 20_000, "the disk was never full");
    assert!(
        before
            .iter()
            .enumerate()
            .all(|(n, line)| *line == format!("stdout F line {n}")),
        "lines are torn"
    );
    within(client.delete("c")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn hostile_bytes_end_the_connection_only() {
    let lab = Lab::new("hostile");
    let Pod { hello, .. } = lab.monitor(false).await;
    for bytes in [&u32::MAX.to_le_bytes()[..], &[2, 0, 0, 0, 0xff, 0xff]] {
        let mut stream = UnixStream::connect(lab.socket()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.write_all(bytes).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    }
    let (client, again, _events) = Client::connect(&lab.socket(), LIMIT).await.unwrap();
    assert_eq!(again.pid, hello.pid);
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_container_runs_logs_and_ends() {
    let lab = Lab::new("runs");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let start = lab.container("one", "echo out; echo err >&2; printf 'no end'; exit 3");
    let started = within(client.start(start.clone())).await.unwrap();
    assert!(started.pid > 0 && started.started_at > 0);
    let Some(Event::ContainerExited(exited)) = within(events.recv()).await else {
        panic!("no exit was told")
    };
    assert_eq!(
        (exited.container_id.as_str(), exited.code, exited.oom_killed),
        ("one", 3, false)
    );
    let record: record::Exit = wharf::store::read_record(start.exit_file.as_ref()).unwrap().unwrap();
    assert_eq!((record.code, record.reason.as_str()), (3, "Error"));
    assert_eq!(
        (record.started_at, record.finished_at),
        (started.started_at, exited.finished_at)
    );
    let mut log = lab.log_lines("one");
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout P no end"]);

    assert_eq!(
        client.start(start).await.unwrap_err().kind(),
        Some(ErrorKind::WrongState)
    );
    fs::remove_file(lab.log("one")).unwrap();
    assert_eq!(
        client.reopen_log("one").await.unwrap_err().kind(),
        Some(ErrorKind::WrongState)
    );
    assert!(
        !lab.log("one").exists(),
        "reopening the log of an ended container makes no file"
    );
    within(client.delete("one")).await.unwrap();
    within(client.delete("one")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn containers_outlive_the_connection_and_nothing_is_forgotten() {
    let lab = Lab::new("outlive");
    let Pod { client, .. } = lab.monitor(false).await;
    within(client.start(lab.container("long", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")))
        .await
        .unwrap();
    within(client.start(lab.container("short", "sleep 0.3; echo later; exit 9")))
        .await
        .unwrap();
    drop(client);
    lab.wait_for_log("short", "stdout F later").await;
    lab.wait_for_log("long", "stdout F up").await;
    lab.wait(|| lab.exit_file("short").exists()).await;

    let (client, hello, mut events) = Client::connect(&lab.socket(), LIMIT).await.unwrap();
    let find = |id: &str| hello.containers.iter().find(|c| c.id == id).unwrap();
    assert!(find("long").running && find("long").pid > 0 && find("long").exit.is_none());
    assert!(!find("short").running);
    assert_eq!(find("short").exit.as_ref().unwrap().code, 9);
    assert_eq!(client.shutdown().await.unwrap_err().kind(), Some(ErrorKind::WrongState));
    assert_eq!(
        client.delete("long").await.unwrap_err().kind(),
        Some(ErrorKind::WrongState)
    );

    fs::rename(lab.log("long"), lab.log("long-rotated")).unwrap();
    within(client.reopen_log("long")).await.unwrap();
    assert!(lab.log("long").exists());
    within(client.kill("long", libc::SIGTERM, false)).await.unwrap();
    let Some(Event::ContainerExited(exited)) = within(events.recv()).await else {
        panic!("no exit was told")
    };
    assert_eq!(exited.code, 7);
    for id in ["long", "short"] {
        within(client.delete(id)).await.unwrap();
    }
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_dies_while_a_container_starts_leaves_its_successor_an_answer() {
    let lab = Lab::new("successor");
    let Pod { client, .. } = lab.monitor(false).await;
    {
        // Given up before the answer can come.
        let start = client.start(lab.container("c", "while :; do sleep 1; done"));
        tokio::time::timeout(Duration::from_millis(1), start).await.unwrap_err();
    }
    drop(client);
    let (client, hello, mut events) = Client::connect(&lab.socket(), LIMIT).await.unwrap();
    let [found] = hello.containers.as_slice() else {
        panic!("{hello:?}")
    };
    assert!(found.running && found.pid > 0 && found.started_at > 0, "{found:?}");
    within(client.kill("c", libc::SIGKILL, false)).await.unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 137));
    within(client.delete("c")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_failed_start() {
    let lab = Lab::new("missing");
    let Pod { client, .. } = lab.monitor(false).await;
    let error = within(client.start(lab.container_of("bad", &["/no/such/program"])))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Some(ErrorKind::StartFailed), "{error}");
    let record: record::Exit = wharf::store::read_record(&lab.exit_file("bad")).unwrap().unwrap();
    assert_eq!((record.code, record.reason.as_str()), (128, "StartError"));
    assert!(record.message.contains("/no/such/program"), "{}", record.message);
    within(client.delete("bad")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn an_exec_uses_the_descriptors_it_came_with() {
    let lab = Lab::new("exec");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    within(client.start(lab.container("c", "while :; do sleep 1; done")))
        .await
        .unwrap();
    let (mut output, writer) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(fs::File::options().read(true).write(true).open("/dev/null").unwrap());
    let pid = within(client.exec(
        lab.exec("e1", "c", "echo hello; exit 5"),
        vec![null(), writer.into(), null()],
    ))
    .await
    .unwrap();
    assert!(pid > 0);
    let Some(Event::ExecExited(exited)) = within(events.recv()).await else {
        panic!("no end of the exec was told")
    };
    assert_eq!((exited.exec_id.as_str(), exited.code), ("e1", 5));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");

    // A tree of processes that all hold the pipe.
    let (mut output, writer) = std::io::pipe().unwrap();
    let tree = "sh -c 'sleep 99 & sleep 99 & wait' & echo up; wait";
    within(client.exec(lab.exec("e2", "c", tree), vec![null(), writer.into(), null()]))
        .await
        .unwrap();
    output.read_exact(&mut [0; 3]).unwrap();
    within(client.kill_exec("e2")).await.unwrap();
    let Some(Event::ExecExited(exited)) = within(events.recv()).await else {
        panic!("no end of the exec was told")
    };
    assert_eq!((exited.exec_id.as_str(), exited.code), ("e2", 137));
    let rest = tokio::task::spawn_blocking(move || output.read(&mut [0; 8]));
    assert_eq!(
        within(rest).await.unwrap().unwrap(),
        0,
        "no descendant holds the pipe any more"
    );

    let missing = client
        .exec(lab.exec_of("e3", "c", &["/no/such"]), vec![null(), null(), null()])
        .await;
    assert_eq!(missing.unwrap_err().kind(), Some(ErrorKind::StartFailed));
    within(client.kill("c", libc::SIGKILL, true)).await.unwrap();
    assert!(matches!(within(events.recv()).await, Some(Event::ContainerExited(exited)) if exited.code == 137));
    let late = client
        .exec(lab.exec("e4", "c", "true"), vec![null(), null(), null()])
        .await;
    assert_eq!(late.unwrap_err().kind(), Some(ErrorKind::WrongState));
    within(client.delete("c")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_output_arrives_whole_and_the_monitor_stays_small() {
    let lab = Lab::new("flood");
    let Pod {
        client,
        hello,
        mut events,
    } = lab.monitor(false).await;
    let count = 200_000;
    let before = lab.anonymous_kib(hello.pid);
    let script = format!("i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done");
    within(client.start(lab.container("f", &script))).await.unwrap();
    let exited = tokio::time::timeout(Duration::from_secs(60), events.recv())
        .await
        .unwrap();
    assert!(matches!(exited, Some(Event::ContainerExited(exited)) if exited.code == 0));
    let lines = lab.log_lines("f");
    assert_eq!(lines.len(), count);
    assert!(
        lines
            .iter()
            .enumerate()
            .all(|(n, line)| *line == format!("stdout F {n}"))
    );
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let growth = lab.anonymous_kib(hello.pid).saturating_sub(before);
    assert!(
        growth < 64,
        "the buffers are given back, but {growth} KiB more are in use"
    );
    within(client.delete("f")).await.unwrap();
    within(client.shutdown()).await.unwrap();
}
