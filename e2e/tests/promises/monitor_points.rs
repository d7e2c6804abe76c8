//! At each fail point of a pod's monitor (`src/failpoint.rs`) it is killed or hangs. A killed one costs its own pod, which can
//! be stopped and removed; one that hangs holds up its own pod until it goes on. Each test prints its table.

use std::fmt::Write as _;
use std::time::Duration;

use tonic::Status;
use wharf_e2e::cri::{Answer, Cri};
use wharf_e2e::{Daemon, container, eventually, guard};
use wharf_proto::cri::{ContainerState, PodSandboxState};

/// What the client gives a call that hangs.
const DEADLINE: Duration = Duration::from_millis(1000);

/// What leads a monitor to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Start,
    Exec,
    /// The container ends by itself.
    End,
    Stop,
    StopPod,
}

/// Every fail point, with the step that leads to it and the code that the container has afterwards if the monitor is
/// killed there.
pub(crate) const POINTS: [(&str, Step, i32); 10] = [
    ("monitor.start", Step::Start, 255),
    ("monitor.created", Step::Start, 255),
    ("monitor.running", Step::Start, 255),
    ("monitor.exec", Step::Exec, 255),
    ("monitor.executed", Step::Exec, 255),
    // The end is not recorded yet; from the next point on it is.
    ("monitor.ended", Step::End, 255),
    ("monitor.recorded", Step::End, 3),
    ("monitor.signal", Step::Stop, 255),
    ("monitor.delete", Step::End, 3),
    ("monitor.shutdown", Step::StopPod, 137),
];

/// One pod with one container, with a point armed before the step that leads to it.
struct Life<'a> {
    daemon: &'a Daemon,
    pod: String,
    id: String,
}

impl<'a> Life<'a> {
    async fn begin(daemon: &'a Daemon, point: &str, step: Step) -> Self {
        let config = daemon.pod(&point.replace('.', "-"));
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let line = "while [ ! -e /end ]; do sleep 0.02; done; exit 3";
        let main = container("main", &daemon.busybox().await, line);
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        if step != Step::Start {
            daemon.cri.start(&id).await.unwrap();
        }
        Self { daemon, pod, id }
    }

    /// Does the step, with the patience of a client with a deadline.
    async fn step(&self, step: Step) -> Result<(), Status> {
        let (cri, id) = (&self.daemon.cri, &self.id);
        match step {
            Step::Start => hurried(cri.start(id)).await,
            Step::Exec => hurried(cri.exec(id, &["true"], 0)).await.map(drop),
            Step::Stop => hurried(cri.stop(id, 0)).await,
            Step::StopPod => hurried(cri.stop_pod(&self.pod)).await,
            Step::End => {
                // Not before the command has ended: a monitor that hangs would not tell of that.
                let line = "(sleep 0.3; touch /end) >/dev/null 2>&1 &";
                cri.shell(id, line).await.unwrap();
                Ok(())
            }
        }
    }
}

async fn hurried<T>(call: impl Future<Output = Answer<T>>) -> Answer<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("the client's deadline has passed")),
    }
}

