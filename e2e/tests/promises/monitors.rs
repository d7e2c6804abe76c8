//! Monitors that are killed: what they held is found by its cgroup and ended, and nothing of it is lost or left.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_e2e::{Daemon, container, eventually, specs};
use wharf_proto::cri::{self as pb, ContainerState, PodSandboxState};

use crate::on_each_handler;

/// The process id of the monitor of `pod`, as this process numbers it.
pub(crate) fn monitor_of(daemon: &Daemon, pod: &str) -> Pid {
    let processes = daemon.lab.processes();
    let found = processes
        .iter()
        .find(|(_, line)| line.contains("monitor") && line.contains(pod));
    Pid::from_raw(found.expect("the pod has a monitor").0)
}

/// How a container ended, and whether the times make sense.
fn end(status: &pb::ContainerStatus) -> (ContainerState, i32, &str, bool) {
    let times = status.created_at <= status.started_at && status.started_at <= status.finished_at;
    (status.state(), status.exit_code, status.reason.as_str(), times)
}

const EXITED: ContainerState = ContainerState::ContainerExited;

#[tokio::test]
async fn a_killed_monitor_costs_its_own_pod_and_nothing_that_was_recorded() {
    on_each_handler(async |mut daemon| {
        let image = daemon.busybox().await;
        for daemon_lives in [true, false] {
            let name = if daemon_lives { "alive" } else { "down" };
            let mut config = daemon.pod(name);
            specs::namespaces(&mut config).pid = pb::NamespaceMode::Pod.into();
            let pod = daemon.cri.run_pod(&config, "").await.unwrap();
            let start = async |name: &str, line: &str| {
                let mut config_of = container(name, &image, line);
                specs::security(&mut config_of)
                    .namespace_options
                    .get_or_insert_default()
                    .pid = pb::NamespaceMode::Pod.into();
                daemon.started(&pod, &config, &config_of).await
            };
            let known = start("known", "exit 4").await;
            daemon.cri.exited(&known).await.unwrap();
            // Its children are in sessions of their own and hold nothing of it.
            let runs = start("runs", "setsid sleep 31337 & setsid sleep 31338 & exec sleep 31339").await;
            let created = daemon
                .cri
                .create(&pod, &container("created", &image, "true"), &config)
                .await
                .unwrap();
            let (other, neighbour) = daemon.running(&format!("{name}-other"), "sleep 1000").await;
            let left = || {
                let processes = daemon.lab.processes().into_iter();
                processes.filter(|(_, line)| line.contains("sleep 3133")).count()
            };
            eventually("all run", async || left() == 3).await;
            let (cri, of) = (daemon.cri.clone(), runs.clone());
            let exec = tokio::spawn(async move { cri.exec(&of, &["sleep", "31336"], 0).await });
            eventually("the command runs", async || left() == 4).await;

            let monitor = monitor_of(&daemon, &pod);
            if daemon_lives {
                kill(monitor, Signal::SIGKILL).unwrap();
                let error = exec.await.unwrap().expect_err("its monitor is gone");
                assert!(error.message().contains("monitor"), "{error}");
            } else {
                daemon.end(Signal::SIGKILL).await.unwrap();
                kill(monitor, Signal::SIGKILL).unwrap();
                exec.await.unwrap().expect_err("the daemon is gone");
                daemon.start_again().await.unwrap();
            }
            let status = daemon.cri.exited(&runs).await.unwrap();
            assert_eq!(end(&status), (EXITED, 255, "Unknown", true), "rule 15: {status:?}");
            assert!(!status.message.is_empty());
            let left = || {
                let processes = daemon.lab.processes().into_iter();
                processes.filter(|(_, line)| line.contains("sleep 3133")).count()
            };
            eventually("nothing of it runs", async || left() == 0).await;
            let status = daemon.cri.status(&known).await.unwrap();
            assert_eq!(end(&status), (EXITED, 4, "Error", true));
            let status = daemon.cri.pod_status(&pod).await.unwrap();
            assert_eq!(status.state(), PodSandboxState::SandboxNotready);
            daemon.cri.start(&created).await.expect_err("its pod is not ready");
            assert_eq!(daemon.cri.shell(&neighbour, "echo yes").await.unwrap(), "yes\n");
            daemon.cri.stop(&runs, 10).await.unwrap();
            daemon.cri.remove(&runs).await.unwrap();
            daemon.gone(&pod).await;
            daemon.gone(&other).await;
            wharf_e2e::guard::pods_left_nothing(&daemon).await;
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn an_end_that_was_recorded_before_its_monitor_was_killed_is_told() {
    on_each_handler(async |mut daemon| {
        let (pod, id) = daemon
            .running("recorded", "while [ ! -e /go ]; do sleep 0.05; done; exit 7")
            .await;
        daemon
            .cri
            .shell(&id, "(sleep 0.5; touch /go) >/dev/null 2>&1 &")
            .await
            .unwrap();
        daemon.end(Signal::SIGKILL).await.unwrap();
        let written = daemon.state_dir.join(format!("pods/{pod}/containers/{id}/exit"));
        eventually("the monitor writes the end", async || written.exists()).await;
        kill(monitor_of(&daemon, &pod), Signal::SIGKILL).unwrap();
        daemon.start_again().await.unwrap();
        let status = daemon.cri.exited(&id).await.unwrap();
        assert_eq!(end(&status), (EXITED, 7, "Error", true), "{status:?}");
        daemon.gone(&pod).await;
        daemon.finish().await;
    })
    .await;
}

/// What shares the namespace dies with it, and nothing can be started in it again: kubelet has to make another pod.
#[tokio::test]
async fn a_pod_whose_shared_process_namespace_has_lost_its_init_is_not_ready() {
    let mut daemon = Daemon::start().await;
    for daemon_lives in [true, false] {
        let mut config = daemon.pod("shared");
        specs::namespaces(&mut config).pid = pb::NamespaceMode::Pod.into();
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        specs::security(&mut main).namespace_options.get_or_insert_default().pid = pb::NamespaceMode::Pod.into();
        let id = daemon.started(&pod, &config, &main).await;
        let init = daemon.lab.processes().into_iter().map(|(pid, _)| pid).find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "wharf-pod-init\n")
        });
        if !daemon_lives {
            daemon.end(Signal::SIGKILL).await.unwrap();
        }
        kill(Pid::from_raw(init.expect("the pod has an init")), Signal::SIGKILL).unwrap();
        if !daemon_lives {
            daemon.start_again().await.unwrap();
        }
        let status = daemon.cri.exited(&id).await.unwrap();
        assert_eq!(end(&status), (EXITED, 137, "Error", true), "{status:?}");
        eventually("the pod is not ready", async || {
            let status = daemon.cri.pod_status(&pod).await.unwrap();
            status.state() == PodSandboxState::SandboxNotready
        })
        .await;
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
}
