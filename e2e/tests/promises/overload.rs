//! More than the machine has: the call that meets it ends with a clear error, others are not delayed, and when the cause is
//! gone all is well without a restart. Full disks are in `full_disk.rs`, stuck file systems in `stuck.rs`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use tonic::Code;
use wharf_e2e::cri::Answer;
use wharf_e2e::fuse::{self, Stuck};
use wharf_e2e::{Daemon, Options, container, eventually, host_network_pod, specs};
use wharf_proto::cri::{self as pb, ContainerState};

use crate::network::with_plugin;
use crate::stuck::all_else_goes_on;

/// The files by which the kernel limits and counts the processes of a lab.
struct Processes(PathBuf);

impl Processes {
    fn of(daemon: &Daemon) -> Self {
        let found = daemon.lab.cgroups.iter().find(|dir| dir.join("pids.max").exists());
        Self(found.expect("the kernel counts processes").clone())
    }

    fn now(&self) -> u64 {
        let text = std::fs::read_to_string(self.0.join("pids.current")).unwrap();
        text.trim().parse().unwrap()
    }

    fn limit(&self, limit: &str) {
        std::fs::write(self.0.join("pids.max"), limit).unwrap();
    }
}

#[tokio::test]
async fn a_node_without_processes_says_so_and_what_gives_some_back_works() {
    let daemon = Daemon::start().await;
    let processes = Processes::of(&daemon);
    let before = daemon.pid();
    let (well, main) = daemon.running("well", "sleep 1000").await;
    let line = "i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); done; touch /full; wait";
    let (pod, bomb) = daemon.running("bomb", line).await;
    eventually("it has all its processes", async || {
        daemon.cri.shell(&bomb, "test -e /full").await.is_ok()
    })
    .await;
    processes.limit(&processes.now().to_string());
    for round in 0..3 {
        let refused = daemon.cri.run_pod(&daemon.pod(&format!("refused-{round}")), "").await;
        let error = refused.expect_err("there is no process for it");
        assert!(error.message().contains("temporarily unavailable"), "{error}");
        let refused = daemon.cri.exec(&main, &["true"], 10).await;
        let error = refused.expect_err("there is no process for it");
        assert!(error.message().contains("temporarily unavailable"), "{error}");
    }
    // What reads goes on, and so does what gives processes back.
    let listed = daemon.cri.pods(None).await.unwrap();
    let ready = listed
        .iter()
        .filter(|pod| pod.state() == pb::PodSandboxState::SandboxReady);
    // One that could not even be taken down is listed, so that it can be removed later (rule 6).
    assert_eq!(ready.count(), 2, "{listed:?}");
    daemon
        .cri
        .stop(&bomb, 0)
        .await
        .expect("StopContainer without processes");
    let status = daemon.cri.status(&bomb).await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 137)
    );
    daemon.gone(&pod).await;
    assert_eq!(daemon.cri.shell(&main, "echo well").await.unwrap(), "well\n");

    // Not one to spare, and nothing that can be given back but by the daemon itself.
    processes.limit(&processes.now().to_string());
    daemon
        .cri
        .run_pod(&daemon.pod("none"), "")
        .await
        .expect_err("there is no process for it");
    processes.limit("max");
    let (again, id) = daemon.running("again", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&id, "echo well").await.unwrap(), "well\n");
    assert_eq!(daemon.pid(), before);
    for pod in [well, again] {
        daemon.gone(&pod).await;
    }
    let log = daemon.log();
    assert!(!log.contains("panicked"), "something panicked");
    daemon.finish().await;
}

