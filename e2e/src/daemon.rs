//! One daemon in its lab, with a registry beside it.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use wharf_proto::cri as pb;

use crate::cri::Cri;
use crate::disk::{self, Disk, Source};
use crate::lab::{Lab, program};
use crate::{Result, fixtures, guard, registry};

/// What a test wants to be different.
#[derive(Default, Clone)]
pub struct Options {
    /// Name of the default runtime handler; empty is `builtin`.
    pub handler: String,
    /// Lines added to wharf.toml at its top level.
    pub settings: String,
    /// Lines added at its end: tables.
    pub tables: String,
    /// Start the registry that asks for a password as well.
    pub private_registry: bool,
    /// Start a registry that can be pushed to as well; it is empty.
    pub writable_registry: bool,
    /// Hide a cgroup2 mount beside version 1 (crun).
    pub hide_cgroup2: bool,
    /// Write the daemon's log as JSON.
    pub json_log: bool,
    /// Put the state directory on a tmpfs with these options, for example `size=1m`.
    pub state_tmpfs: Option<&'static str>,
    /// Put the state directory on a disk.
    pub state_disk: Option<Source>,
    /// The search path of the daemon; the test's own where it is not set.
    pub path: Option<String>,
    /// What its environment has beside that.
    pub environment: Vec<(&'static str, &'static str)>,
    /// What the daemon takes for the kernel's boot id; [`Daemon::reboot`] changes it.
    pub boot_id: Option<String>,
}

impl Options {
    /// Defaults with another runtime handler.
    pub fn handler(name: &str) -> Self {
        Self {
            handler: name.into(),
            hide_cgroup2: name == "crun",
            ..Default::default()
        }
    }
}

/// A running daemon.
pub struct Daemon {
    pub lab: Lab,
    /// The disk of its state, where writes are logged.
    pub disk: Option<Disk>,
    /// Answers on the daemon's socket.
    pub cri: Cri,
    /// Logs of containers go below it.
    pub logs: PathBuf,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub socket: PathBuf,
    pub config: PathBuf,
    dir: TempDir,
    process: Process,
    pub(crate) options: Options,
    finished: bool,
}

struct Process {
    outer: Child,
    pid: i32,
}

impl Daemon {
    /// A daemon with all defaults.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// A daemon with the given options.
    ///
    /// # Panics
    /// When it does not start; its log is shown.
    pub async fn with(options: Options) -> Self {
        Self::try_with(&options)
            .await
            .unwrap_or_else(|error| panic!("the daemon did not start: {error}"))
    }

    async fn try_with(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("we.").tempdir_in("/tmp")?;
        let at = |name: &str| dir.path().join(name);
        let storage = tokio::task::spawn_blocking(fixtures::storage).await??;
        let lab = Lab::start(options.hide_cgroup2).await?;
        registry::start(&lab, dir.path(), &storage, registry::ADDRESS).await?;
        if options.private_registry {
            registry::start(&lab, dir.path(), &storage, registry::PRIVATE).await?;
        }
        if options.writable_registry {
            std::fs::create_dir(at("pushed"))?;
            registry::start(&lab, dir.path(), &at("pushed"), registry::WRITABLE).await?;
        }
        if let Some(size) = options.state_tmpfs {
            std::fs::create_dir(at("state"))?;
            let state = at("state").to_string_lossy().into_owned();
            lab.output("mount", &["-t", "tmpfs", "-o", size, "tmpfs", &state])
                .await?;
        }
        let disk = match &options.state_disk {
            None => None,
            Some(source) => {
                std::fs::create_dir(at("state"))?;
                let state = at("state");
                match source {
                    Source::Image(file) => {
                        disk::mount_at(&lab, file, &state).await?;
                        None
                    }
                    Source::Quotas(file, kind) => {
                        disk::mount_with_quotas(&lab, file, kind, &state).await?;
                        None
                    }
                    Source::Logged => {
                        let (disk, file) = Disk::start(&lab, dir.path()).await?;
                        disk::mount_at(&lab, &file, &state).await?;
                        Some(disk)
                    }
                }
            }
        };
        let config = at("wharf.toml");
        std::fs::write(&config, settings(dir.path(), options, lab.slice.as_deref()))?;
        let process = spawn(&lab, dir.path(), &config, options).await?;
        let socket = at("run/wharf.sock");
        Ok(Self {
            cri: Cri::connect(&socket).await?,
            logs: at("logs"),
            state_dir: at("state"),
            run_dir: at("run"),
            lab,
            disk,
            socket,
            config,
            dir,
            process,
            options: options.clone(),
            finished: false,
        })
    }

