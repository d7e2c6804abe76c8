//! One client that does as kubelet does: calls with a deadline, tries again until it works, and knows what must be there.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use wharf_e2e::cri::{Answer, Cri};
use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, container, host_network_pod, logs, pod, specs};
use wharf_proto::cri::{self as pb, ContainerState, PodSandboxState};

use super::Shared;
use super::dice::Dice;

/// Pods of a client at a time, and containers in each.
const PODS: usize = 4;
const CONTAINERS: usize = 3;
/// How long a client tries for what it wants.
const LIMIT: Duration = Duration::from_secs(90);
/// What a patient call may take; monitors that do not answer take ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Runs until it is stopped.
    Stays,
    /// The same with children that hear of no signal.
    Stubborn,
    /// Counts into its log.
    Loud,
    /// Ends by itself with this code.
    Ends(i32),
}

impl Kind {
    fn line(self) -> String {
        match self {
            Kind::Stays => "exec sleep 1000".into(),
            Kind::Stubborn => "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.2; done".into(),
            Kind::Loud => "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done".into(),
            Kind::Ends(code) => format!("sleep 0.{}; exit {code}", code % 7),
        }
    }
}

struct Ours {
    config: pb::ContainerConfig,
    id: String,
    kind: Kind,
    /// Its start was acknowledged, and nobody has stopped it.
    runs: bool,
}

struct Pod {
    config: pb::PodSandboxConfig,
    id: String,
    containers: Vec<Ours>,
}

pub struct Worker {
    number: u64,
    cri: Cri,
    logs: std::path::PathBuf,
    busybox: String,
    dice: Dice,
    shared: Arc<Shared>,
    pods: Vec<Pod>,
    made: u32,
}

impl Worker {
    pub fn new(daemon: &Daemon, number: u64, dice: Dice, shared: Arc<Shared>) -> Self {
        Self {
            number,
            cri: daemon.cri.clone(),
            logs: daemon.logs.clone(),
            busybox: reference("busybox:latest"),
            dice,
            shared,
            pods: Vec::new(),
            made: 0,
        }
    }

    /// Works until the round is over, then removes all that it has made.
    pub async fn work(&mut self) {
        let busybox = self.busybox.clone();
        self.persist("PullImage", async |cri| cri.pull(&busybox).await).await;
        while !self.shared.over.load(Ordering::SeqCst) {
            self.step().await;
        }
        while !self.pods.is_empty() {
            self.look(0).await;
            self.remove_pod(0).await;
        }
    }

    async fn step(&mut self) {
        let choice = self.dice.below(100);
        if self.pods.is_empty() || (choice < 20 && self.pods.len() < PODS) {
            return self.run_pod().await;
        }
        let at = self.dice.below(self.pods.len());
        match choice {
            0..45 => self.start_container(at).await,
            45..60 => self.exec(at).await,
            60..72 => self.look(at).await,
            72..80 => self.stop_container(at).await,
            80..85 => self.remove_container(at).await,
            85..88 => self.reopen(at).await,
            88..97 => self.remove_pod(at).await,
            _ => self.images().await,
        }
    }

    async fn run_pod(&mut self) {
        self.made += 1;
        let name = format!("w{}-{}", self.number, self.made);
        let mut config = match self.dice.below(4) {
            0 => host_network_pod(&name, &self.logs),
            _ => pod(&name, &self.logs),
        };
        let shares = self.dice.percent(30);
        if shares {
            specs::namespaces(&mut config).pid = pb::NamespaceMode::Pod.into();
        }
        let id = loop {
            let asked = config.clone();
            let end = Instant::now() + LIMIT;
            let deadline = self.deadline();
            match self
                .call("RunPodSandbox", deadline, async |cri: Cri| {
                    cri.run_pod(&asked, "").await
                })
                .await
            {
                Ok(id) => break id,
                Err(status) if status.code() == Code::AlreadyExists => {
                    // It was made, and its monitor killed before we heard of it. Kubelet takes the next attempt.
                    let filter = pb::PodSandboxFilter::default();
                    let pods = self
                        .persist("ListPodSandbox", async |cri| cri.pods(Some(filter.clone())).await)
                        .await;
                    let same = pods.into_iter().find(|pod| pod.metadata == config.metadata);
                    let same =
                        same.unwrap_or_else(|| self.fail(&format!("what is in the way is not listed: {status}")));
                    self.excuse(&same.id, "a new pod is not ready");
                    self.stop_and_remove(&same.id).await;
                    config.metadata.as_mut().unwrap().attempt += 1;
                }
                Err(status) => self.again("RunPodSandbox", end, &status).await,
            }
        };
        self.pods.push(Pod {
            config,
            id,
            containers: Vec::new(),
        });
    }