#[tokio::test]
async fn a_cni_plugin_that_hangs_holds_up_its_own_pod_and_stop_works_when_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let hang = |command: &str| dir.path().join(format!("hang-{command}"));
    // What it has started holds its output open, too.
    let script = format!(
        r#"cat >/dev/null; [ -e {}/hang-$CNI_COMMAND ] && {{ sleep 600 & sleep 600; }}; [ $CNI_COMMAND = DEL ] && exit 0
echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"eth0","sandbox":"x"}}],"ips":[{{"address":"10.9.0.2/24","interface":0}}]}}'"#,
        dir.path().display()
    );
    let daemon = with_plugin(dir.path(), &script, 2).await;
    let hanging = || {
        daemon
            .lab
            .processes()
            .iter()
            .filter(|(_, line)| line == "sleep 600")
            .count()
    };
    let on_host = async |name: &str| {
        let config = host_network_pod(name, &daemon.logs);
        let begin = Instant::now();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = container("main", &daemon.busybox().await, "sleep 1000");
        let id = daemon.started(&pod, &config, &main).await;
        assert_eq!(daemon.cri.shell(&id, "echo yes").await.unwrap(), "yes\n");
        daemon.gone(&pod).await;
        begin.elapsed()
    };
    std::fs::write(hang("ADD"), "").unwrap();
    let config = daemon.pod("hangs");
    let (failed, _) = tokio::join!(daemon.cri.run_pod(&config, ""), async {
        eventually("the plugin hangs", async || hanging() > 0).await;
        on_host("during-add").await
    });
    let error = failed.expect_err("the plugin hangs");
    assert!(error.message().contains("fake"), "{error}");
    eventually("what hung is gone", async || hanging() == 0).await;
    std::fs::remove_file(hang("ADD")).unwrap();
    let pod = daemon.cri.run_pod(&config, "").await.expect("the plugin answers again");

    std::fs::write(hang("DEL"), "").unwrap();
    let (failed, _) = tokio::join!(daemon.cri.stop_pod(&pod), async {
        eventually("the plugin hangs", async || hanging() > 0).await;
        on_host("during-del").await
    });
    let error = failed.expect_err("the plugin hangs");
    assert!(error.message().contains("fake"), "{error}");
    eventually("what hung is gone", async || hanging() == 0).await;
    std::fs::remove_file(hang("DEL")).unwrap();
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_volume_that_hangs_in_start_holds_up_only_who_wants_it() {
    let mut daemon = Daemon::start().await;
    let (image, config) = (daemon.busybox().await, daemon.pod("stuck"));
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let volume = daemon.dir().join("volume");
    std::fs::create_dir_all(volume.join(fuse::HANG)).unwrap();
    let mut main = container("main", &image, "sleep 1000");
    main.mounts = vec![specs::mount(
        &volume.join(fuse::HANG).to_string_lossy(),
        "/volume",
        false,
    )];
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    // The network has gone since.
    let mut stuck = Stuck::start(&daemon.lab, volume).await.unwrap();
    let (cri, of) = (daemon.cri.clone(), id.clone());
    let start = tokio::spawn(async move { cri.start(&of).await });
    stuck.waits(fuse::HANG).await.unwrap();
    all_else_goes_on(&daemon, "meanwhile").await;
    let other = daemon
        .started(&pod, &config, &container("other", &image, "sleep 1000"))
        .await;
    daemon.cri.shell(&other, "true").await.unwrap();
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerCreated, "{status:?}");
    // Kubelet gives up on it, and tries again for as long as that takes.
    let deadline = Duration::from_millis(500);
    for _ in 0..3 {
        let stopped = tokio::time::timeout(deadline, daemon.cri.stop_pod(&pod)).await;
        assert!(stopped.is_err(), "nothing can have stopped it: {stopped:?}");
    }
    daemon.crash().await;
    all_else_goes_on(&daemon, "after-crash").await;

    stuck.end(&daemon.lab).await.unwrap();
    let _ = start
        .await
        .unwrap()
        .expect_err("its daemon is gone, and so is its volume");
    tokio::time::timeout(wharf_e2e::PATIENCE, daemon.gone(&pod))
        .await
        .expect("nothing is in the way any more");
    daemon.finish().await;
}

/// Files of pulls under way.
fn unfinished(state: &Path) -> usize {
    std::fs::read_dir(state.join("images/tmp"))
        .into_iter()
        .flatten()
        .count()
}

