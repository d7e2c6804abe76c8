//! At each fail point of the daemon (`src/failpoint.rs`; for those of monitors see `monitor_points.rs`) a step fails, hangs or kills. A client that does as kubelet does
//! must then get what it wants by trying again, and nothing may be left at the end. Each test prints its table.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use tonic::{Code, Status};
use wharf_e2e::cri::{Answer, Cri};
use wharf_e2e::{Daemon, container, eventually, guard, registry};
use wharf_proto::cri::{ContainerState, PodSandboxState};

/// What the client gives a call that hangs.
const DEADLINE: Duration = Duration::from_millis(1500);
/// How often it tries again.
const TRIES: usize = 8;

/// Every fail point, by the step of the client that leads to it.
const POINTS: &[(Step, &[&str])] = &[
    (
        Step::Pull,
        &[
            "pull.resolved",
            "pull.config",
            "pull.transfer",
            "pull.unpacked",
            "pull.layers",
            "pull.shown",
        ],
    ),
    (
        Step::Run,
        &[
            "run.begin",
            "run.files",
            "run.namespaces",
            "run.attached",
            "run.monitor",
            "run.monitored",
            "run.parts",
            "run.ready",
        ],
    ),
    (
        Step::Create,
        &[
            "create.record",
            "create.rootfs",
            "create.volumes",
            "create.bundle",
            "create.created",
        ],
    ),
    (Step::Start, &["start.begin", "start.noted", "start.started"]),
    (Step::Stop, &["stop.kill", "release.let-go"]),
    (Step::Remove, &["remove.begin", "remove.released", "remove.gone"]),
    (
        Step::StopPod,
        &[
            "down.begin",
            "down.detached",
            "down.namespaces",
            "down.monitor",
            "down.files",
        ],
    ),
    (Step::RemovePod, &["forget.begin", "forget.gone"]),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Pull,
    Run,
    Create,
    Start,
    Stop,
    Remove,
    StopPod,
    RemovePod,
}

#[test]
fn every_fail_point_is_in_the_table() {
    let mut found = BTreeSet::new();
    let mut todo = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("../src")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for call in ["fail_point(\"", "reach(room, \"", "reach(&room, \"", "reach(\""] {
                    found.extend(
                        text.split(call)
                            .skip(1)
                            .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())),
                    );
                }
            }
        }
    }
    let listed: BTreeSet<_> = POINTS
        .iter()
        .flat_map(|(_, names)| *names)
        .copied()
        .chain(crate::monitor_points::POINTS.map(|(name, ..)| name))
        .chain(crate::lazy_faults::POINTS)
        .map(str::to_owned)
        .collect();
    assert_eq!(found, listed);
}

#[tokio::test]
async fn a_step_that_fails_is_done_by_the_next_try_and_leaves_nothing() {
    // Between these two nothing can fail: the point is there for a kill.
    table("error", &["start.noted"]).await;
}

#[tokio::test]
async fn a_step_that_hangs_is_joined_by_the_next_try_and_leaves_nothing() {
    table("hang", &[]).await;
}

#[tokio::test]
async fn a_daemon_killed_at_a_step_goes_on_at_the_next_try_and_leaves_nothing() {
    table("kill", &[]).await;
}

async fn table(what: &'static str, without: &[&str]) {
    let mut daemon = Daemon::start().await;
    daemon.busybox().await;
    let mut text = format!("fail point       {what:<5}  first answer, and what followed\n");
    for (step, names) in POINTS {
        for name in names.iter().filter(|name| !without.contains(name)) {
            let mut client = Client {
                daemon: &mut daemon,
                point: name,
                what,
                armed_at: *step,
                told: Vec::new(),
            };
            client.whole_life().await;
            let told = client.told.join("; ");
            assert!(daemon.reached(name), "{what} at {name}: the daemon never came there");
            let told = if told.is_empty() { "nothing was noticed" } else { &told };
            let _ = writeln!(text, "{name:<16} {what:<5}  {told}");
            guard::pods_left_nothing(&daemon).await;
        }
    }
    println!("{text}");
    daemon.finish().await;
}

/// A client that does as kubelet does: calls with a deadline, tries again, takes another attempt where one is used up.
struct Client<'a> {
    daemon: &'a mut Daemon,
    point: &'static str,
    what: &'static str,
    armed_at: Step,
    /// What went wrong, in words.
    told: Vec<String>,
}