    async fn start_container(&mut self, at: usize) {
        if self.pods[at].containers.len() >= CONTAINERS {
            return;
        }
        self.made += 1;
        let kind = match self.dice.below(5) {
            0 => Kind::Stubborn,
            1 => Kind::Loud,
            2 => Kind::Stays,
            _ => Kind::Ends(i32::try_from(self.dice.below(5)).unwrap_or(0)),
        };
        let mut config = container(&format!("c{}", self.made), &self.busybox, &kind.line());
        let pid = specs::namespaces(&mut self.pods[at].config).pid;
        specs::security(&mut config)
            .namespace_options
            .get_or_insert_default()
            .pid = pid;
        let (pod, sandbox, asked) = (self.pods[at].id.clone(), self.pods[at].config.clone(), config.clone());
        let end = Instant::now() + LIMIT;
        let id = loop {
            let deadline = self.deadline();
            let create = async |cri: Cri| cri.create(&pod, &asked, &sandbox).await;
            match self.call("CreateContainer", deadline, create).await {
                Ok(id) => break id,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return self.excuse(&pod, &format!("CreateContainer: {status}"));
                }
                Err(status) => self.again("CreateContainer", end, &status).await,
            }
        };
        self.pods[at].containers.push(Ours {
            config,
            id: id.clone(),
            kind,
            runs: false,
        });
        if self.dice.percent(5) {
            return; // Created only.
        }
        let deadline = self.deadline();
        let started = self
            .call("StartContainer", deadline, async |cri: Cri| cri.start(&id).await)
            .await;
        if started.is_err() {
            // Kubelet looks what has become of it.
            let status = self.persist("ContainerStatus", async |cri| cri.status(&id).await).await;
            let begun = status.state() != ContainerState::ContainerCreated;
            if begun {
                return;
            }
            let again = self
                .call("StartContainer", PATIENCE, async |cri: Cri| cri.start(&id).await)
                .await;
            if again.is_err() {
                return;
            }
        }
        if let Some(ours) = self.pods[at].containers.last_mut() {
            ours.runs = true;
        }
    }

    async fn exec(&mut self, at: usize) {
        let Some((number, id)) = self.running(at) else { return };
        let deadline = self.deadline();
        let text = format!("{}", self.dice.below(1000));
        let code = self.dice.below(3);
        let line = format!("echo {text}; exit {code}");
        let command = ["sh", "-c", &line];
        match self
            .call("ExecSync", deadline, async |cri: Cri| cri.exec(&id, &command, 20).await)
            .await
        {
            Ok(answer) => {
                let said = String::from_utf8_lossy(&answer.stdout).into_owned();
                let as_asked = said == format!("{text}\n") && answer.exit_code == i32::try_from(code).unwrap_or(0);
                let kind = self.pods[at].containers[number].kind;
                // One that has ended meanwhile takes its commands with it.
                if !as_asked && !matches!(kind, Kind::Ends(_)) {
                    self.excuse(&self.pods[at].id, &format!("ExecSync {line}: {answer:?}"));
                }
            }
            Err(_) => self.look(at).await,
        }
    }

    async fn stop_container(&mut self, at: usize) {
        let Some((number, id)) = self.running(at) else { return };
        let timeout = if self.dice.percent(50) { 0 } else { 1 };
        self.pods[at].containers[number].runs = false;
        self.persist("StopContainer", async |cri| cri.stop(&id, timeout).await)
            .await;
        let status = self.persist("ContainerStatus", async |cri| cri.status(&id).await).await;
        if status.state() != ContainerState::ContainerExited {
            self.fail(&format!("stopped, and {status:?}"));
        }
    }

    async fn remove_container(&mut self, at: usize) {
        if self.pods[at].containers.is_empty() {
            return;
        }
        let number = self.dice.below(self.pods[at].containers.len());
        let ours = self.pods[at].containers.swap_remove(number);
        let id = ours.id.clone();
        self.persist("RemoveContainer", async |cri| cri.remove(&id).await).await;
        self.check_log(at, &ours);
    }

    async fn reopen(&mut self, at: usize) {
        let Some((_, id)) = self.running(at) else { return };
        let deadline = self.deadline();
        if self
            .call("ReopenContainerLog", deadline, async |cri: Cri| {
                cri.reopen_log(&id).await
            })
            .await
            .is_err()
        {
            self.look(at).await;
        }
    }

    /// What was acknowledged is there, in the state that it must be in.
    async fn look(&mut self, at: usize) {
        let id = self.pods[at].id.clone();
        let pods = self.persist("ListPodSandbox", async |cri| cri.pods(None).await).await;
        let Some(listed) = pods.iter().find(|pod| pod.id == id) else {
            self.fail(&format!("pod {id} was acknowledged and is lost"));
        };
        if listed.state() != PodSandboxState::SandboxReady {
            self.excuse(&id, &format!("not ready: {listed:?}"));
        }
        for number in 0..self.pods[at].containers.len() {
            let of = self.pods[at].containers[number].id.clone();
            let status = self.persist("ContainerStatus", async |cri| cri.status(&of).await).await;
            let ours = &self.pods[at].containers[number];
            let runs = status.state() == ContainerState::ContainerRunning;
            let ended = status.state() == ContainerState::ContainerExited;
            let fits = match ours.kind {
                _ if !ours.runs => true,
                Kind::Ends(code) => runs || (ended && status.exit_code == code),
                _ => runs,
            };
            if !fits {
                let expected = format!("{:?} in {id} is {status:?}", ours.kind);
                self.excuse(&id, &expected);
                self.pods[at].containers[number].runs = false;
            }
        }
    }

    async fn remove_pod(&mut self, at: usize) {
        let pod = self.pods.swap_remove(at);
        self.stop_and_remove(&pod.id).await;
        let pods = self.persist("ListPodSandbox", async |cri| cri.pods(None).await).await;
        if pods.iter().any(|listed| listed.id == pod.id) {
            self.fail(&format!("pod {} was removed and is listed", pod.id));
        }
        self.pods.push(pod);
        let at = self.pods.len() - 1;
        for ours in std::mem::take(&mut self.pods[at].containers) {
            self.check_log(at, &ours);
        }
        let pod = self.pods.remove(at);
        let _ = std::fs::remove_dir_all(&pod.config.log_directory);
    }

    async fn stop_and_remove(&mut self, id: &str) {
        self.persist("StopPodSandbox", async |cri| cri.stop_pod(id).await).await;
        self.persist("RemovePodSandbox", async |cri| cri.remove_pod(id).await)
            .await;
    }

    async fn images(&mut self) {
        let name = reference("layers:latest");
        self.persist("PullImage", async |cri| cri.pull(&name).await).await;
        self.persist("RemoveImage", async |cri| cri.remove_image(&name).await)
            .await;
    }

    /// A counter's log has every number once and in order, unless its writer was killed.
    fn check_log(&self, at: usize, ours: &Ours) {
        let pod = &self.pods[at];
        let path = logs::path(&pod.config, &ours.config);
        if ours.kind != Kind::Loud || self.shared.is_struck(&pod.id) || !path.exists() {
            return;
        }
        let lines = logs::text(&path, "stdout").unwrap_or_else(|error| self.fail(&error.to_string()));
        for (expected, line) in lines.lines().enumerate() {
            if line != expected.to_string() {
                self.fail(&format!("log {}: line {expected} is {line:?}", path.display()));
            }
        }
    }

    /// One that runs, as far as we know: its place and id.
    fn running(&mut self, at: usize) -> Option<(usize, String)> {
        let all = &self.pods[at].containers;
        let running: Vec<usize> = (0..all.len()).filter(|number| all[*number].runs).collect();
        let number = *self.dice.pick(&running)?;
        Some((number, self.pods[at].containers[number].id.clone()))
    }

    /// Often a deadline that can't be met.
    fn deadline(&mut self) -> Duration {
        if self.dice.percent(25) {
            self.dice.millis(1..150)
        } else {
            PATIENCE
        }
    }

    /// One call, of any length up to `deadline`.
    async fn call<T>(&mut self, name: &str, deadline: Duration, call: impl AsyncFn(Cri) -> Answer<T>) -> Answer<T> {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let answer = match tokio::time::timeout(deadline, call(self.cri.clone())).await {
            Ok(answer) => answer,
            Err(_) if deadline == PATIENCE => self.fail(&format!("{name} takes longer than {PATIENCE:?}")),
            Err(_) => Err(Status::deadline_exceeded("the client's deadline has passed")),
        };
        if let Err(status) = &answer {
            self.shared.failures.fetch_add(1, Ordering::Relaxed);
            if std::env::var_os("WHARF_SOAK_TELL").is_some() {
                println!("client {}: {name} after {:?}: {status}", self.number, begun.elapsed());
            }
        }
        answer
    }

    /// Calls until it works.
    async fn persist<T>(&mut self, name: &str, call: impl AsyncFn(Cri) -> Answer<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let deadline = self.deadline();
            match self.call(name, deadline, &call).await {
                Ok(value) => return value,
                Err(status) => self.again(name, end, &status).await,
            }
        }
    }

    /// Before another try.
    async fn again(&mut self, name: &str, end: Instant, status: &Status) {
        if Instant::now() > end {
            self.fail(&format!("{name} fails for {LIMIT:?}: {status}"));
        }
        let wait = self.dice.millis(5..50);
        tokio::time::sleep(wait).await;
    }

    /// Something is not as expected, which only a pod whose monitor was killed or stopped may be.
    fn excuse(&self, pod: &str, what: &str) {
        if !self.shared.is_struck(pod) {
            self.fail(&format!("pod {pod}, whose monitor was left alone: {what}"));
        }
    }

    fn fail(&self, what: &str) -> ! {
        panic!("client {}: {what}", self.number)
    }
}
