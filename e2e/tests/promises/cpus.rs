//! CPUs that annotations keep for single containers (row E14). What belongs to the whole machine (interrupts, idle
//! states, governors) is a directory of files here; quotas, cpusets and affinities are the kernel's.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri as pb;

use crate::handlers;

const QUOTA: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];

/// What stands for the machine's files.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::Builder::new().prefix("we.").tempdir_in("/tmp").unwrap());
        machine.set("mask", "3\n");
        machine.set("irqbalance", "IRQBALANCE_ARGS=x\n");
        for cpu in ["cpu0", "cpu1"] {
            machine.set(&format!("{cpu}/power/pm_qos_resume_latency_us"), "0\n");
            machine.set(&format!("{cpu}/cpufreq/scaling_governor"), "powersave\n");
            machine.set(
                &format!("{cpu}/cpufreq/scaling_available_governors"),
                "performance powersave\n",
            );
        }
        machine
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn set(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        std::fs::write(self.at(name), content).unwrap();
    }

    fn get(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name))
            .unwrap_or_default()
            .trim()
            .to_owned()
    }

    /// Everything that can be changed.
    fn all(&self) -> Vec<String> {
        [
            "mask",
            "irqbalance",
            "cpu0/power/pm_qos_resume_latency_us",
            "cpu0/cpufreq/scaling_governor",
            "cpu1/power/pm_qos_resume_latency_us",
            "cpu1/cpufreq/scaling_governor",
        ]
        .map(|name| self.get(name).trim_start_matches('0').to_owned())
        .into()
    }

    /// A daemon whose handler `isolating` is `name` with the given settings.
    async fn daemon(&self, name: &str, settings: &str) -> Daemon {
        let path = match name {
            "builtin" => "[runtimes.builtin]".to_owned(),
            program => {
                let path = std::env::var(format!("WHARF_{}", program.to_uppercase()));
                let place = if program == "crun" { "/usr/bin" } else { "/usr/sbin" };
                let path = path.unwrap_or_else(|_| format!("{place}/{program}"));
                format!("[runtimes.isolating]\npath = '{path}'")
            }
        };
        let at = |name: &str| self.at(name).display().to_string();
        let tables = format!(
            "{path}\n{settings}\n[cpu_isolation]\nirq_affinity_file = '{}'\nirqbalance_config = '{}'\n\
             irqbalance_restart = ['/bin/sh', '-c', 'echo told >> {}']\ncpu_dir = '{}'\nshared_cpuset = '0'\n",
            at("mask"),
            at("irqbalance"),
            at("told"),
            self.0.path().display()
        );
        let handler = Options::handler(name);
        Daemon::with(Options {
            handler: if name == "builtin" {
                String::new()
            } else {
                "isolating".into()
            },
            tables,
            ..handler
        })
        .await
    }
}

const ALL: &str = "allowed_annotations = ['cpu-load-balancing.crio.io', 'cpu-quota.crio.io', 'cpu-c-states.crio.io', \
                   'irq-load-balancing.crio.io', 'cpu-freq-governor.crio.io', 'cpu-shared.crio.io']\n\
                   exec_cpu_affinity = 'first'";

fn annotated(daemon: &Daemon, pairs: &[(&str, &str)]) -> pb::PodSandboxConfig {
    let mut config = daemon.pod("cpus");
    let pairs = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config.annotations.extend(pairs);
    config.linux.get_or_insert_default().cgroup_parent = "/wharf/podcpus".into();
    config
}

async fn with_cpus(daemon: &Daemon, name: &str, cpus: &str, shares: i64) -> pb::ContainerConfig {
    let mut main = container(name, &daemon.busybox().await, "trap 'exit 0' TERM; sleep 1000 & wait");
    main.linux.get_or_insert_default().resources = Some(pb::LinuxContainerResources {
        cpuset_cpus: cpus.into(),
        cpu_shares: shares,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..Default::default()
    });
    main
}

/// The pod's cgroup is kubelet's to remove.
async fn finish(daemon: Daemon) {
    for pod in daemon.cri.pods(None).await.unwrap() {
        daemon.gone(&pod.id).await;
    }
    for dir in daemon.lab.cgroups_below() {
        if dir.ends_with("podcpus") {
            std::fs::remove_dir(dir).unwrap();
        }
    }
    daemon.finish().await;
}

