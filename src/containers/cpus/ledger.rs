//! What was changed on the node for which container, so that all of it is taken back: when the container ends, or when
//! the daemon starts after it was killed. Files of the kernel are changed only after the ledger says so.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::masks::{self, Format};
use crate::{
    config::{CpuIsolation, CpuSet},
    store,
};

/// Why the node could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the node.
    #[error("{attempt} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        attempt: String,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file has something else than a set of CPUs.
    #[error("{path}: {content:?} is no set of CPUs", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is in it.
        content: String,
    },
    /// Somebody must take interrupts.
    #[error("keep interrupts off CPUs {cpus}: no CPU would be left for them")]
    NoneLeft {
        /// As asked for.
        cpus: String,
    },
    /// The ledger itself.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// One change of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The file gets a value.
    Value { file: PathBuf, value: String },
    /// CPUs are added to the file's set, or taken out of it.
    Cpus {
        file: PathBuf,
        format: Format,
        cpus: CpuSet,
        add: bool,
    },
}

/// All changes that are in force. Kept on disk; one for the whole daemon. Its functions block.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    settings: CpuIsolation,
    state: Mutex<State>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    boot_id: String,
    places: BTreeMap<PathBuf, Place>,
    /// Of irqbalance's settings before the first change.
    irqbalance: Option<Banned>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Banned {
    before: Option<String>,
}

/// What holds for one file.
#[derive(Debug, Serialize, Deserialize)]
enum Place {
    Value {
        before: String,
        claims: Vec<Claim>,
    },
    Cpus {
        format: Format,
        add: bool,
        /// Those that were changed here; others were as they should be before.
        changed: String,
        claims: Vec<Claim>,
    },
}

/// Who wants what of a file: a value, or a list of CPUs.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Claim {
    owner: String,
    value: String,
}

impl Ledger {
    /// The ledger that is kept in `state_dir`. After a reboot the kernel's files are as they were; irqbalance's settings
    /// are not, and are set back now.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(state_dir: &Path, boot_id: &str, settings: &CpuIsolation) -> Result<Self, Error> {
        let path = state_dir.join("cpus.json");
        let mut state: State = match std::fs::read(&path) {
            // Written by rename: what can't be read is of nobody's making, and nothing can be learned from it.
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "unreadable: what was changed on CPUs stays changed");
                State::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(source) => return Err(io_error("read", &path)(source)),
        };
        let rebooted = state.boot_id != boot_id && !state.boot_id.is_empty();
        if rebooted {
            state.places.clear();
        }
        boot_id.clone_into(&mut state.boot_id);
        let ledger = Self {
            path,
            settings: settings.clone(),
            state: Mutex::new(State::default()),
        };
        if rebooted && state.irqbalance.is_some() {
            if let Err(error) = ledger.tell_irqbalance(&mut state) {
                tracing::error!(%error, "could not set irqbalance's settings back");
            }
            ledger.save(&state)?;
        }
        *ledger.lock() = state;
        Ok(ledger)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the changes for `owner`: all of them, or none. True when it concerned interrupts.
    ///
    /// # Errors
    /// The first change that could not be made.
    pub(super) fn claim(&self, owner: &str, steps: &[Step]) -> Result<bool, Error> {
        let mut state = self.lock();
        let interrupts = steps.iter().any(|step| self.is_interrupts(step.file()));
        let mut made = steps.iter().try_for_each(|step| self.take(&mut state, owner, step));
        if interrupts && made.is_ok() {
            made = self.tell_irqbalance(&mut state);
        }
        if let Err(error) = made {
            self.give_back(&mut state, &|known| known == owner)?;
            return Err(error);
        }
        Ok(interrupts)
    }

    /// Takes back what was changed for `owner`. True when it concerned interrupts. Nothing changed: done. A file that
    /// can't be set back is logged, and forgotten: a container's end must not depend on it.
    ///
    /// # Errors
    /// When the ledger can't be written.
    pub(super) fn release(&self, owner: &str) -> Result<bool, Error> {
        self.give_back(&mut self.lock(), &|known| known == owner)
    }

    /// Takes back what was changed for everybody who is not among `owners`.
    ///
    /// # Errors
    /// As [`Ledger::release`].
    pub(super) fn release_others(&self, owners: &[&str]) -> Result<bool, Error> {
        self.give_back(&mut self.lock(), &|known| !owners.contains(&known))
    }

    fn is_interrupts(&self, file: &Path) -> bool {
        file == self.settings.irq_affinity_file
    }

    fn save(&self, state: &State) -> Result<(), Error> {
        if state.places.is_empty() && state.irqbalance.is_none() {
            return match std::fs::remove_file(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &self.path)(source)),
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec(state).map_err(|error| io_error("write", &self.path)(error.into()))?;
        Ok(store::write_file(&self.path, &text, 0o600)?)
    }

    fn take(&self, state: &mut State, owner: &str, step: &Step) -> Result<(), Error> {
        let now = read(step.file())?;
        let claim = |value: String| Claim {
            owner: owner.to_owned(),
            value,
        };
        let (file, content) = match step {
            Step::Value { file, value } => {
                let place = state.places.entry(file.clone()).or_insert_with(|| Place::Value {
                    before: now.trim().to_owned(),
                    claims: Vec::new(),
                });
                place.claims().push(claim(value.clone()));
                (file, Some(value.clone()))
            }
            Step::Cpus {
                file,
                format,
                cpus,
                add,
            } => {
                let now = parse(file, *format, &now)?;
                let (new, after) = match add {
                    true => (cpus.without(&now), now.union(cpus)),
                    false => (cpus.both(&now), now.without(cpus)),
                };
                if *format == Format::Mask && after.is_empty() {
                    return Err(Error::NoneLeft { cpus: cpus.to_string() });
                }
                let place = state.places.entry(file.clone()).or_insert_with(|| Place::Cpus {
                    format: *format,
                    add: *add,
                    changed: String::new(),
                    claims: Vec::new(),
                });
                if let Place::Cpus { changed, .. } = place {
                    *changed = known(changed).union(&new).to_string();
                }
                place.claims().push(claim(cpus.to_string()));
                (file, (!new.is_empty()).then(|| format.write(&after)))
            }
        };
        self.save(state)?;
        content.map_or(Ok(()), |content| write(file, &content))
    }

    fn give_back(&self, state: &mut State, whose: &dyn Fn(&str) -> bool) -> Result<bool, Error> {
        let mut interrupts = false;
        let mut touched = false;
        for (file, place) in &mut state.places {
            let (gone, left): (Vec<_>, Vec<_>) = place.claims().iter().cloned().partition(|claim| whose(&claim.owner));
            if gone.is_empty() {
                continue;
            }
            touched = true;
            interrupts |= self.is_interrupts(file);
            *place.claims() = left;
            if let Err(error) = place.set_back(file, &gone) {
                tracing::error!(%error, "could not set back what was changed for a container");
            }
        }
        if !touched {
            return Ok(false);
        }
        state.places.retain(|_, place| !place.claims().is_empty());
        if interrupts && let Err(error) = self.tell_irqbalance(state) {
            tracing::error!(%error, "could not set irqbalance's settings back");
        }
        self.save(state)?;
        Ok(interrupts)
    }

    /// Brings irqbalance's settings in line with the mask, or, when nobody keeps interrupts away, back to what they were.
    fn tell_irqbalance(&self, state: &mut State) -> Result<(), Error> {
        let path = &self.settings.irqbalance_config;
        let settings = match std::fs::read_to_string(path) {
            Ok(settings) => settings,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                state.irqbalance = None;
                return Ok(());
            }
            Err(source) => return Err(io_error("read", path)(source)),
        };
        let banned = match state.places.contains_key(&self.settings.irq_affinity_file) {
            true => {
                let mask = read(&self.settings.irq_affinity_file)?;
                state.irqbalance.get_or_insert_with(|| Banned {
                    before: masks::banned(&settings).map(ToOwned::to_owned),
                });
                self.save(state)?;
                masks::others(&mask).map(|mask| format!("\"{mask}\""))
            }
            false => match state.irqbalance.take() {
                Some(Banned { before }) => before,
                None => return Ok(()),
            },
        };
        let changed = masks::with_banned(&settings, banned.as_deref());
        store::write_file(path, changed.as_bytes(), 0o644)?;
        Ok(())
    }
}

