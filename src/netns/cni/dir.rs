//! One directory of configurations: watched, read anew when it changes, its plugins asked for their STATUS.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{sleep_until, timeout_at};

use super::config::NetworkList;
use super::health::Health;
use super::plugin::{Call, Runner};
use super::watch::Watch;
use crate::netns::task::Task;
use crate::netns::{Error, Result, thread};

/// STATUS came with this version.
const STATUS_SINCE: &str = "1.1.0";

/// What is known of a directory.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    /// The networks that pods are attached to, in this order.
    pub(super) lists: Arc<Vec<NetworkList>>,
    /// Whether kubelet is told that it is ready.
    pub(super) ready: bool,
    /// Why it is not, or soon will not be.
    pub(super) fault: String,
}

impl View {
    /// Whether a pod can be attached now.
    fn is_usable(&self) -> bool {
        self.ready && !self.lists.is_empty()
    }
}

/// How a directory is looked at.
#[derive(Debug, Clone)]
pub(super) struct Habits {
    /// Networks of a pod at most; 0 is all.
    pub(super) most: usize,
    /// Between two STATUS.
    pub(super) interval: Duration,
    /// See [`Health`].
    pub(super) grace: Duration,
}

/// The directory; see the module.
#[derive(Debug)]
pub(super) struct Directory {
    shared: Arc<Shared>,
    _watcher: Option<Task>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    habits: Habits,
    runner: Runner,
    view: watch::Sender<View>,
    health: tokio::sync::Mutex<Health>,
}

impl Directory {
    /// Looks for configurations and, if `watched`, goes on looking.
    ///
    /// # Errors
    /// When the kernel gives no watch.
    pub(super) async fn open(path: &Path, habits: Habits, runner: Runner, watched: bool) -> Result<Self> {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            habits,
            runner,
            view: watch::Sender::new(View {
                fault: absent(path),
                ..View::default()
            }),
            health: tokio::sync::Mutex::default(),
        });
        let watcher = if watched {
            // Watching begins before looking, so that no change falls in between.
            let first = Watch::new(path)?;
            shared.look().await;
            Some(Task::spawn(Arc::clone(&shared).keep_looking(first)))
        } else {
            None
        };
        Ok(Self {
            shared,
            _watcher: watcher,
        })
    }

    /// What was seen last. Waits for nothing.
    pub(super) fn view(&self) -> View {
        self.shared.view.borrow().clone()
    }

    /// The networks to attach a pod to, once they are ready, which is waited for until `deadline`.
    ///
    /// # Errors
    /// [`Error::NotReady`] when they are not by then.
    pub(super) async fn networks(&self, deadline: Instant) -> Result<Arc<Vec<NetworkList>>> {
        // A configuration that was written a moment ago counts, whether or not the watcher was there yet.
        self.shared.look().await;
        let mut changes = self.shared.view.subscribe();
        let ready = timeout_at(deadline.into(), changes.wait_for(View::is_usable)).await;
        match ready {
            Ok(Ok(view)) => Ok(Arc::clone(&view.lists)),
            _ => Err(Error::NotReady(self.view().fault)),
        }
    }

    /// Whether a pod can be attached without waiting.
    pub(super) fn is_usable(&self) -> bool {
        self.shared.view.borrow().is_usable()
    }

    /// Waits until there is a configuration.
    pub(super) async fn found(&self) {
        let mut changes = self.shared.view.subscribe();
        // The sender lives as long as this.
        let _ = changes.wait_for(|view| !view.lists.is_empty()).await;
    }

    /// Reads the directory now.
    pub(super) async fn look(&self) {
        self.shared.look().await;
    }
}

impl Shared {
    /// Reads the directory and publishes what is there. A directory that is empty for a while, or whose file is only half
    /// written, keeps the node as it was for the time of grace; what can't be read does not replace what could be.
    async fn look(&self) {
        let mut health = self.health.lock().await;
        let (path, most) = (self.path.clone(), self.habits.most);
        let seen = thread::run("wharf-cni", move || NetworkList::first_in(&path, most)).await;
        let before = Arc::clone(&self.view.borrow().lists);
        let (lists, fault) = match seen {
            Ok(mut lists) if !lists.is_empty() => {
                for list in &mut lists {
                    self.settle(list, &before).await;
                }
                (Arc::new(lists), None)
            }
            Ok(_) => (Arc::default(), Some(absent(&self.path))),
            Err(error) => (before, Some(error.to_string())),
        };
        let asks = lists.iter().any(|list| list.speaks(STATUS_SINCE));
        match fault {
            Some(fault) => health.saw(Err(fault), Instant::now(), self.habits.grace),
            // Whoever can tell is asked (see `ask`); for the others a configuration is all that there is to see.
            None if !asks => health.saw(Ok(()), Instant::now(), self.habits.grace),
            None => {}
        }
        self.publish(&health, lists);
    }

