//! NRI, the Node Resource Interface: plugins that watch pods and containers and adjust them, as containerd and CRI-O
//! serve them (github.com/containerd/nri; version 0.12 read, 2026-11).
//!
//! Owns: the plugins that the daemon starts and the socket at which others connect; their order; what they have been told
//! of; how what several of them want becomes one wish. Must never: know where pods and containers are, or change one. Who
//! holds them tells of what happens by the methods of [`Nri`], and answers what is asked of him by [`Asks`]. May ask
//! `config`.
//!
//! **One at a time.** What plugins are told, and what is done upon their answers, happens under one lock: plugins count on
//! hearing things in their order, and the last of two wishes for a container must be the one that holds. A plugin that does
//! not answer in time is cut off, so the lock is never held for long.
//!
//! **A new plugin misses nothing and hears nothing twice.** It is told of all that plugins have been told of, and joins
//! them under the same lock. What is told of and can't be found yet, because its creation goes on after the plugins have
//! seen it, is kept here until then.

mod connection;
mod event;
mod frame;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod hooks;
mod join;
mod launch;
mod listen;
pub mod merge;
mod plugin;
#[cfg(test)]
mod tests;
mod told;
mod validator;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI32, Ordering},
    },
    time::Duration,
};

use plugin::Plugin;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use told::Told;
use wharf_proto::nri::{Container, ContainerEviction, ContainerUpdate, Empty, Event, PodSandbox};

use crate::config;

/// How long plugins may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(1);

/// Asks that wait to be heard.
const ASKS: usize = 64;

/// Why something could not be done with the plugins' consent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A plugin says no.
    #[error("NRI plugin {plugin}, {event}: {message}")]
    Refused {
        /// `NN-name`.
        plugin: String,
        /// What it was told of.
        event: &'static str,
        /// Its words.
        message: String,
    },
    /// Two plugins want different things, or one what nobody may.
    #[error("NRI: {0}")]
    Conflict(String),
    /// A validator does not allow what the plugins want.
    #[error("NRI validator {validator}: {reason}")]
    Rejected {
        /// `NN-name`.
        validator: String,
        /// Its words.
        reason: String,
    },
    /// The socket can't be opened.
    #[error("serve NRI plugins at {path}: {message}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
}

/// What this room returns.
pub type Result<T> = std::result::Result<T, Error>;

/// How long plugins may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// To register.
    pub registration: Duration,
    /// To answer.
    pub request: Duration,
}

/// Everything that there is, for a new plugin.
#[derive(Debug, Default)]
pub struct State {
    /// Every pod.
    pub pods: Vec<PodSandbox>,
    /// Every container.
    pub containers: Vec<Container>,
}

/// What the room needs of whoever holds pods and containers.
#[derive(Debug)]
pub enum Ask {
    /// All that there is.
    State(oneshot::Sender<State>),
    /// Change and stop containers. The answer has those updates that failed and may not.
    Change {
        /// Who wants it, for the log.
        plugin: String,
        /// New limits.
        updates: Vec<ContainerUpdate>,
        /// To be stopped.
        evictions: Vec<ContainerEviction>,
        /// For what failed.
        failed: oneshot::Sender<Vec<ContainerUpdate>>,
    },
}

/// Where the room asks; to be served by whoever holds pods and containers, each ask in a task of its own.
pub type Asks = mpsc::Receiver<Ask>;

/// The plugins. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nri {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    settings: config::Nri,
    limits: Limits,
    turn: Mutex<Turn>,
    /// Bits of events that any plugin wants to hear of.
    wanted: AtomicI32,
    asks: mpsc::Sender<Ask>,
    tasks: TaskTracker,
    ending: CancellationToken,
}

/// What is changed by one at a time.
#[derive(Debug, Default)]
struct Turn {
    /// In the order in which they are asked.
    plugins: Vec<Arc<Plugin>>,
    told: Told,
}

