//! Two calls for the same object at once, and calls whose caller goes away: what both want is done, or one is refused, and
//! nothing is left of either (contract rules 1, 7 and 37).

use std::time::Duration;

use tonic::{Code, Status};
use wharf_e2e::cri::Answer;
use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, container, eventually};
use wharf_proto::cri as pb;

/// How long after the first call the second comes, in milliseconds: once at each stage of what the first does.
const OFFSETS: [u64; 4] = [0, 2, 8, 30];

/// One pod with one container.
struct Target<'a> {
    daemon: &'a Daemon,
    config: pb::PodSandboxConfig,
    main: pb::ContainerConfig,
    pod: String,
    id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Run,
    StopPod,
    RemovePod,
    UpdatePod,
    Create,
    Start,
    Stop,
    Remove,
    Exec,
    Update,
    Reopen,
    Status,
    Stats,
}
use Call::{Create, Exec, Remove, RemovePod, Reopen, Run, Start, Stats, Stop, StopPod, Update, UpdatePod};

impl Target<'_> {
    async fn call(&self, call: Call) -> Answer<()> {
        let cri = &self.daemon.cri;
        let mut runtime = cri.runtime.clone();
        match call {
            Run => cri.run_pod(&self.config, "").await.map(drop),
            StopPod => cri.stop_pod(&self.pod).await,
            RemovePod => cri.remove_pod(&self.pod).await,
            UpdatePod => {
                let request = pb::UpdatePodSandboxResourcesRequest {
                    pod_sandbox_id: self.pod.clone(),
                    resources: Some(limits()),
                    ..Default::default()
                };
                runtime.update_pod_sandbox_resources(request).await.map(drop)
            }
            Create => {
                let mut other = self.main.clone();
                other.metadata.as_mut().unwrap().name = "other".into();
                cri.create(&self.pod, &other, &self.config).await.map(drop)
            }
            Start => cri.start(&self.id).await,
            Stop => cri.stop(&self.id, 0).await,
            Remove => cri.remove(&self.id).await,
            Exec => cri.exec(&self.id, &["true"], 10).await.map(drop),
            Update => {
                let request = pb::UpdateContainerResourcesRequest {
                    container_id: self.id.clone(),
                    linux: Some(limits()),
                    ..Default::default()
                };
                runtime.update_container_resources(request).await.map(drop)
            }
            Reopen => cri.reopen_log(&self.id).await,
            Call::Status => cri.status(&self.id).await.map(drop),
            Stats => {
                let container_id = self.id.clone();
                let request = pb::ContainerStatsRequest { container_id };
                runtime.container_stats(request).await.map(drop)
            }
        }
    }
}

fn limits() -> pb::LinuxContainerResources {
    pb::LinuxContainerResources {
        cpu_shares: 200,
        memory_limit_in_bytes: 100 << 20,
        ..Default::default()
    }
}

/// A call may win, or come too late for its object's state; nothing else.
fn fair(call: Call, answer: &Answer<()>) -> bool {
    let Err(status) = answer else { return true };
    // Stop and Remove have no state that is too late.
    let always = matches!(call, StopPod | RemovePod | Stop | Remove);
    let late = [Code::FailedPrecondition, Code::NotFound, Code::AlreadyExists];
    // The command may have begun and been ended with its container.
    let ended = matches!(call, Exec) && status.code() == Code::Internal;
    (!always && late.contains(&status.code())) || ended
}

async fn target<'a>(daemon: &'a Daemon, image: &str, started: bool) -> Target<'a> {
    let config = daemon.pod("race");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", image, "sleep 1000");
    let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
    if started {
        daemon.cri.start(&id).await.unwrap();
    }
    Target {
        daemon,
        config,
        main,
        pod,
        id,
    }
}

