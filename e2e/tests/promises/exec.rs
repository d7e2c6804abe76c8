//! ExecSync.

use std::time::{Duration, Instant};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::{Daemon, Options, own_memory};
use wharf_proto::cri::ContainerState;

use crate::on_each_handler;

#[tokio::test]
async fn output_and_exit_code_come_back() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let answer = daemon
            .cri
            .exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"], 10)
            .await
            .unwrap();
        assert_eq!(
            (answer.stdout.as_slice(), answer.stderr.as_slice()),
            (&b"out\n"[..], &b"err\n"[..])
        );
        assert_eq!(answer.exit_code, 3, "not zero is no RPC error");
        let answer = daemon.cri.exec(&id, &["sh", "-c", "kill -9 $$"], 10).await.unwrap();
        assert_eq!(answer.exit_code, 137);
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_an_error_that_names_it() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let error = daemon
            .cri
            .exec(&id, &["/no/such/command"], 10)
            .await
            .expect_err("no such command");
        assert!(error.message().contains("/no/such/command"), "{error}");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_20_a_timeout_kills_the_command_and_its_children_and_not_the_container() {
    on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let begin = Instant::now();
        let answer = daemon.cri.exec(&id, &["sh", "-c", "sleep 777 & sleep 778"], 1).await;
        assert_eq!(code(answer), Code::DeadlineExceeded);
        assert!(begin.elapsed() < Duration::from_secs(4), "took {:?}", begin.elapsed());
        wharf_e2e::eventually("the command and its child are gone", async || {
            let processes = daemon.cri.shell(&id, "ps").await.unwrap();
            !processes.contains("sleep 777") && !processes.contains("sleep 778")
        })
        .await;
        assert_eq!(
            daemon.cri.status(&id).await.unwrap().state(),
            ContainerState::ContainerRunning
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn rule_20_output_above_16_mib_is_dropped() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let answer = daemon
        .cri
        .exec(&id, &["sh", "-c", "head -c 20000000 /dev/zero; exit 4"], 60)
        .await
        .unwrap();
    assert_eq!((answer.stdout.len(), answer.exit_code), (16 << 20, 4));
    daemon.finish().await;
}

#[tokio::test]
async fn output_of_what_a_command_leaves_running_is_waited_for() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let late = ["sh", "-c", "(sleep 2; echo late) & echo soon; exit 3"];
    let answer = daemon.cri.exec(&id, &late, 30).await.unwrap();
    assert_eq!((answer.stdout, answer.exit_code), (b"soon\nlate\n".to_vec(), 3));
    let refused = daemon
        .cri
        .exec(&id, &["sh", "-c", "sleep 600 & echo done"], 2)
        .await
        .expect_err("its output stays open");
    // Kubelet takes a deadline for a probe that has failed, and this command was in time.
    assert_eq!(refused.code(), Code::Unknown);
    assert!(refused.message().contains("failed to drain exec process"), "{refused}");
    daemon.finish().await;
}

#[tokio::test]
async fn waiting_for_output_can_be_limited() {
    let daemon = Daemon::with(Options {
        settings: "[containers]\nexec_drain_secs = 1".into(),
        ..Options::default()
    })
    .await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let refused = daemon
        .cri
        .exec(&id, &["sh", "-c", "sleep 600 & echo done"], 0)
        .await
        .expect_err("its output stays open");
    assert!(refused.message().contains("for 1 s"), "{refused}");
    daemon.finish().await;
}

#[tokio::test]
async fn exec_in_a_container_that_does_not_run_is_refused() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "true").await;
    daemon.cri.exited(&id).await.unwrap();
    daemon.cri.exec(&id, &["true"], 5).await.expect_err("it does not run");
    daemon.finish().await;
}

#[tokio::test]
async fn exec_ends_when_its_container_is_stopped() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let begin = Instant::now();
    let (answer, stopped) = tokio::join!(daemon.cri.exec(&id, &["sleep", "600"], 0), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        daemon.cri.stop(&id, 0).await
    });
    stopped.unwrap();
    let _ = answer;
    assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
    daemon.finish().await;
}

#[tokio::test]
async fn a_hundred_execs_leave_no_process_and_no_descriptor() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let descriptors = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let monitor = daemon
        .lab
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("monitor"))
        .expect("a monitor")
        .0;
    for _ in 0..10 {
        daemon.cri.exec(&id, &["true"], 5).await.unwrap();
    }
    let before = (
        descriptors(daemon.pid()),
        descriptors(monitor),
        daemon.lab.processes().len(),
    );
    for _ in 0..100 {
        daemon.cri.exec(&id, &["true"], 5).await.unwrap();
    }
    wharf_e2e::eventually("processes and descriptors are as before", async || {
        let now = (
            descriptors(daemon.pid()),
            descriptors(monitor),
            daemon.lab.processes().len(),
        );
        now.0 <= before.0 + 1 && now.1 <= before.1 && now.2 <= before.2
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn rule_20_a_timeout_reaches_processes_that_left_their_parent_or_their_session() {
    on_each_handler(async |daemon| {
        let config = std::fs::read_to_string(&daemon.config).unwrap();
        let handler = |name: &str| config.contains(&format!("default_runtime = '{name}'"));
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let linked = "sh -c 'sleep 773; true' & sleep 774";
        let orphans = "(sleep 771 & sleep 772 &)";
        // Who has lost its parent is known by its session, which crun does not begin for a command, and who has left that
        // too to the built-in runtime only.
        let line = match (handler("builtin"), handler("runc")) {
            (true, _) => format!("(setsid sleep 775 &); setsid sh -c 'sleep 776; true' & {orphans}; {linked}"),
            (_, true) => format!("{orphans}; {linked}"),
            _ => linked.to_owned(),
        };
        let answer = daemon.cri.exec(&id, &["sh", "-c", &line], 1).await;
        assert_eq!(code(answer), Code::DeadlineExceeded);
        wharf_e2e::eventually("all of them are gone", async || {
            let processes = daemon.cri.shell(&id, "ps -o args").await.unwrap();
            !processes.contains("sleep 77")
        })
        .await;
        let processes = daemon.cri.shell(&id, "ps -o args").await.unwrap();
        assert!(processes.contains("sleep 1000"), "{processes}");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_thousand_execs_leave_no_memory_in_the_monitor() {
    const BOUND: u64 = 64;
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let monitor = daemon
        .lab
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("monitor"))
        .expect("a monitor")
        .0;
    let execs = async |count: usize| {
        let one = async |_: usize| {
            for _ in 0..count / 4 {
                assert_eq!(daemon.cri.exec(&id, &["true"], 30).await.unwrap().exit_code, 0);
            }
        };
        tokio::join!(one(0), one(1), one(2), one(3));
    };
    execs(100).await;
    // It gives memory back when it has been quiet for a while.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = own_memory(monitor);
    let begin = Instant::now();
    execs(1000).await;
    let taken = begin.elapsed();
    wharf_e2e::eventually("its memory is as before", async || {
        own_memory(monitor) <= before + BOUND
    })
    .await;
    println!(
        "1000 execs in {taken:?}, memory {before} KiB before, {} KiB after",
        own_memory(monitor)
    );
    daemon.finish().await;
}