/// The file of the cgroup whose path ends so, in whichever hierarchy has it.
fn file(daemon: &Daemon, end: &str, names: [&str; 2]) -> PathBuf {
    let found = daemon.lab.cgroups_below();
    let dirs = found.iter().filter(|dir| dir.ends_with(end));
    let mut files = dirs.flat_map(|dir| names.map(|name| dir.join(name)));
    files.find(|file| file.exists()).expect("a cgroup has a quota")
}

fn first_word(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

async fn allowed(daemon: &Daemon, id: &str, process: &str) -> String {
    let line = format!("grep Cpus_allowed_list /proc/{process}/status");
    let text = daemon.cri.shell(id, &line).await.unwrap();
    text.split_whitespace().last().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn annotations_keep_cpus_for_a_container_until_it_ends() {
    for handler in handlers() {
        let machine = Machine::new();
        let daemon = machine.daemon(&handler, ALL).await;
        let before = machine.all();
        let config = annotated(
            &daemon,
            &[
                ("cpu-quota.crio.io", "disable"),
                ("cpu-load-balancing.crio.io/main", "disable"),
                ("irq-load-balancing.crio.io", "disable"),
                ("cpu-c-states.crio.io", "max_latency:20"),
                ("cpu-freq-governor.crio.io", "performance"),
            ],
        );
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        // A helper with a part of a CPU is left as it is.
        let helper = with_cpus(&daemon, "helper", "0-1", 100).await;
        let helper = daemon.started(&pod, &config, &helper).await;
        assert_eq!(machine.all(), before, "{handler}");
        assert_eq!(first_word(&file(&daemon, &helper, QUOTA)), "50000", "{handler}");
        assert_eq!(allowed(&daemon, &helper, "self").await, "0-1", "{handler}");
        let of_pod = file(&daemon, "podcpus", QUOTA);
        std::fs::write(&of_pod, "150000").unwrap();

        let v2 = of_pod.ends_with("cpu.max");
        let main = with_cpus(&daemon, "main", "1", 1024).await;
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        if v2 && daemon.cri.start(&id).await.is_err() {
            // Without partitions (Linux 6.7) it is refused, and all is taken back.
            assert_eq!(machine.all(), before, "{handler}");
            finish(daemon).await;
            continue;
        }
        if !v2 {
            daemon.cri.start(&id).await.unwrap();
            let balance = file(&daemon, &id, ["cpuset.sched_load_balance"; 2]);
            assert_eq!(first_word(&balance), "0", "{handler}");
        }
        let none = if v2 { "max" } else { "-1" };
        assert_eq!(first_word(&file(&daemon, &id, QUOTA)), none, "{handler}");
        assert_eq!(first_word(&of_pod), none, "{handler}: the pod's quota binds as well");
        assert_eq!(
            machine.all(),
            [
                "1",
                "IRQBALANCE_ARGS=x\nIRQBALANCE_BANNED_CPUS=\"fffffffe\"",
                "",
                "powersave",
                "20",
                "performance"
            ],
            "{handler}"
        );
        assert_eq!(machine.get("told"), "told", "{handler}");
        let status = daemon.cri.status(&id).await.unwrap();
        let limits = status.resources.unwrap().linux.unwrap();
        assert_eq!(limits.cpu_quota, -1, "{handler}: what is in force is told");

        // Kubelet may name a quota again; other CPUs are another container's.
        let update = |limits: pb::LinuxContainerResources| {
            let mut runtime = daemon.cri.runtime.clone();
            let request = pb::UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(limits),
                ..Default::default()
            };
            async move { runtime.update_container_resources(request).await }
        };
        update(pb::LinuxContainerResources {
            cpu_quota: 70_000,
            cpu_period: 100_000,
            cpuset_cpus: "1".into(),
            ..Default::default()
        })
        .await
        .unwrap();
        assert_eq!(first_word(&file(&daemon, &id, QUOTA)), none, "{handler}");
        let refused = update(pb::LinuxContainerResources {
            cpuset_cpus: "0".into(),
            ..Default::default()
        })
        .await
        .expect_err("the node is set up for CPU 1");
        assert!(refused.message().contains("cpuset_cpus"), "{refused}");

        daemon.cri.stop(&id, 10).await.unwrap();
        daemon.cri.remove(&id).await.unwrap();
        let undone = ["3", "IRQBALANCE_ARGS=x", "", "powersave", "", "powersave"];
        assert_eq!(machine.all(), undone, "{handler}");
        assert_eq!(first_word(&of_pod), "150000", "{handler}");
        assert_eq!(machine.get("told"), "told\ntold", "{handler}");
        finish(daemon).await;
    }
}

#[tokio::test]
async fn commands_run_on_the_first_of_a_containers_own_or_shared_cpus() {
    for handler in handlers() {
        let machine = Machine::new();
        let daemon = machine.daemon(&handler, ALL).await;
        let config = annotated(&daemon, &[("cpu-shared.crio.io/shares", "enable")]);
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let own = with_cpus(&daemon, "own", "0-1", 2048).await;
        let own = daemon.started(&pod, &config, &own).await;
        assert_eq!(allowed(&daemon, &own, "1").await, "0-1", "{handler}");
        assert_eq!(allowed(&daemon, &own, "self").await, "0", "{handler}");

        let shares = with_cpus(&daemon, "shares", "1", 1024).await;
        let shares = daemon.started(&pod, &config, &shares).await;
        assert_eq!(allowed(&daemon, &shares, "1").await, "0-1", "{handler}");
        assert_eq!(allowed(&daemon, &shares, "self").await, "0", "{handler}");
        assert_eq!(first_word(&file(&daemon, &shares, QUOTA)), "200000", "{handler}");
        let env = daemon.cri.shell(&shares, "env | grep ^OPENSHIFT | sort").await.unwrap();
        assert_eq!(
            env.trim(),
            "OPENSHIFT_ISOLATED_CPUS=1\nOPENSHIFT_SHARED_CPUS=0",
            "{handler}"
        );
        finish(daemon).await;
    }
}

#[tokio::test]
async fn what_is_not_allowed_has_no_effect_and_what_the_node_cannot_do_is_said_by_name() {
    let machine = Machine::new();
    let daemon = machine
        .daemon(
            "builtin",
            "allowed_annotations = ['irq-load-balancing.crio.io', 'cpu-freq-governor.crio.io']",
        )
        .await;
    let before = machine.all();
    let config = annotated(
        &daemon,
        &[("cpu-quota.crio.io", "disable"), ("cpu-c-states.crio.io", "disable")],
    );
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = with_cpus(&daemon, "main", "1", 1024).await;
    let id = daemon.started(&pod, &config, &main).await;
    assert_eq!(first_word(&file(&daemon, &id, QUOTA)), "50000");
    assert_eq!(machine.all(), before);
    daemon.gone(&pod).await;

    for (key, value, cpus, says) in [
        ("irq-load-balancing.crio.io", "disable", "", "cpuset_cpus is empty"),
        ("irq-load-balancing.crio.io", "never", "1", "never"),
        ("irq-load-balancing.crio.io", "disable", "0-1", "no CPU would be left"),
        ("cpu-freq-governor.crio.io", "warp", "1", "performance, powersave"),
    ] {
        let config = annotated(&daemon, &[(key, value)]);
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = with_cpus(&daemon, "main", cpus, 1024).await;
        let refused = match daemon.cri.create(&pod, &main, &config).await {
            Err(refused) => refused,
            Ok(id) => {
                let refused = daemon.cri.start(&id).await.expect_err(says);
                assert_eq!(daemon.cri.status(&id).await.unwrap().reason, "StartError");
                refused
            }
        };
        assert!(refused.message().contains(says), "{refused}");
        assert_eq!(machine.all(), before);
        daemon.gone(&pod).await;
    }
    finish(daemon).await;
}

#[tokio::test]
async fn a_container_that_ends_while_no_daemon_runs_gives_its_cpus_back() {
    let machine = Machine::new();
    let mut daemon = machine.daemon("builtin", ALL).await;
    let config = annotated(
        &daemon,
        &[
            ("irq-load-balancing.crio.io", "disable"),
            ("cpu-freq-governor.crio.io", "performance"),
        ],
    );
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = with_cpus(&daemon, "main", "1", 1024).await;
    let id = daemon.started(&pod, &config, &main).await;
    daemon.crash().await;
    assert_eq!(
        machine.get("cpu1/cpufreq/scaling_governor"),
        "performance",
        "it runs on"
    );
    let pids = std::fs::read_to_string(file(&daemon, &id, ["cgroup.procs"; 2])).unwrap();
    daemon.end(Signal::SIGKILL).await.unwrap();
    for pid in pids.split_whitespace() {
        match kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL) {
            // The first one's end may have been another's.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => panic!("kill {pid}: {error}"),
        }
    }
    daemon.start_again().await.unwrap();
    wharf_e2e::eventually("the machine is as before", async || {
        machine.all() == ["3", "IRQBALANCE_ARGS=x", "", "powersave", "", "powersave"]
    })
    .await;
    finish(daemon).await;
}