async fn race(daemon: &Daemon, image: &str, started: bool, first: Call, second: Call) {
    for offset in OFFSETS {
        let target = target(daemon, image, started).await;
        let later = async {
            tokio::time::sleep(Duration::from_millis(offset)).await;
            target.call(second).await
        };
        let both = async { tokio::join!(target.call(first), later) };
        let (a, b) = tokio::time::timeout(wharf_e2e::PATIENCE, both)
            .await
            .unwrap_or_else(|_| panic!("{first:?} and {second:?} wait for each other"));
        assert!(fair(first, &a), "{first:?}, and after {offset} ms {second:?}: {a:?}");
        assert!(fair(second, &b), "{first:?}, and after {offset} ms {second:?}: {b:?}");
        let left = daemon.cri.containers(None).await.unwrap();
        let one_is = |wanted: fn(Call) -> bool| wanted(first) || wanted(second);
        if one_is(|call| matches!(call, Remove | RemovePod)) {
            assert!(
                left.iter().all(|one| one.id != target.id),
                "{first:?}, {second:?}: it is still listed"
            );
        }
        if one_is(|call| matches!(call, StopPod | RemovePod)) {
            let running = left
                .iter()
                .find(|one| one.pod_sandbox_id == target.pod && one.state() == pb::ContainerState::ContainerRunning);
            assert!(running.is_none(), "{first:?}, {second:?}: {running:?} still runs");
        }
        if one_is(|call| matches!(call, RemovePod)) {
            let pods = daemon.cri.pods(None).await.unwrap();
            assert!(
                pods.iter().all(|pod| pod.id != target.pod),
                "{first:?}, {second:?}: the pod is still listed"
            );
        }
        for pod in daemon.cri.pods(None).await.unwrap() {
            daemon.gone(&pod.id).await;
        }
    }
    assert!(daemon.cri.containers(None).await.unwrap().is_empty());
}

/// The calls of which each meets each.
const ALL: [Call; 8] = [Run, StopPod, RemovePod, Create, Start, Stop, Remove, Exec];

/// `first` and each other call for the same pod and container, which runs or does not.
async fn meets_all(first: Call) {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for started in [false, true] {
        for second in ALL {
            race(&daemon, &image, started, first, second).await;
        }
    }
    daemon.finish().await;
}

macro_rules! meets_all {
    ($($name:ident: $call:expr,)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                meets_all($call).await;
            }
        )*
    };
}

meets_all! {
    a_run_and_any_other_call_at_once: Run,
    a_stop_of_the_pod_and_any_other_call_at_once: StopPod,
    a_removal_of_the_pod_and_any_other_call_at_once: RemovePod,
    a_creation_and_any_other_call_at_once: Create,
    a_start_and_any_other_call_at_once: Start,
    a_stop_and_any_other_call_at_once: Stop,
    a_removal_and_any_other_call_at_once: Remove,
    a_command_and_any_other_call_at_once: Exec,
}

#[tokio::test]
async fn updates_and_questions_beside_what_changes_the_container() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for second in [Update, Reopen, Stats] {
        race(&daemon, &image, false, Start, second).await;
    }
    for (first, second) in [
        (Stop, Update),
        (Stop, Reopen),
        (Update, Stop),
        (Update, Update),
        (Update, Remove),
        (Remove, Call::Status),
        (StopPod, UpdatePod),
        (UpdatePod, RemovePod),
    ] {
        race(&daemon, &image, true, first, second).await;
    }
    daemon.finish().await;
}

/// How long a call is waited for before its caller goes, in milliseconds.
const PATIENT: [u64; 6] = [0, 1, 3, 9, 27, 81];

/// Contract rule 37: whatever a call had come to when its caller went, the same call again ends it, and nothing is left.
#[tokio::test]
async fn any_call_that_is_dropped_at_any_time_can_be_made_again() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for call in ALL {
        for wait in PATIENT {
            // Commands need one that runs, starts one that does not.
            let mut target = target(&daemon, &image, !matches!(call, Start)).await;
            if matches!(call, Run) {
                // There is none of this attempt yet.
                target.config.metadata.as_mut().unwrap().attempt = 1;
            }
            let _ = tokio::time::timeout(Duration::from_millis(wait), target.call(call)).await;
            let again = tokio::time::timeout(wharf_e2e::PATIENCE, target.call(call)).await;
            let again = again.unwrap_or_else(|_| panic!("{call:?} hangs after one that was dropped after {wait} ms"));
            // A second start finds that the first has been made all the same.
            assert!(
                again.is_ok() || matches!(call, Start) && fair(call, &again),
                "{call:?} after one that was dropped after {wait} ms: {again:?}"
            );
            for pod in daemon.cri.pods(None).await.unwrap() {
                daemon.gone(&pod.id).await;
            }
            assert!(daemon.cri.containers(None).await.unwrap().is_empty(), "{call:?}");
        }
    }
    daemon.finish().await;
}

