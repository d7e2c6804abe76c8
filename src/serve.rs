//! `wharf serve`: build, wire, run, wait, and end in reverse order.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    cgroups::{self, Hierarchies, systemd},
    config::{self, CgroupDriver, Config, Settings},
    containers::{
        Tools, cdi, cpus,
        host::{self, Host},
    },
    cri::{Face, Server, ServerError, Serving},
    images::{self, Images},
    lsm::{self, selinux::Selinux},
    memory::{self, Work},
    monitor::{self, client::Program},
    netns::{self, Networks},
    node::{self, Node},
    nri::Nri,
    observe,
    runtime::features,
    sandbox::{Mechanisms, Roots},
    store::{self, StateLock},
    streaming, sys,
    telemetry::{self, Export, Telemetry},
};

/// Takes a level or filter; the error is for a person.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How the configuration is read again when SIGHUP comes.
pub struct Reloading {
    /// Reads and checks it; the error is for a person. Blocks.
    pub load: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// Changes what is logged.
    pub set_log_level: SetLogLevel,
}

/// Why the daemon could not start, or ended with a failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// State directory or records.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The image store.
    #[error("open images: {0}")]
    Images(#[from] images::Error),
    /// The network.
    #[error("open networks: {0}")]
    Networks(#[from] netns::Error),
    /// What starts monitors.
    #[error("prepare monitors: {0}")]
    Monitors(#[from] monitor::Error),
    /// What the machine has could not be read.
    #[error("look at the machine: {0}")]
    Host(#[from] host::Error),
    /// cgroups could not be found.
    #[error("look for cgroups: {0}")]
    Cgroups(#[from] cgroups::Error),
    /// Labels were wanted that can't be.
    #[error(transparent)]
    Selinux(#[from] lsm::selinux::Error),
    /// Recovery.
    #[error("recover: {0}")]
    Node(#[from] node::Error),
    /// The CRI socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// What was changed on the node's CPUs.
    #[error(transparent)]
    Cpus(#[from] cpus::LedgerError),
    /// The server of exec, attach and port-forward.
    #[error(transparent)]
    Streaming(#[from] streaming::Error),
    /// The server of metrics.
    #[error(transparent)]
    Metrics(#[from] observe::Error),
    /// Where traces go.
    #[error(transparent)]
    Tracing(#[from] telemetry::Error),
    /// Signals or the async runtime.
    #[error("{attempt}: {source}")]
    System {
        /// What was tried.
        attempt: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Runs the daemon until SIGTERM or SIGINT. Pods keep running afterwards.
///
/// # Errors
/// When it can't start, or the server fails.
pub fn run(config: Config, again: Reloading) -> Result<(), Error> {
    let system = |attempt| move |source| Error::System { attempt, source };
    memory::set_up();
    // What whoever started the daemon had open is nothing to monitors, which outlive it.
    sys::close_range(3, u32::MAX, true).map_err(system("mark inherited descriptors"))?;
    // Held until the process ends.
    let _lock = lock(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |count| count.get().min(4)))
        .thread_name("wharf")
        .thread_keep_alive(THREAD_LIFE)
        .enable_all()
        .build()
        .map_err(system("start the async runtime"))?;
    let keeper = runtime.spawn(keep_a_thread());
    let result = runtime.block_on(daemon(config, Arc::new(again)));
    keeper.abort();
    // A thread that waits for a disk that does not answer must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// How long a thread for work that blocks waits for more of it: after a burst there may be many, each with its stack.
const THREAD_LIFE: Duration = Duration::from_secs(5);

/// Keeps one thread for work that blocks. When a node is out of processes no new one can be made; tokio then gives the
/// work to those that there are, and panics when there are none: a container's end must not be lost in that.
async fn keep_a_thread() {
    loop {
        let _ = tokio::task::spawn_blocking(|| {}).await;
        tokio::time::sleep(THREAD_LIFE * 3 / 4).await;
    }
}

fn lock(config: &Config) -> Result<StateLock, Error> {
    store::create_dir(&config.state_dir)?;
    store::create_dir(&config.run_dir)?;
    // What containers use can be asked for before the first pod comes.
    store::create_dir(&config.state_dir.join("pods"))?;
    let lock = StateLock::acquire(&config.state_dir)?;
    store::take_over(&config.state_dir)?;
    Ok(lock)
}

async fn daemon(config: Config, again: Arc<Reloading>) -> Result<(), Error> {
    let system = |attempt| move |source| Error::System { attempt, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("watch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("watch SIGINT"))?;
    let mut hangup = signal(SignalKind::hangup()).map_err(system("watch SIGHUP"))?;

    // The socket is bound first and answers Version at once; all else waits for recovery (contract rule 38).
    let telemetry = telemetry(&config)?;
    let server = Server::bind(&config.socket, config.socket_group.as_deref())?;
    let server = server.watched(telemetry.clone(), &config.audit)?;
    let face = Face::new();
    let stop = CancellationToken::new();
    let work = Work::default();
    let mut serving = server.start(face.clone(), work.clone(), stop.clone())?;

    let (node, faces) = match open(config, telemetry.clone()).await {
        Ok(opened) => opened,
        Err(error) => {
            stop.cancel();
            let _ = serving.ended().await;
            return Err(error);
        }
    };
    face.ready(node.clone(), faces.streams.urls());
    notify(&[NotifyState::Ready]);
    tracing::info!(socket = %node.config().socket.display(), "wharf is ready");
    let _tidy = AbortOnDropHandle::new(tokio::spawn(memory::keep_tidy(work)));

    let signals = [&mut terminate, &mut interrupt, &mut hangup];
    let result = wait(serving, &face, &stop, signals, || read_again(&again, &node)).await;
    notify(&[NotifyState::Stopping]);
    faces.shut_down().await;
    node.shut_down().await;
    let _ = tokio::task::spawn_blocking(move || telemetry.shut_down()).await;
    tracing::info!("wharf has ended; pods keep running");
    result
}

fn telemetry(config: &Config) -> Result<Telemetry, Error> {
    let telemetry = match config.metrics.address {
        Some(_) => Telemetry::on(),
        None => Telemetry::default(),
    };
    let settings = &config.tracing;
    let Some(endpoint) = settings.endpoint.clone() else {
        return Ok(telemetry);
    };
    Ok(telemetry.traced(&Export {
        endpoint,
        service_name: settings.service_name.clone(),
        samples_per_million: settings.samples_per_million,
    })?)
}

async fn open(config: Config, telemetry: Telemetry) -> Result<(Node, Faces), Error> {
    let images = Images::open(&config).await?;
    let networks = Networks::open(&config).await?;
    let monitor_program = Program::current()?;
    let settings = config.clone();
    let look = move || -> Result<(Hierarchies, Option<String>, Host, Option<Selinux>), Error> {
        let hierarchies = cgroups::detect()?;
        let slice = slice(&settings.cgroups, &hierarchies)?;
        let host = host::host(&hierarchies, &settings)?;
        let selinux = match settings.selinux && lsm::selinux::is_enabled() {
            true => Some(Selinux::open(settings.selinux_categories)?),
            false => None,
        };
        if let Some(selinux) = &selinux {
            selinux.label_layers(&settings.state_dir.join("images"))?;
        }
        Ok((hierarchies, slice, host, selinux))
    };
    let system = |source| Error::System {
        attempt: "look at the machine",
        source,
    };
    let (looked, runtime_features) = tokio::join!(
        tokio::task::spawn_blocking(look),
        features::Catalog::open(config.programs())
    );
    let (cgroups, slice, host, selinux) = looked.map_err(std::io::Error::other).map_err(system)??;
    let mechanisms = Arc::new(Mechanisms {
        roots: Roots {
            state: config.state_dir.clone(),
            run: config.run_dir.clone(),
        },
        boot_id: store::boot_id()?,
        networks,
        cgroups,
        slice,
        telemetry: telemetry.clone(),
        selinux,
        monitor_program,
        runtime_features,
        config: Settings::new(config),
    });
    let streaming = mechanisms.config.get().streaming.clone();
    let cdi = cdi::Registry::new(mechanisms.config.get().cdi.spec_dirs.clone());
    let cpus = cpus::Ledger::open(
        &mechanisms.config.get().state_dir,
        &mechanisms.boot_id,
        &mechanisms.config.get().cpu_isolation,
    )?;
    let (nri, asks) = match &mechanisms.config.get().nri {
        settings if settings.enable => {
            let (nri, asks) = Nri::new(settings);
            (Some(nri), Some(asks))
        }
        _ => (None, None),
    };
    let tools = Tools {
        mechanisms,
        images,
        host,
        cdi,
        cpus: Arc::new(cpus),
        nri,
    };
    let node = Node::open(tools, asks).await?;
    match faces(&streaming, &node, telemetry).await {
        Ok(faces) => Ok((node, faces)),
        Err(error) => {
            node.shut_down().await;
            Err(error)
        }
    }
}

/// The faces beside CRI.
struct Faces {
    streams: streaming::Server,
    metrics: Option<observe::Server>,
}

async fn faces(streaming: &config::Streaming, node: &Node, telemetry: Telemetry) -> Result<Faces, Error> {
    let metrics = match node.config().metrics.address {
        Some(address) => Some(observe::Server::start(address, node.clone(), telemetry).await?),
        None => None,
    };
    match streaming::Server::start(streaming, node.clone()).await {
        Ok(streams) => Ok(Faces { streams, metrics }),
        Err(error) => {
            if let Some(metrics) = metrics {
                metrics.shut_down().await;
            }
            Err(error.into())
        }
    }
}

impl Faces {
    async fn shut_down(self) {
        if let Some(metrics) = &self.metrics {
            metrics.shut_down().await;
        }
        self.streams.shut_down().await;
    }
}

/// Wharf's own slice, if systemd makes the cgroups of new pods.
fn slice(settings: &config::Cgroups, hierarchies: &Hierarchies) -> Result<Option<String>, Error> {
    let use_it = match settings.driver {
        CgroupDriver::Cgroupfs => false,
        CgroupDriver::Auto => hierarchies.is_v2() && systemd::is_running(),
        CgroupDriver::Systemd if !hierarchies.is_v2() => {
            let what = "the systemd cgroup driver on cgroup v1: set driver = \"cgroupfs\" in [cgroups]";
            return Err(cgroups::Error::Unsupported(what.into()).into());
        }
        CgroupDriver::Systemd => true,
    };
    if !use_it {
        return Ok(None);
    }
    systemd::probe()?;
    Ok(Some(settings.slice.clone()))
}

/// Serves until a signal comes, telling systemd's watchdog meanwhile that the daemon is alive.
async fn wait(
    mut serving: Serving,
    face: &Face,
    stop: &CancellationToken,
    [terminate, interrupt, hangup]: [&mut Signal; 3],
    read_again: impl AsyncFn(),
) -> Result<(), Error> {
    let interval = sd_notify::watchdog_enabled().map_or(Duration::from_secs(3600), |limit| limit / 2);
    let mut watchdog = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                serving.reopen_audit();
                read_again().await;
            }
            // The status is what kubelet asks for: if it can't be made, the daemon is not well.
            _ = watchdog.tick() => if face.is_well() {
                notify(&[NotifyState::Watchdog]);
            },
            ended = serving.ended() => return Ok(ended?),
        }
    }
    face.end_streams();
    stop.cancel();
    match tokio::time::timeout(Duration::from_secs(5), serving.ended()).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            tracing::warn!("calls still running were cut off");
            Ok(serving.cut_off().await?)
        }
    }
}

/// Reads the configuration again, takes over what can change while the daemon runs, and says what became of it. What is
/// wrong changes nothing.
async fn read_again(again: &Arc<Reloading>, node: &Node) {
    let reader = Arc::clone(again);
    let read = tokio::task::spawn_blocking(move || (reader.load)()).await;
    let wanted = match read.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(wanted) => wanted,
        Err(error) => {
            tracing::error!(%error, "the configuration was read again, is wrong, and changes nothing");
            return;
        }
    };
    let told = node.reload(&wanted);
    if told.applied.iter().any(|path| path == "log.level")
        && let Err(error) = (again.set_log_level)(&node.config().log.level)
    {
        tracing::error!(%error, "the log's level stays");
    }
    tracing::info!(
        applied = told.applied.join(", "),
        waiting = told.waiting.join(", "),
        "the configuration was read again; what waits holds after the daemon's next start"
    );
}

/// Tells systemd, when it is there.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "could not notify systemd");
    }
}