impl Client<'_> {
    /// Pull, run, create, start, stop and remove, with the point armed before its step.
    async fn whole_life(&mut self) {
        let image = registry::reference("layers:latest");
        self.arm_at(Step::Pull);
        let wanted = image.clone();
        self.persist("PullImage", async |cri: Cri| cri.pull(&wanted).await.map(drop))
            .await;
        let wanted = image.clone();
        self.persist("RemoveImage", async |cri: Cri| cri.remove_image(&wanted).await)
            .await;

        let mut config = self.daemon.pod(&self.point.replace('.', "-"));
        self.arm_at(Step::Run);
        let pod = self.run(&mut config).await;
        let busybox = registry::reference("busybox:latest");
        let mut wish = container("main", &busybox, "sleep 1000");
        self.arm_at(Step::Create);
        let (sandbox, asked) = (config.clone(), wish.clone());
        let mut id = self
            .persist("CreateContainer", async |cri: Cri| {
                cri.create(&pod, &asked, &sandbox).await
            })
            .await;
        self.arm_at(Step::Start);
        while !self.started(&id).await {
            // Kubelet makes a new attempt of it.
            let old = id.clone();
            self.persist("RemoveContainer", async |cri: Cri| cri.remove(&old).await)
                .await;
            wish.metadata.as_mut().unwrap().attempt += 1;
            let asked = wish.clone();
            id = self
                .persist("CreateContainer", async |cri: Cri| {
                    cri.create(&pod, &asked, &sandbox).await
                })
                .await;
        }
        self.arm_at(Step::Stop);
        let stopped = id.clone();
        self.persist("StopContainer", async |cri: Cri| cri.stop(&stopped, 0).await)
            .await;
        if self.point == "release.let-go" {
            // Nobody asked for it and nobody waits: it follows the container's end.
            let daemon = &*self.daemon;
            let point = self.point;
            eventually("the end of a container releases it", async || daemon.reached(point)).await;
        }
        self.arm_at(Step::Remove);
        let removed = id.clone();
        self.persist("RemoveContainer", async |cri: Cri| cri.remove(&removed).await)
            .await;
        self.arm_at(Step::StopPod);
        self.persist("StopPodSandbox", async |cri: Cri| cri.stop_pod(&pod).await)
            .await;
        self.arm_at(Step::RemovePod);
        self.persist("RemovePodSandbox", async |cri: Cri| cri.remove_pod(&pod).await)
            .await;
        self.settle().await;
    }

    fn arm_at(&self, step: Step) {
        if step == self.armed_at {
            self.daemon.arm(self.point, self.what).unwrap();
        }
    }

    /// Runs the pod. One that is listed as not ready is taken down, and the next attempt made.
    async fn run(&mut self, config: &mut wharf_proto::cri::PodSandboxConfig) -> String {
        for _ in 0..TRIES {
            let asked = config.clone();
            match self
                .call("RunPodSandbox", async |cri: Cri| cri.run_pod(&asked, "").await)
                .await
            {
                Ok(pod) => return pod,
                Err(_) => {
                    for pod in self.daemon.cri.pods(None).await.unwrap() {
                        if pod.state() == PodSandboxState::SandboxNotready {
                            let id = pod.id;
                            self.persist("StopPodSandbox", async |cri: Cri| cri.stop_pod(&id).await)
                                .await;
                            self.persist("RemovePodSandbox", async |cri: Cri| cri.remove_pod(&id).await)
                                .await;
                            config.metadata.as_mut().unwrap().attempt += 1;
                        }
                    }
                }
            }
        }
        panic!(
            "{} at {}: no pod after {TRIES} tries: {:?}",
            self.what, self.point, self.told
        );
    }

    /// Starts the container; false when it is used up.
    async fn started(&mut self, id: &str) -> bool {
        let asked = id.to_owned();
        let mut answer = self
            .call("StartContainer", async |cri: Cri| cri.start(&asked).await)
            .await;
        if matches!(&answer, Err(status) if status.code() == Code::DeadlineExceeded) {
            answer = self
                .call("StartContainer", async |cri: Cri| cri.start(&asked).await)
                .await;
        }
        if answer.is_ok() {
            return true;
        }
        let status = self.daemon.cri.status(id).await.expect("ContainerStatus");
        status.state() == ContainerState::ContainerRunning
    }

    /// Calls until it works.
    async fn persist<T>(&mut self, name: &str, call: impl AsyncFn(Cri) -> Answer<T>) -> T {
        for _ in 0..TRIES {
            if let Ok(value) = self.call(name, &call).await {
                return value;
            }
        }
        panic!(
            "{} at {}: {name} fails after {TRIES} tries: {:?}",
            self.what, self.point, self.told
        );
    }

    /// One call with a deadline. After a failure the cause is gone, and so may be the daemon: it is started again.
    async fn call<T>(&mut self, name: &str, call: impl AsyncFn(Cri) -> Answer<T>) -> Answer<T> {
        let cri = self.daemon.cri.clone();
        let answer = match tokio::time::timeout(DEADLINE, call(cri)).await {
            Ok(answer) => answer,
            Err(_) => Err(Status::deadline_exceeded("the client's deadline has passed")),
        };
        if let Err(status) = &answer {
            self.told
                .push(format!("{name}: {:?}: {}", status.code(), status.message()));
            self.settle().await;
        }
        answer
    }

    async fn settle(&mut self) {
        let reached = self.daemon.reached(self.point);
        if reached && self.what == "kill" && !self.told.iter().any(|told| told.starts_with("killed")) {
            self.told.push("killed and started again".into());
            self.daemon.start_after_end().await.unwrap();
        }
        if reached {
            self.daemon.disarm(self.point);
        }
    }
}