    /// Chooses the newest version that all plugins of a list speak, where the list leaves a choice.
    async fn settle(&self, list: &mut NetworkList, before: &[NetworkList]) {
        if list.offered.len() < 2 {
            return;
        }
        if let Some(same) = before
            .iter()
            .find(|old| old.offered == list.offered && old.plugins.len() == list.plugins.len())
        {
            let kinds = |list: &NetworkList| {
                list.plugins
                    .iter()
                    .map(|plugin| plugin.kind.clone())
                    .collect::<Vec<_>>()
            };
            if same.name == list.name && kinds(same) == kinds(list) {
                let version = same.version.clone();
                list.speak(&version);
                return;
            }
        }
        let answers = join_all(list.plugins.iter().map(|plugin| self.runner.versions(&plugin.kind))).await;
        // Who does not answer has no say; its ADD will tell why.
        let known: Vec<Vec<String>> = answers
            .into_iter()
            .flatten()
            .filter(|known| !known.is_empty())
            .collect();
        let common = list
            .offered
            .iter()
            .rev()
            .find(|version| known.iter().all(|all| all.contains(version)));
        if let Some(version) = common.cloned() {
            list.speak(&version);
        }
    }

    /// Asks the plugins for their STATUS and publishes the verdict.
    async fn ask(&self) {
        let lists = Arc::clone(&self.view.borrow().lists);
        let mut verdict = Ok(());
        let mut asked = false;
        for list in lists.iter().filter(|list| list.speaks(STATUS_SINCE)) {
            asked = true;
            for plugin in &list.plugins {
                let call = Call {
                    command: "STATUS",
                    ..Call::default()
                };
                let answer = self
                    .runner
                    .run(call, &plugin.kind, &Value::Object(plugin.config.clone()))
                    .await;
                verdict = verdict.and(answer.map(drop));
            }
        }
        let mut health = self.health.lock().await;
        let now = Arc::clone(&self.view.borrow().lists);
        // An answer about a configuration that is not in force any more says nothing.
        if !asked || !Arc::ptr_eq(&lists, &now) && *lists != *now {
            return;
        }
        if let Err(error) = &verdict {
            tracing::warn!(%error, "a network says that it is not ready");
        }
        health.saw(
            verdict.map_err(|error| error.to_string()),
            Instant::now(),
            self.habits.grace,
        );
        self.publish(&health, now);
    }

    fn publish(&self, health: &Health, lists: Arc<Vec<NetworkList>>) {
        let view = View {
            lists,
            ready: health.is_ready(),
            fault: health.fault().to_owned(),
        };
        self.view.send_if_modified(|old| {
            let changed = old.ready != view.ready || old.fault != view.fault || old.lists != view.lists;
            if old.ready != view.ready {
                tracing::info!(dir = %self.path.display(), ready = view.ready, fault = view.fault, "network");
            }
            *old = view;
            changed
        });
    }

    async fn keep_looking(self: Arc<Self>, mut watch: Watch) {
        self.ask().await;
        loop {
            let asks = self.view.borrow().lists.iter().any(|list| list.speaks(STATUS_SINCE));
            let due = self.health.lock().await.due(self.habits.grace);
            let next = match (asks, due) {
                (true, Some(due)) => Some(due.min(Instant::now() + self.habits.interval)),
                (true, None) => Some(Instant::now() + self.habits.interval),
                (false, due) => due,
            };
            let tick = async {
                match next {
                    Some(next) => sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = watch.changed() => {
                    let next = match changed {
                        // A new watch each time: the directory may be another one, or have come into being.
                        Ok(()) => Watch::new(&self.path),
                        Err(source) => Err(Error::io("watch", &self.path, source)),
                    };
                    match next {
                        Ok(next) => watch = next,
                        Err(error) => {
                            tracing::error!(%error, "CNI configurations are read again only when a pod is attached");
                            return;
                        }
                    }
                }
                () = tick => {}
            }
            self.look().await;
            self.ask().await;
        }
    }
}

fn absent(dir: &Path) -> String {
    format!("no CNI network configuration in {}", dir.display())
}