    /// A path of the daemon as this process reaches it, through the mounts that only the lab has.
    pub fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.lab.init));
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A directory of this test, removed at its end.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Name of its default runtime handler.
    pub fn handler(&self) -> &str {
        if self.options.handler.is_empty() {
            "builtin"
        } else {
            &self.options.handler
        }
    }

    /// The daemon's process, as the test sees it.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Everything that the daemon has logged.
    pub fn log(&self) -> String {
        // One that was killed may have written half of a character.
        let bytes = std::fs::read(self.dir.path().join("wharf.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends the daemon a signal and waits until it has ended; returns its exit code, if it had one.
    ///
    /// # Errors
    /// When it does not end within the harness's patience.
    pub async fn end(&mut self, signal: Signal) -> Result<Option<i32>> {
        kill(Pid::from_raw(self.process.pid), signal)?;
        let status = tokio::time::timeout(crate::PATIENCE, self.process.outer.wait())
            .await
            .map_err(|_| format!("the daemon still runs {:?} after {signal}", crate::PATIENCE))??;
        Ok(status.code())
    }

    /// What the environment of the next daemon has beside the usual.
    pub fn environment<const N: usize>(&mut self, variables: [(&'static str, &'static str); N]) {
        self.options.environment = variables.to_vec();
    }

    /// Starts the program `lab` with these arguments in the daemon's lab, and waits until it says `ready`. Returns what it says next.
    ///
    /// # Panics
    /// When it can't be started, or says something else.
    pub async fn helper(&self, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut helper = self
            .lab
            .command(program("lab").expect("the lab's program"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be run");
        let mut told = BufReader::new(helper.stdout.take().expect("it is a pipe")).lines();
        let word = told.next_line().await.expect("a line");
        assert_eq!(word.as_deref(), Some("ready"), "{args:?}");
        (helper, told)
    }

    /// Waits until the daemon has ended, by whatever.
    ///
    /// # Errors
    /// When it runs on.
    pub(crate) async fn ended(&mut self) -> Result {
        tokio::time::timeout(crate::PATIENCE, self.process.outer.wait())
            .await
            .map_err(|_| "the daemon still runs")??;
        Ok(())
    }

    /// Starts the daemon again after [`Daemon::end`], and connects to it.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again(&mut self) -> Result {
        self.process = spawn(&self.lab, self.dir.path(), &self.config, &self.options).await?;
        self.cri = Cri::connect(&self.socket).await?;
        Ok(())
    }

    /// Arms a fail point of the daemon (`src/failpoint.rs`): `error`, `hang` or `kill`.
    ///
    /// # Errors
    /// When the file that says so can't be written.
    pub fn arm(&self, point: &str, what: &str) -> Result {
        let dir = self.dir.path().join("failpoints");
        std::fs::create_dir_all(&dir)?;
        let _ = std::fs::remove_file(dir.join(format!("{point}.reached")));
        // By rename: the daemon must not read half of it.
        std::fs::write(dir.join(".new"), what)?;
        Ok(std::fs::rename(dir.join(".new"), dir.join(point))?)
    }

    /// Lets the daemon go on from a fail point.
    pub fn disarm(&self, point: &str) {
        let _ = std::fs::remove_file(self.dir.path().join("failpoints").join(point));
    }

    /// Whether the daemon came to the fail point since it was armed.
    pub fn reached(&self, point: &str) -> bool {
        let dir = self.dir.path().join("failpoints");
        dir.join(format!("{point}.reached")).exists()
    }

    /// Waits until the daemon has ended on its own, and starts it again.
    ///
    /// # Errors
    /// When it runs on, or does not start.
    pub async fn start_after_end(&mut self) -> Result {
        self.ended().await?;
        self.start_again().await
    }

    /// As [`Daemon::start_again`], but connects as soon as somebody listens and calls `meanwhile`, before it waits until
    /// the daemon is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_again_with(&mut self, meanwhile: impl AsyncFnOnce(&Cri)) -> Result {
        // Left by the daemon before.
        let _ = std::fs::remove_file(&self.socket);
        let starting = begin(&self.lab, self.dir.path(), &self.config, &self.options)?;
        crate::eventually("the daemon listens", async || {
            tokio::net::UnixStream::connect(&self.socket).await.is_ok()
        })
        .await;
        self.cri = Cri::connect(&self.socket).await?;
        meanwhile(&self.cri).await;
        self.process = ready(&self.lab, self.dir.path(), starting).await?;
        Ok(())
    }

    /// SIGKILL, and a new start at once.
    ///
    /// # Panics
    /// When it does not start again.
    pub async fn crash(&mut self) {
        self.end(Signal::SIGKILL).await.expect("SIGKILL ends a process");
        self.start_again().await.expect("a daemon starts after SIGKILL");
    }

    /// The `wharf` command in the lab, speaking to this daemon.
    pub fn wharf(&self, args: &[&str]) -> Command {
        let mut command = self.lab.command(program("wharf").expect("wharf is built"));
        command
            .arg("--endpoint")
            .arg(format!("unix://{}", self.socket.display()))
            .args(args);
        command.env("COLUMNS", "200").stdin(Stdio::null());
        command
    }

    /// Pulls a fixture image and returns its reference.
    ///
    /// # Panics
    /// When the pull fails.
    pub async fn pull(&self, name: &str) -> String {
        let reference = registry::reference(name);
        self.cri
            .pull(&reference)
            .await
            .unwrap_or_else(|status| panic!("pull {reference}: {status}"));
        reference
    }

    /// A minimal pod configuration that logs into this daemon's directory.
    pub fn pod(&self, name: &str) -> pb::PodSandboxConfig {
        crate::pod(name, &self.logs)
    }

    /// Runs a pod with one busybox container that executes the shell line; returns both ids.
    ///
    /// # Panics
    /// When a step fails.
    pub async fn running(&self, name: &str, line: &str) -> (String, String) {
        let config = self.pod(name);
        let pod = self.cri.run_pod(&config, "").await.expect("RunPodSandbox");
        let container = self
            .started(&pod, &config, &crate::container("main", &self.busybox().await, line))
            .await;
        (pod, container)
    }

    /// Creates and starts a container.
    ///
    /// # Panics
    /// When a step fails.
    pub async fn started(&self, pod: &str, sandbox: &pb::PodSandboxConfig, container: &pb::ContainerConfig) -> String {
        let id = self.cri.create(pod, container, sandbox).await.expect("CreateContainer");
        self.cri.start(&id).await.expect("StartContainer");
        id
    }

    /// Reference of the busybox image, pulled when it is not there.
    ///
    /// # Panics
    /// When a call fails.
    pub async fn busybox(&self) -> String {
        let reference = registry::reference("busybox:latest");
        match self.cri.image(&reference).await.expect("ImageStatus") {
            Some(_) => reference,
            None => self.pull("busybox:latest").await,
        }
    }

    /// Stops and removes a pod.
    ///
    /// # Panics
    /// When a call fails.
    pub async fn gone(&self, pod: &str) {
        self.cri.stop_pod(pod).await.expect("StopPodSandbox");
        self.cri.remove_pod(pod).await.expect("RemovePodSandbox");
    }

    /// Removes every pod, checks that nothing is left of them, ends the daemon in order, and checks again.
    ///
    /// # Panics
    /// When something is left; the message names it.
    pub async fn finish(mut self) {
        self.finished = true;
        for pod in self.cri.pods(None).await.expect("ListPodSandbox") {
            self.gone(&pod.id).await;
        }
        guard::pods_left_nothing(&self).await;
        let code = self.end(Signal::SIGTERM).await.expect("SIGTERM ends the daemon");
        assert_eq!(
            code,
            Some(0),
            "exit code of the daemon after SIGTERM; its log:\n{}",
            self.log()
        );
        let left: Vec<_> = self
            .lab
            .processes()
            .into_iter()
            .filter(|(_, line)| !line.contains("registry") && !line.contains("lab disk"))
            .collect();
        assert!(left.is_empty(), "processes left when the daemon has ended: {left:?}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- log of the daemon in {}:\n{}----",
                self.dir.path().display(),
                self.log()
            );
        } else if !self.finished {
            panic!("a test must end with finish(), so that what is left over is seen");
        }
    }
}

fn settings(dir: &Path, options: &Options, slice: Option<&str>) -> String {
    let handler = if options.handler.is_empty() {
        "builtin"
    } else {
        &options.handler
    };
    let cgroups = match slice {
        None => "driver = 'cgroupfs'".to_owned(),
        Some(slice) => format!("driver = 'systemd'\nslice = '{slice}'"),
    };
    format!(
        "state_dir = '{dir}/state'\nrun_dir = '{dir}/run'\ndefault_runtime = '{handler}'\n{settings}\n\
         [log]\nlevel = 'debug'\nformat = '{format}'\n\
         [runtimes.runc]\npath = '{runc}'\n[runtimes.crun]\npath = '{crun}'\n[cgroups]\n{cgroups}\n{tables}\n",
        runc = runtime("WHARF_RUNC", "/usr/sbin/runc"),
        crun = runtime("WHARF_CRUN", "/usr/bin/crun"),
        dir = dir.display(),
        format = if options.json_log { "json" } else { "text" },
        settings = options.settings,
        tables = options.tables,
    )
}

/// An OCI runtime's path: Debian's, unless the environment names another.
fn runtime(variable: &str, path: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| path.to_owned())
}