fn told(answer: &Result<(), Status>) -> String {
    match answer {
        Ok(()) => "done".into(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[tokio::test]
async fn a_monitor_killed_at_any_point_costs_its_own_pod_only() {
    let daemon = Daemon::start().await;
    let (other, neighbour) = daemon.running("neighbour", "sleep 1000").await;
    let mut text = String::from("fail point        kill  first answer, and the container afterwards\n");
    for (point, step, code) in POINTS {
        let life = Life::begin(&daemon, point, step).await;
        daemon.arm(point, "kill").unwrap();
        let answer = life.step(step).await;
        eventually(&format!("{point} is reached"), async || daemon.reached(point)).await;
        let status = daemon.cri.exited(&life.id).await.unwrap();
        assert_eq!(status.exit_code, code, "{point}: {status:?}");
        let reason = if code == 255 { "Unknown" } else { "Error" };
        assert_eq!(status.reason, reason, "{point}: {status:?}");
        eventually(&format!("{point}: the pod is not ready"), async || {
            let status = daemon.cri.pod_status(&life.pod).await.unwrap();
            status.state() == PodSandboxState::SandboxNotready
        })
        .await;
        let _ = writeln!(text, "{point:<17} kill  {}; {code} {reason}", told(&answer));
        assert_eq!(
            daemon.cri.shell(&neighbour, "echo yes").await.unwrap(),
            "yes\n",
            "{point}"
        );
        daemon.gone(&life.pod).await;
        let left = daemon.lab.processes();
        assert!(
            left.iter()
                .all(|(_, line)| !line.contains(&life.pod) && !line.contains("/end")),
            "{point}: {left:?}"
        );
    }
    println!("{text}");
    daemon.gone(&other).await;
    guard::pods_left_nothing(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_monitor_that_hangs_at_any_point_holds_up_its_own_pod_until_it_goes_on() {
    let daemon = Daemon::start().await;
    let (other, neighbour) = daemon.running("neighbour", "sleep 1000").await;
    let mut text = String::from("fail point        hang  first answer, and the container afterwards\n");
    for (point, step, _) in POINTS {
        let life = Life::begin(&daemon, point, step).await;
        daemon.arm(point, "hang").unwrap();
        let answer = life.step(step).await;
        eventually(&format!("{point} is reached"), async || daemon.reached(point)).await;
        // Nobody else is concerned.
        let pods = daemon.cri.pods(None).await.unwrap();
        assert_eq!(pods.len(), 2, "{point}: {pods:?}");
        daemon.cri.status(&life.id).await.unwrap();
        if step != Step::Exec {
            // Its monitor would come to the same point.
            assert_eq!(
                daemon.cri.shell(&neighbour, "echo yes").await.unwrap(),
                "yes\n",
                "{point}"
            );
        }
        daemon.cri.status(&neighbour).await.unwrap();
        daemon.disarm(point);
        let expected = match step {
            Step::Start | Step::Exec => ContainerState::ContainerRunning,
            Step::End | Step::Stop | Step::StopPod => ContainerState::ContainerExited,
        };
        eventually(&format!("{point}: what was begun is done"), async || {
            let status = daemon.cri.status(&life.id).await.unwrap();
            status.state() == expected
        })
        .await;
        let status = daemon.cri.status(&life.id).await.unwrap();
        let code = match step {
            Step::Start | Step::Exec => 0,
            Step::End => 3,
            Step::Stop | Step::StopPod => 137,
        };
        assert_eq!(status.exit_code, code, "{point}: {status:?}");
        if step != Step::StopPod {
            let status = daemon.cri.pod_status(&life.pod).await.unwrap();
            assert_eq!(status.state(), PodSandboxState::SandboxReady, "{point}");
        }
        if expected == ContainerState::ContainerRunning {
            assert_eq!(daemon.cri.shell(&life.id, "echo on").await.unwrap(), "on\n", "{point}");
        }
        let _ = writeln!(text, "{point:<17} hang  {}; {code} {}", told(&answer), status.reason);
        daemon.gone(&life.pod).await;
    }
    println!("{text}");
    daemon.gone(&other).await;
    daemon.finish().await;
}

/// An exec or a start whose monitor says nothing ends with the time that the caller gave it, and the silence is told.
#[tokio::test]
async fn a_monitor_that_stops_answering_is_reported_and_limits_are_kept() {
    let daemon = Daemon::start().await;
    let (pod, id) = daemon.running("silent", "sleep 1000").await;
    let (other, _) = daemon.running("well", "sleep 1000").await;
    let silent = async |cri: &Cri| {
        let request = wharf_proto::cri::StatusRequest { verbose: true };
        let answer = cri.runtime.clone().status(request).await.unwrap().into_inner();
        let told: serde_json::Value = serde_json::from_str(&answer.info["silentMonitors"]).unwrap();
        told
    };
    assert_eq!(silent(&daemon.cri).await, serde_json::json!([]));
    let monitor = crate::monitors::monitor_of(&daemon, &pod);
    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGSTOP).unwrap();

    let doctor = daemon.wharf(&["doctor"]).output().await.unwrap();
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("1 not answering: of pod silent"), "{doctor}");
    let told = silent(&daemon.cri).await;
    assert_eq!(
        (told[0]["podId"].as_str(), told.as_array().map(Vec::len)),
        (Some(pod.as_str()), Some(1))
    );
    let inspected = daemon
        .wharf(&["inspect", "--type", "pod", &pod])
        .output()
        .await
        .unwrap();
    let inspected = String::from_utf8_lossy(&inspected.stdout).into_owned();
    let line = inspected.lines().find(|line| line.contains("monitorSilentSeconds"));
    assert!(line.is_some_and(|line| !line.contains("null")), "{inspected}");
    let log = daemon.log();
    assert!(
        log.lines()
            .any(|line| line.contains("does not answer") && line.contains(&pod)),
        "the log says nothing of it"
    );

    // Kubelet's probes have a time limit, which is kept.
    let call = daemon.cri.exec(&id, &["true"], 1);
    let answer = tokio::time::timeout(wharf_e2e::PATIENCE, call)
        .await
        .expect("it ends in time");
    let error = answer.expect_err("nobody can have run it");
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");

    nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(daemon.cri.shell(&id, "echo back").await.unwrap(), "back\n");
    assert_eq!(silent(&daemon.cri).await, serde_json::json!([]));
    daemon.gone(&pod).await;
    daemon.gone(&other).await;
    daemon.finish().await;
}