/// The image's files; what a pull has begun and not finished is not among them.
fn files(daemon: &Daemon) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![daemon.state_dir.join("images")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            found.push(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn pulls_that_are_dropped_at_any_time_leave_nothing() {
    let daemon = Daemon::start().await;
    let name = reference("busybox:latest");
    let before = files(&daemon);
    for wait in [0, 1, 2, 4, 8, 16, 32, 64, 128] {
        let dropped = tokio::time::timeout(Duration::from_millis(wait), daemon.cri.pull(&name)).await;
        let (again, beside) = tokio::join!(daemon.cri.pull(&name), daemon.cri.pull(&name));
        let id = again.unwrap();
        assert_eq!(id, beside.unwrap());
        assert!(dropped.is_err() || dropped.unwrap().unwrap() == id);
        let (removed, pulled) = tokio::join!(daemon.cri.remove_image(&name), daemon.cri.pull(&name));
        removed.unwrap();
        pulled.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(wait), daemon.cri.remove_image(&name)).await;
        daemon.cri.remove_image(&name).await.unwrap();
        assert!(daemon.cri.image_list().await.unwrap().is_empty());
    }
    eventually("no file is left of the image", async || files(&daemon) == before).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_container_is_made_or_refused_while_its_image_is_removed() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("image");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    for (attempt, offset) in (0..).zip(OFFSETS) {
        let image = daemon.busybox().await;
        let mut main = container("main", &image, "sleep 1000");
        main.metadata.as_mut().unwrap().attempt = attempt;
        let remove = async {
            tokio::time::sleep(Duration::from_millis(offset)).await;
            daemon.cri.remove_image(&image).await
        };
        let (created, removed) = tokio::join!(daemon.cri.create(&pod, &main, &config), remove);
        removed.unwrap();
        match created {
            // Its layers stay as long as it needs them.
            Ok(id) => {
                daemon.cri.start(&id).await.unwrap();
                daemon.cri.shell(&id, "ls /bin/busybox").await.unwrap();
                daemon.cri.remove(&id).await.unwrap();
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
        }
    }
    daemon.finish().await;
}

/// Drops `call` after `wait`; whether it had ended by then.
async fn dropped(wait: Duration, call: impl Future<Output = Answer<()>>) -> Option<Result<(), Status>> {
    tokio::time::timeout(wait, call).await.ok()
}

#[tokio::test]
async fn stops_and_removals_that_are_dropped_at_any_time_are_finished_by_the_next() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    for wait in [0, 1, 2, 5, 10, 20, 50] {
        let wait = Duration::from_millis(wait);
        let config = daemon.pod("dropped");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let ids = [
            daemon
                .started(&pod, &config, &container("one", &image, "sleep 1000"))
                .await,
            daemon
                .started(
                    &pod,
                    &config,
                    &container("two", &image, "trap '' TERM; sleep 1000 & wait"),
                )
                .await,
        ];
        let _ = dropped(wait, daemon.cri.remove(&ids[0])).await;
        daemon.cri.remove(&ids[0]).await.unwrap();
        let _ = dropped(wait, daemon.cri.stop(&ids[1], 1000)).await;
        let _ = dropped(wait, daemon.cri.stop_pod(&pod)).await;
        let _ = dropped(wait, daemon.cri.remove_pod(&pod)).await;
        daemon.gone(&pod).await;
        assert!(daemon.cri.pods(None).await.unwrap().is_empty());
        assert!(daemon.cri.containers(None).await.unwrap().is_empty());
    }
    daemon.finish().await;
}

/// Nobody can ask for what it wrote any more, so it is undone (contract rule 37).
#[tokio::test]
async fn rule_37_a_command_whose_caller_has_gone_is_killed() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let commands = || {
        let processes = daemon.lab.processes().into_iter();
        processes.filter(|(_, line)| line.contains("sleep 31337")).count()
    };
    let call = daemon.cri.exec(&id, &["sh", "-c", "sleep 31337 & sleep 31337"], 0);
    tokio::select! {
        answer = call => panic!("it sleeps for long: {answer:?}"),
        () = eventually("both run", async || commands() >= 2) => {}
    }
    eventually("they are gone", async || commands() == 0).await;
    daemon.cri.shell(&id, "true").await.unwrap();
    daemon.finish().await;
}
