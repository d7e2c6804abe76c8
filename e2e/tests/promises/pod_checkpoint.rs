//! CheckpointPod and RestorePod. What is promised around CRIU (one moment for all containers, nothing left of what failed,
//! containers that go on) is tested with a program of that name; that processes come back, where CRIU can work.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Request, Status};
use wharf_e2e::{Daemon, Options, container, eventually};
use wharf_proto::cri as pb;

use crate::checkpoint::restoring;

const COUNT: &str = "i=0; while true; do i=$((i+1)); echo $i >/count.new; mv /count.new /count; sleep 0.02; done";

/// A `criu` that notes how every container of the pod stands whenever it dumps one, and makes an image of nothing. With a
/// file `fail` beside it, it fails from the second on; with `hang` it does not end.
const CRIU: &str = r#"#!/bin/sh
here=$(dirname "$0")
while [ $# -gt 0 ]; do
  case "$1" in
    --images-dir) images=$2 ;;
    --freeze-cgroup) cgroup=$2 ;;
  esac
  shift
done
for other in "${cgroup%/*}"/*/; do
  cat "$other/freezer.state" 2>/dev/null || sed -n 's/frozen 1/FROZEN/p' "$other/cgroup.events"
done | grep -c FROZEN >>"$here/frozen"
[ -e "$here/hang" ] && exec /bin/sleep 1000
[ -e "$here/fail" ] && [ "$(wc -l <"$here/frozen")" -gt 1 ] && exit 7
echo image >"$images/inventory.img"
"#;

struct Rig {
    daemon: Daemon,
    criu: tempfile::TempDir,
    config: pb::PodSandboxConfig,
    pod: String,
    /// Containers `one` and `two`, and `three`, which nobody asks for.
    ids: [String; 3],
    output: PathBuf,
}

impl Rig {
    async fn start() -> Self {
        let criu = tempfile::tempdir().unwrap();
        let program = criu.path().join("criu");
        std::fs::write(&program, CRIU).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            criu.path().display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let options = Options {
            path: Some(path),
            ..Options::handler("builtin")
        };
        let daemon = Daemon::with(options).await;
        let mut config = daemon.pod("together");
        // All containers' cgroups beside each other, and nobody else's.
        config.linux.get_or_insert_default().cgroup_parent = "/wharf/podtogether".into();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut ids = Vec::new();
        for name in ["one", "two", "three"] {
            ids.push(daemon.started(&pod, &config, &container(name, &image, COUNT)).await);
        }
        for id in &ids {
            eventually("it counts", async || daemon.cri.shell(id, "cat /count").await.is_ok()).await;
        }
        let output = daemon.dir().join("checkpoint");
        std::fs::create_dir(&output).unwrap();
        Self {
            daemon,
            criu,
            config,
            pod,
            ids: ids.try_into().unwrap(),
            output,
        }
    }

    fn request(&self, ids: &[&str]) -> pb::CheckpointPodRequest {
        pb::CheckpointPodRequest {
            pod_sandbox_id: self.pod.clone(),
            output_path: self.output.to_str().unwrap().to_owned(),
            container_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            ..Default::default()
        }
    }

    /// Asks for a checkpoint of `one` and `two`.
    async fn both(&self, limit: Duration) -> Result<(), Status> {
        let mut request = Request::new(self.request(&[&self.ids[0], &self.ids[1]]));
        request.set_timeout(limit);
        checkpoint(&self.daemon, request).await
    }

    /// How many containers stood still at each dump.
    fn frozen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.criu.path().join("frozen")).unwrap_or_default();
        text.lines().map(ToOwned::to_owned).collect()
    }

    fn tell(&self, what: &str) {
        std::fs::write(self.criu.path().join(what), "").unwrap();
    }

    /// The pod's cgroup is kubelet's to remove.
    async fn finish(self) {
        for pod in self.daemon.cri.pods(None).await.unwrap() {
            self.daemon.gone(&pod.id).await;
        }
        for dir in self.daemon.lab.cgroups_below() {
            if dir.ends_with("podtogether") {
                std::fs::remove_dir(&dir).unwrap();
            }
        }
        self.daemon.finish().await;
    }

    async fn all_go_on(&self) {
        for id in &self.ids {
            let count = async || self.daemon.cri.shell(id, "cat /count").await.unwrap();
            let before = count().await;
            eventually("the container counts on", async || count().await != before).await;
        }
    }
}

async fn checkpoint(daemon: &Daemon, request: Request<pb::CheckpointPodRequest>) -> Result<(), Status> {
    daemon.cri.runtime.clone().checkpoint_pod(request).await.map(drop)
}

async fn restore(daemon: &Daemon, request: pb::RestorePodRequest) -> Result<pb::RestorePodResponse, Status> {
    let answer = daemon.cri.runtime.clone().restore_pod(request).await;
    answer.map(tonic::Response::into_inner)
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn all_containers_stand_still_before_the_first_is_dumped_and_go_on_after_the_last() {
    let rig = Rig::start().await;
    rig.both(Duration::from_secs(120)).await.unwrap();
    assert_eq!(rig.frozen(), ["2", "2"], "not the two that were asked for, both times");
    assert_eq!(
        files(&rig.output),
        ["container-0", "container-1", "pod.dump", "shm.tar"]
    );
    let text = std::fs::read(rig.output.join("pod.dump")).unwrap();
    let pod: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        (&pod["version"], &pod["runtimeHandler"]),
        (&1.into(), &"builtin".into())
    );
    assert_eq!(pod["containers"][1]["name"], "two");
    let place = rig.output.join("container-1");
    for name in [
        "bind.mounts",
        "checkpoint",
        "config.dump",
        "container.log",
        "deleted.files",
        "rootfs-diff.tar",
        "spec.dump",
        "status.dump",
        "volumes.dump",
    ] {
        assert!(files(&place).iter().any(|file| file == name), "{name} is missing");
    }
    assert_eq!(place.metadata().unwrap().permissions().mode() & 0o077, 0);
    let changes = place.join("rootfs-diff.tar").display().to_string();
    let list = rig.daemon.lab.output("tar", &["-tf", &changes]).await.unwrap();
    assert!(list.lines().any(|name| name == "count"), "{list}");
    rig.all_go_on().await;
    let status = pb::ContainerStatusRequest {
        container_id: rig.ids[0].clone(),
        verbose: true,
    };
    let status = rig.daemon.cri.runtime.clone().container_status(status).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.into_inner().info["info"]).unwrap();
    assert_eq!(info["restored"], false);
    assert_eq!(info["checkpointedAt"], pod["checkpointedTime"]);
    rig.finish().await;
}

#[tokio::test]
async fn a_pods_checkpoint_that_fails_leaves_nothing_and_all_containers_go_on() {
    let rig = Rig::start().await;
    rig.tell("fail");
    let error = rig.both(Duration::from_secs(120)).await.unwrap_err();
    assert_eq!(error.code(), Code::Internal, "{error}");
    assert!(error.message().contains(&rig.ids[1]), "{error}");
    assert_eq!(rig.frozen(), ["2", "2"]);
    assert_eq!(files(&rig.output), [""; 0]);
    rig.all_go_on().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_pods_checkpoint_ends_with_its_time_or_its_caller_and_all_containers_go_on() {
    let rig = Rig::start().await;
    rig.tell("hang");
    let error = rig.both(Duration::from_secs(10)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(
        error.message().contains("given up"),
        "not the daemon's own answer: {error}"
    );
    // The answer came after the work was undone.
    assert_eq!(files(&rig.output), [""; 0]);
    rig.all_go_on().await;

    let called = rig.frozen().len();
    {
        let asked = rig.both(Duration::from_secs(600));
        tokio::pin!(asked);
        let begun = eventually("criu is called", async || rig.frozen().len() > called);
        tokio::select! {
            answer = &mut asked => panic!("it has an answer: {answer:?}"),
            () = begun => {}
        }
    }
    rig.all_go_on().await;
    eventually("what was written is removed", async || files(&rig.output).is_empty()).await;
    rig.finish().await;
}

#[tokio::test]
async fn all_containers_go_on_when_the_daemon_is_killed_during_a_pods_checkpoint() {
    let mut rig = Rig::start().await;
    rig.tell("hang");
    let asked = {
        let request = rig.request(&[&rig.ids[0], &rig.ids[1]]);
        let client = rig.daemon.cri.clone();
        tokio::spawn(async move { client.runtime.clone().checkpoint_pod(request).await })
    };
    eventually("criu is called", async || !rig.frozen().is_empty()).await;
    rig.daemon.crash().await;
    asked.await.unwrap().unwrap_err();
    rig.all_go_on().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_pods_checkpoint_that_makes_no_sense_is_refused() {
    let rig = Rig::start().await;
    let [one, two, _] = &rig.ids;
    let other = rig.daemon.pod("other");
    let other_pod = rig.daemon.cri.run_pod(&other, "").await.unwrap();
    let image = rig.daemon.busybox().await;
    let stranger = container("stranger", &image, "sleep 1000");
    let stranger = rig.daemon.started(&other_pod, &other, &stranger).await;
    let created = container("created", &image, "sleep 1000");
    let created = rig.daemon.cri.create(&rig.pod, &created, &rig.config).await.unwrap();
    let mut twice = container("one", &image, "sleep 1000");
    twice.metadata.get_or_insert_default().attempt = 1;
    let twice = rig.daemon.started(&rig.pod, &rig.config, &twice).await;
    let full = rig.daemon.dir().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("file"), "").unwrap();
    let at = |path: &str| pb::CheckpointPodRequest {
        output_path: path.to_owned(),
        ..rig.request(&[one])
    };
    let mut options = rig.request(&[one]);
    options.options.insert("leave-stopped".into(), "true".into());
    let mut unknown = rig.request(&[one]);
    unknown.pod_sandbox_id = "unknown".into();
    let cases = [
        (unknown, Code::NotFound, "unknown"),
        (rig.request(&[]), Code::InvalidArgument, "no container"),
        (rig.request(&["unknown"]), Code::NotFound, "unknown"),
        (rig.request(&[one, two, one]), Code::InvalidArgument, "twice"),
        (rig.request(&[one, &stranger]), Code::InvalidArgument, "another pod"),
        (rig.request(&[one, &created]), Code::FailedPrecondition, "not running"),
        (rig.request(&[one, &twice]), Code::InvalidArgument, "the name \"one\""),
        (options, Code::InvalidArgument, "leave-stopped"),
        (at(""), Code::InvalidArgument, "empty"),
        (at("checkpoint"), Code::InvalidArgument, "absolute"),
        (at("/no/such/directory"), Code::InvalidArgument, "existing"),
        (at(full.to_str().unwrap()), Code::InvalidArgument, "empty directory"),
        (at("/proc/version"), Code::InvalidArgument, "directory"),
    ];
    for (request, code, words) in cases {
        let error = checkpoint(&rig.daemon, Request::new(request)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(words), "{words}: {error}");
    }
    assert_eq!(rig.frozen(), [""; 0], "criu was called");
    assert_eq!(files(&rig.output), [""; 0]);
    rig.all_go_on().await;
    rig.finish().await;
}

#[tokio::test]
async fn a_restore_that_cannot_be_says_why_and_leaves_nothing() {
    let rig = Rig::start().await;
    rig.both(Duration::from_secs(120)).await.unwrap();
    let image = rig.daemon.busybox().await;
    let config = |name: &str| container(name, &image, COUNT);
    let good = pb::RestorePodRequest {
        checkpoint_path: rig.output.to_str().unwrap().to_owned(),
        config: Some(rig.daemon.pod("again")),
        container_configs: vec![config("one"), config("two")],
        ..Default::default()
    };
    let with = |edit: &dyn Fn(&mut pb::RestorePodRequest)| {
        let mut request = good.clone();
        edit(&mut request);
        request
    };
    let empty = rig.daemon.dir().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let cases = [
        (with(&|r| r.config = None), Code::InvalidArgument, "pod sandbox config"),
        (
            with(&|r| r.container_configs.clear()),
            Code::InvalidArgument,
            "no container",
        ),
        (with(&|r| drop(r.container_configs.pop())), Code::InvalidArgument, "two"),
        (
            with(&|r| r.container_configs.push(config("four"))),
            Code::InvalidArgument,
            "four",
        ),
        (
            with(&|r| r.container_configs.push(config("one"))),
            Code::InvalidArgument,
            "\"one\"",
        ),
        (
            with(&|r| r.runtime_handler = "unknown".into()),
            Code::InvalidArgument,
            "unknown",
        ),
        (
            with(&|r| r.checkpoint_path = "relative".into()),
            Code::InvalidArgument,
            "absolute",
        ),
        (
            with(&|r| r.checkpoint_path = empty.to_str().unwrap().into()),
            Code::InvalidArgument,
            "pod.dump",
        ),
        (
            with(&|r| drop(r.options.insert("x-option".into(), String::new()))),
            Code::InvalidArgument,
            "x-option",
        ),
        (
            with(&|r| r.config = Some(rig.config.clone())),
            Code::AlreadyExists,
            &rig.pod,
        ),
    ];
    for (request, code, words) in cases {
        let error = restore(&rig.daemon, request).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(words), "{words}: {error}");
    }
    let pods = async || rig.daemon.cri.pods(None).await.unwrap().len();
    if !wharf_e2e::lab::is_v2() {
        let error = restore(&rig.daemon, good.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented, "{error}");
        assert!(error.message().contains("cgroup v1"), "{error}");
    }
    // What is refused after the pod is there takes it away again.
    let other = with(&|r| r.container_configs[1].command = vec!["other".into()]);
    restore(&rig.daemon, other).await.unwrap_err();
    let other = with(&|r| r.container_configs[0].image = Some(wharf_e2e::cri::image_spec("127.0.0.1:5000/absent:1")));
    assert_eq!(restore(&rig.daemon, other).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(pods().await, 1);
    rig.all_go_on().await;
    rig.finish().await;
}

/// Two counters and the memory that they share go on in another pod, each when it is started and not before.
#[tokio::test]
async fn a_pod_comes_back_from_its_checkpoint() {
    for handler in crate::handlers() {
        let Some(daemon) = restoring(&handler).await else {
            continue;
        };
        let config = daemon.pod("first");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let line = format!("export MARK=kept; {COUNT}");
        let configs = ["one", "two"].map(|name| container(name, &image, &line));
        let mut ids = Vec::new();
        for one in &configs {
            ids.push(daemon.started(&pod, &config, one).await);
        }
        daemon.cri.shell(&ids[0], "echo shared >/dev/shm/file").await.unwrap();
        let count = async |id: &str| -> u64 {
            let text = daemon.cri.shell(id, "cat /count").await.unwrap_or_default();
            text.trim().parse().unwrap_or(0)
        };
        for id in &ids {
            eventually("it counts to thirty", async || count(id).await >= 30).await;
        }
        let output = daemon.dir().join("checkpoint");
        std::fs::create_dir(&output).unwrap();
        let request = pb::CheckpointPodRequest {
            pod_sandbox_id: pod.clone(),
            output_path: output.to_str().unwrap().to_owned(),
            container_ids: ids.clone(),
            ..Default::default()
        };
        let made = checkpoint(&daemon, Request::new(request)).await;
        made.unwrap_or_else(|error| panic!("{error}"));
        let before = count(&ids[0]).await;
        eventually("it counts on", async || count(&ids[0]).await > before).await;
        daemon.gone(&pod).await;

        let config = daemon.pod("second");
        let request = pb::RestorePodRequest {
            checkpoint_path: output.to_str().unwrap().to_owned(),
            config: Some(config.clone()),
            container_configs: configs.to_vec(),
            ..Default::default()
        };
        let mut wrong = request.clone();
        wrong.container_configs[0].envs.push(wharf_e2e::specs::env("MORE", "1"));
        let error = restore(&daemon, wrong).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains("MORE"), "{error}");
        assert_eq!(daemon.cri.pods(None).await.unwrap().len(), 0);

        let restored = restore(&daemon, request.clone())
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let names: Vec<_> = restored
            .restored_containers
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["one", "two"]);
        // Asked again it is the same pod, as long as nothing has run.
        assert_eq!(restore(&daemon, request.clone()).await.unwrap(), restored);
        for one in &restored.restored_containers {
            let status = daemon.cri.status(&one.container_id).await.unwrap();
            assert_eq!(status.state(), pb::ContainerState::ContainerCreated);
        }
        std::fs::remove_dir_all(&output).unwrap();
        for one in &restored.restored_containers {
            daemon
                .cri
                .start(&one.container_id)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            let id = &one.container_id;
            assert!(count(id).await >= 30, "{} began anew", one.name);
            let before = count(id).await;
            eventually("it counts on", async || count(id).await > before).await;
            assert_eq!(daemon.cri.shell(id, "cat /dev/shm/file").await.unwrap(), "shared\n");
        }
        daemon.finish().await;
    }
}