impl Turn {
    /// Forgets plugins that have gone.
    fn tidy(&mut self, inner: &Inner) {
        self.plugins.retain(|plugin| !plugin.is_closed());
        let wanted = self.plugins.iter().fold(0, |bits, plugin| bits | plugin.events());
        inner.wanted.store(wanted, Ordering::Relaxed);
    }
}

impl Nri {
    /// The room, without a plugin yet.
    #[must_use]
    pub fn new(settings: &config::Nri) -> (Self, Asks) {
        let (asks, receiver) = mpsc::channel(ASKS);
        let inner = Inner {
            limits: Limits {
                registration: Duration::from_secs(settings.registration_timeout_secs),
                request: Duration::from_secs(settings.request_timeout_secs),
            },
            settings: settings.clone(),
            turn: Mutex::default(),
            wanted: AtomicI32::new(0),
            asks,
            tasks: TaskTracker::new(),
            ending: CancellationToken::new(),
        };
        (Self { inner: Arc::new(inner) }, receiver)
    }

    /// Starts the plugins that are installed, and listens for others. Pods and containers that are there are those of
    /// [`Ask::State`], which must be answered from now on. A plugin that can't be started is logged.
    ///
    /// # Errors
    /// When the socket can't be opened.
    pub async fn start(&self) -> Result<()> {
        {
            // Held meanwhile, so that no end is missed.
            let mut turn = self.inner.turn.lock().await;
            let state = self.inner.state().await;
            turn.told.begin(&state);
        }
        self.inner.launch().await;
        if self.inner.settings.disable_connections {
            return Ok(());
        }
        let listener = listen::bind(&self.inner.settings.socket)?;
        tracing::info!(socket = %self.inner.settings.socket.display(), "NRI plugins can connect");
        self.inner.tasks.spawn(listen::serve(Arc::clone(&self.inner), listener));
        Ok(())
    }

    /// Says goodbye to all plugins, and ends those that the daemon has started.
    pub async fn shut_down(&self) {
        self.inner.ending.cancel();
        let plugins = std::mem::take(&mut self.inner.turn.lock().await.plugins);
        let farewells = plugins.iter().map(|plugin| async {
            // Those that are older know no such call; all see the socket close.
            let limit = FAREWELL.min(self.inner.limits.request);
            if let Err(error) = plugin.ask_within::<Empty>("Shutdown", &Empty {}, limit).await {
                tracing::debug!(plugin = plugin.name(), %error, "an NRI plugin did not say goodbye");
            }
            plugin.close();
        });
        futures_util::future::join_all(farewells).await;
        self.inner.tasks.close();
        if tokio::time::timeout(FAREWELL, self.inner.tasks.wait()).await.is_err() {
            tracing::warn!("NRI plugins did not end in time");
        }
    }

    /// Whether any plugin wants to hear of this; what is told of otherwise costs a look at a few names.
    #[must_use]
    pub fn wants(&self, event: Event) -> bool {
        self.inner.wanted.load(Ordering::Relaxed) & event::bit(event) != 0
    }
}

impl Inner {
    /// All that there is; nothing when nobody answers any more.
    async fn state(&self) -> State {
        let (sender, state) = oneshot::channel();
        match self.asks.send(Ask::State(sender)).await {
            Ok(()) => state.await.unwrap_or_default(),
            Err(_) => State::default(),
        }
    }

    /// Has containers changed and stopped. Those updates that failed are returned; what takes longer than a plugin may is
    /// not waited for.
    async fn change(
        &self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Vec<ContainerUpdate> {
        if updates.is_empty() && evictions.is_empty() {
            return Vec::new();
        }
        let (failed, answer) = oneshot::channel();
        let ask = Ask::Change {
            plugin: plugin.to_owned(),
            updates: updates.clone(),
            evictions,
            failed,
        };
        let done = async {
            self.asks.send(ask).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(self.limits.request, done).await {
            Ok(Some(failed)) => failed,
            Ok(None) => updates,
            Err(_) => {
                tracing::warn!(
                    plugin,
                    "what an NRI plugin wants of other containers takes long and is not waited for"
                );
                updates
            }
        }
    }
}