#[tokio::test]
async fn a_registry_that_sends_a_byte_a_second_holds_up_nobody_and_is_given_up() {
    const SLOW: &str = "127.0.0.1:5009";
    let daemon = Daemon::with(Options {
        tables: "[pull]\nstall_timeout_secs = 2\nkeep_partial_secs = 0\n".into(),
        ..Options::default()
    })
    .await;
    let (mut server, mut told) = daemon.helper(&["trickle", SLOW]).await;
    let slow = format!("{SLOW}/busybox:latest");
    // Given up by its caller: nothing of it stays, and the registry is left alone.
    let pull = daemon.cri.pull(&slow);
    tokio::select! {
        answer = pull => panic!("it takes days: {answer:?}"),
        line = told.next_line() => assert_eq!(line.unwrap().as_deref(), Some("trickles")),
    }
    eventually("nothing of the pull is left", async || {
        unfinished(&daemon.state_dir) == 0
    })
    .await;
    assert_eq!(told.next_line().await.unwrap().as_deref(), Some("gone"));
    assert!(daemon.cri.image(&slow).await.unwrap().is_none());

    // Left alone it ends by itself, and meanwhile others are pulled: the same layers, too.
    let begin = Instant::now();
    let (slowly, quickly) = tokio::join!(daemon.cri.pull(&slow), async {
        assert_eq!(told.next_line().await.unwrap().as_deref(), Some("trickles"));
        let other = wharf_e2e::registry::reference("layers:latest");
        daemon.cri.pull(&other).await.unwrap();
        daemon.cri.remove_image(&other).await.unwrap();
        begin.elapsed()
    });
    let error = slowly.expect_err("nobody waits that long");
    // Kubelet knows this beginning.
    assert!(error.message().starts_with("RegistryUnavailable: "), "{error}");
    assert!(error.message().contains("bytes came within"), "{error}");
    assert!(begin.elapsed() > quickly, "the other pull waited for it");
    eventually("nothing of the pull is left", async || {
        unfinished(&daemon.state_dir) == 0
    })
    .await;
    let (pod, _) = daemon.running("after", "sleep 1000").await;
    daemon.gone(&pod).await;
    for (pid, line) in daemon.lab.processes() {
        if line.contains("trickle") {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    server.wait().await.unwrap();
    daemon.finish().await;
}

/// `WHARF_MANY` says how many pods; 60 by default, of which 50 are asked for at once.
#[tokio::test]
async fn many_pods_come_and_go_under_a_client_with_little_patience() {
    const AT_ONCE: usize = 50;
    let count: usize = std::env::var("WHARF_MANY").map_or(60, |count| count.parse().unwrap());
    let mut daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let begin = Instant::now();
    let mut pods = Vec::new();
    let mut slowest = Duration::ZERO;
    for first in (0..count).step_by(AT_ONCE) {
        let numbers = first..count.min(first + AT_ONCE);
        let all = join_all(numbers.map(|number| whole(&daemon, &image, number)));
        let (made, worst) = beside(&daemon, all).await;
        pods.extend(made);
        slowest = slowest.max(worst);
    }
    println!(
        "{count} pods, {AT_ONCE} at once, in {:?}; slowest read beside it {slowest:?}",
        begin.elapsed()
    );
    let listed = daemon.cri.pods(None).await.unwrap();
    assert_eq!(listed.len(), count, "each once");
    let running = daemon.cri.containers(None).await.unwrap();
    assert_eq!(running.len(), count);
    assert!(
        running
            .iter()
            .all(|one| one.state() == ContainerState::ContainerRunning)
    );
    let addresses: std::collections::HashSet<_> = pods.iter().map(|(_, ip)| ip.clone()).collect();
    assert_eq!(addresses.len(), count, "an address was given twice");

    daemon.end(nix::sys::signal::Signal::SIGKILL).await.unwrap();
    let begin = Instant::now();
    daemon.start_again().await.unwrap();
    let again = daemon.cri.containers(None).await.unwrap();
    println!("{count} pods found again and listed in {:?}", begin.elapsed());
    assert_eq!(again.len(), count);
    assert!(again.iter().all(|one| one.state() == ContainerState::ContainerRunning));

    let begin = Instant::now();
    for some in pods.chunks(AT_ONCE) {
        let all = join_all(some.iter().map(|(pod, _)| gone(&daemon, pod)));
        let (_, worst) = beside(&daemon, all).await;
        slowest = slowest.max(worst);
    }
    println!(
        "{count} pods removed in {:?}; slowest read {slowest:?}",
        begin.elapsed()
    );
    daemon.finish().await;
}

/// A pod with a running container, as kubelet makes it: each call with a short deadline, tried again until it works.
/// Returns id and address.
async fn whole(daemon: &Daemon, image: &str, number: usize) -> (String, String) {
    let config = daemon.pod(&format!("many-{number}"));
    let pod = persist(async || daemon.cri.run_pod(&config, "").await).await;
    let main = container("main", image, "sleep 1000");
    let id = persist(async || daemon.cri.create(&pod, &main, &config).await).await;
    let started = async || {
        match daemon.cri.start(&id).await {
            // An earlier try has started it.
            Err(status) if status.code() == Code::FailedPrecondition => {
                let status = daemon.cri.status(&id).await?;
                assert_eq!(status.state(), ContainerState::ContainerRunning, "{status:?}");
                Ok(())
            }
            answer => answer,
        }
    };
    persist(started).await;
    let status = daemon.cri.pod_status(&pod).await.unwrap();
    (pod, status.network.unwrap().ip)
}

async fn gone(daemon: &Daemon, pod: &str) {
    persist(async || daemon.cri.stop_pod(pod).await).await;
    persist(async || daemon.cri.remove_pod(pod).await).await;
}

/// Calls with a deadline of a second until it works; anything but a deadline fails the test.
async fn persist<T>(call: impl AsyncFn() -> Answer<T>) -> T {
    let end = Instant::now() + Duration::from_secs(300);
    while Instant::now() < end {
        match tokio::time::timeout(Duration::from_secs(1), call()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(status)) => panic!("refused under load: {status}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("not done within five minutes");
}

/// Does `work` while kubelet's reads go on; returns how long the slowest of them took.
async fn beside<T>(daemon: &Daemon, work: impl Future<Output = T>) -> (T, Duration) {
    let mut slowest = Duration::ZERO;
    let mut work = std::pin::pin!(work);
    loop {
        let reads = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let begin = Instant::now();
            let mut runtime = daemon.cri.runtime.clone();
            runtime.version(pb::VersionRequest::default()).await.unwrap();
            let status = runtime.status(pb::StatusRequest::default()).await.unwrap().into_inner();
            assert!(
                status
                    .status
                    .unwrap()
                    .conditions
                    .iter()
                    .all(|condition| condition.status)
            );
            daemon.cri.pods(None).await.unwrap();
            daemon.cri.containers(None).await.unwrap();
            begin.elapsed()
        };
        tokio::select! {
            made = &mut work => return (made, slowest),
            taken = reads => slowest = slowest.max(taken),
        }
    }
}
