//! The configuration in force, and what of it changes while the daemon runs.

use std::sync::{Arc, PoisonError, RwLock};

use toml::{Table, Value};

use super::Config;

/// Settings that are looked at each time they are needed, so that a new value holds from then on: for new containers,
/// logs and answers. By their path; a table's name stands for all of it. All others are used when the daemon starts.
const LIVE: [&str; 13] = [
    "log.level",
    "pinned_images",
    "max_log_line",
    "log_rate_limit",
    "log_to_journald",
    "pids_limit",
    "blockio_classes",
    "default_capabilities",
    "unset_seccomp",
    "apparmor_profile",
    "device_ownership_from_security_context",
    "passwd_entries",
    "containers",
];

/// The configuration in force. Whoever needs it takes it as it is now.
#[derive(Debug)]
pub struct Settings(RwLock<Arc<Config>>);

/// What came of reading the configuration anew, by the paths of settings (`log.level`), sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Holds from now on.
    pub applied: Vec<String>,
    /// Will hold when the daemon has been started anew.
    pub waiting: Vec<String>,
}

impl Settings {
    /// The configuration that the daemon starts with.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self(RwLock::new(Arc::new(config)))
    }

    /// The configuration now.
    #[must_use]
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what of `wanted`, a configuration that was checked, can change while the daemon runs.
    pub fn reload(&self, wanted: &Config) -> Reloaded {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (Ok(mut table), Ok(new)) = (Table::try_from(&**now), Table::try_from(wanted)) else {
            return Reloaded::default();
        };
        let mut changed = Vec::new();
        differences("", &table, &new, &mut changed);
        let (applied, mut waiting): (Vec<_>, Vec<_>) = changed.into_iter().partition(|path| is_live(path));
        for path in &applied {
            take(&mut table, &new, path);
        }
        match table.try_into::<Config>() {
            Ok(config) => *now = Arc::new(config),
            // Both were read from such tables, so this does not come to pass; then nothing has changed.
            Err(_) => {
                waiting.extend(applied);
                waiting.sort();
                return Reloaded {
                    applied: Vec::new(),
                    waiting,
                };
            }
        }
        Reloaded { applied, waiting }
    }
}

fn is_live(path: &str) -> bool {
    LIVE.iter().any(|live| {
        path.strip_prefix(live)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The paths of what differs between two tables, sorted.
fn differences(above: &str, old: &Table, new: &Table, found: &mut Vec<String>) {
    let mut keys: Vec<_> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let path = match above {
            "" => key.clone(),
            above => format!("{above}.{key}"),
        };
        match (old.get(key), new.get(key)) {
            // Keys of a table that are data, such as names of registries, may have dots: the table is told as a whole.
            (Some(Value::Table(old)), Some(Value::Table(new))) if !has_names(old) && !has_names(new) => {
                differences(&path, old, new, found);
            }
            (old, new) if old != new => found.push(path),
            _ => {}
        }
    }
}

/// Whether a table's keys are not all names of settings.
fn has_names(table: &Table) -> bool {
    let plain = |key: &String| {
        key.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
    };
    !table.keys().all(plain)
}

/// Makes the setting at `path` what it is in `new`.
fn take(table: &mut Table, new: &Table, path: &str) {
    match path.split_once('.') {
        None => match new.get(path) {
            Some(value) => drop(table.insert(path.to_owned(), value.clone())),
            None => drop(table.remove(path)),
        },
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let (Value::Table(inner), Some(Value::Table(new))) = (inner, new.get(first)) {
                take(inner, new, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_does_and_the_rest_waits() {
        let settings = Settings::new(Config::default());
        let mut wanted = Config::default();
        wanted.log.level = "debug".into();
        wanted.pids_limit = Some(100);
        wanted.pinned_images = vec!["a*".into()];
        wanted.network = super::super::NetworkMode::Cni;
        wanted.registries.insert("r.example:5000".into(), Default::default());
        wanted.containers.shm_size = 1 << 20;
        let told = settings.reload(&wanted);
        assert_eq!(
            told.applied,
            ["containers.shm_size", "log.level", "pids_limit", "pinned_images"]
        );
        assert_eq!(told.waiting, ["network", "registries"]);
        let now = settings.get();
        assert_eq!((now.log.level.as_str(), now.pids_limit), ("debug", Some(100)));
        assert_eq!(now.network, Config::default().network);
        // Back again: what is unset is taken away.
        let told = settings.reload(&Config::default());
        assert_eq!(told.waiting, Vec::<String>::new());
        assert_eq!(*settings.get(), Config::default());
    }

    #[test]
    fn nothing_new_changes_nothing() {
        let settings = Settings::new(Config::default());
        assert_eq!(settings.reload(&Config::default()), Reloaded::default());
    }
}