/// Starts the daemon and waits until it says, as to systemd, that it is ready.
async fn spawn(lab: &Lab, dir: &Path, config: &Path, options: &Options) -> Result<Process> {
    let starting = begin(lab, dir, config, options)?;
    ready(lab, dir, starting).await
}

/// A daemon that may not be ready yet, and the socket on which it will say that it is.
struct Starting {
    outer: Child,
    notes: UnixDatagram,
}

fn begin(lab: &Lab, dir: &Path, config: &Path, options: &Options) -> Result<Starting> {
    let notify = dir.join("notify.sock");
    let _ = std::fs::remove_file(&notify);
    let notes = UnixDatagram::bind(&notify)?;
    notes.set_read_timeout(Some(Duration::from_millis(100)))?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join("wharf.log"))?;
    // By env(1), because nsenter is looked for in the path too.
    let mut outer = lab.command("/usr/bin/env");
    if let Some(path) = &options.path {
        outer.arg(format!("PATH={path}"));
    }
    let outer = outer
        .arg(program("wharf")?)
        .args(["serve", "--config"])
        .arg(config)
        .env("NOTIFY_SOCKET", &notify)
        .env("WHARF_FAILPOINTS", dir.join("failpoints"))
        .env("RUST_BACKTRACE", "1")
        .envs(options.environment.iter().copied())
        .envs(options.boot_id.iter().map(|id| ("WHARF_BOOT_ID", id)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok(Starting { outer, notes })
}

async fn ready(lab: &Lab, dir: &Path, starting: Starting) -> Result<Process> {
    let Starting { mut outer, notes } = starting;
    let end = std::time::Instant::now() + crate::PATIENCE;
    loop {
        let notes = notes.try_clone()?;
        let mut message = [0; 4096];
        let read =
            tokio::task::spawn_blocking(move || notes.recv(&mut message).map(|length| message[..length].to_vec()));
        match read.await? {
            Ok(text) if String::from_utf8_lossy(&text).lines().any(|line| line == "READY=1") => break,
            _ if outer.try_wait()?.is_some() || std::time::Instant::now() > end => {
                let log = std::fs::read_to_string(dir.join("wharf.log")).unwrap_or_default();
                return Err(format!("not ready, its log:\n{log}").into());
            }
            _ => {}
        }
    }
    let pid = lab.inner_pid(&outer).await?;
    Ok(Process { outer, pid })
}