impl Step {
    fn file(&self) -> &Path {
        match self {
            Self::Value { file, .. } | Self::Cpus { file, .. } => file,
        }
    }
}

impl Place {
    fn claims(&mut self) -> &mut Vec<Claim> {
        match self {
            Self::Value { claims, .. } | Self::Cpus { claims, .. } => claims,
        }
    }

    /// After `gone` have given up. A file that is gone needs nothing.
    fn set_back(&mut self, file: &Path, gone: &[Claim]) -> Result<(), Error> {
        let now = match read(file) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match self {
            Self::Value { before, claims } => {
                let value = claims.last().map_or(&*before, |claim| &claim.value);
                match now.trim() == value {
                    true => Ok(()),
                    false => write(file, value),
                }
            }
            Self::Cpus {
                format,
                add,
                changed,
                claims,
            } => {
                let of = |claims: &[Claim]| {
                    let sets = claims.iter().map(|claim| known(&claim.value));
                    sets.fold(CpuSet::default(), |all, one| all.union(&one))
                };
                let freed = of(gone).both(&known(changed)).without(&of(claims));
                *changed = known(changed).without(&freed).to_string();
                let now = parse(file, *format, &now)?;
                let after = match add {
                    true => now.without(&freed),
                    false => now.union(&freed),
                };
                match after == now {
                    true => Ok(()),
                    false => write(file, &format.write(&after)),
                }
            }
        }
    }
}

/// A list of the ledger's own.
fn known(list: &str) -> CpuSet {
    CpuSet::parse(list).unwrap_or_default()
}

fn parse(file: &Path, format: Format, text: &str) -> Result<CpuSet, Error> {
    format.parse(text).ok_or_else(|| Error::Content {
        path: file.to_owned(),
        content: text.trim().to_owned(),
    })
}

fn io_error(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let (attempt, path) = (attempt.to_owned(), path.to_owned());
    move |source| Error::Io { attempt, path, source }
}

fn read(file: &Path) -> Result<String, Error> {
    std::fs::read_to_string(file).map_err(io_error("read", file))
}

/// With one write(2), as the kernel demands; the file must be there.
fn write(file: &Path, content: &str) -> Result<(), Error> {
    let open = OpenOptions::new().write(true).truncate(true).open(file);
    open.and_then(|mut open| open.write_all(content.as_bytes()))
        .map_err(io_error(&format!("write {content:?} to"), file))
}
