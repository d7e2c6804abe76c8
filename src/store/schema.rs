//! By which version's rules the state on disk was written, and how it comes from one to the next.
//!
//! Every record begins with a schema number, and `state_dir/schema` has the highest that any may have. A version takes
//! older state over by the [`Step`]s: a record is changed when it is read, and gets its new form on disk with its next
//! change. State of a newer version is refused before anything in it is touched: what it holds would be misread, and lost
//! when it is written again.

use std::{fs, io, path::Path};

use prost::Message;
use wharf_proto::record;

use super::{Error, Result, failed, write_file};

/// The schema number that this version writes; see `record.proto`.
pub const SCHEMA: u32 = 1;

/// Name of the file in the state directory.
const FILE: &str = "schema";

/// What makes state of one schema out of state of the one before. Each part may find work that it has done already: a
/// daemon that is killed in between begins anew.
pub struct Step {
    /// The schema that it leads to.
    to: u32,
    pod: fn(&mut record::Pod),
    container: fn(&mut record::Container),
    image: fn(&mut record::Image),
    layer: fn(&mut record::UnpackedLayer),
    blob: fn(&mut record::PackedLayer),
    /// For what is no record: leases, recipes, directories. Gets the state directory.
    files: fn(&Path) -> io::Result<()>,
}

impl Step {
    /// A step that changes nothing but the number, to be completed.
    const fn to(schema: u32) -> Self {
        Self {
            to: schema,
            pod: |_| {},
            container: |_| {},
            image: |_| {},
            layer: |_| {},
            blob: |_| {},
            files: |_| Ok(()),
        }
    }
}

/// All steps that there have been, in order. The last one leads to [`SCHEMA`].
const STEPS: &[Step] = &[];

/// The steps to the schema in force.
fn steps() -> &'static [Step] {
    const NEXT: &[Step] = &[Step::to(SCHEMA + 1)];
    if schema() > SCHEMA { NEXT } else { STEPS }
}

/// The schema in force. Debug builds take that of a next version, one higher, where the environment has
/// `WHARF_NEXT_SCHEMA`: for tests of what an upgrade does and a downgrade refuses.
#[must_use]
pub fn schema() -> u32 {
    #[cfg(debug_assertions)]
    {
        static NEXT: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            // A monitor has no environment, so that it stays what it is.
            std::env::var_os("WHARF_NEXT_SCHEMA").is_some()
        });
        if *NEXT {
            return SCHEMA + 1;
        }
    }
    SCHEMA
}

/// A record that says by which rules it was written.
pub trait Versioned: Message + Default {
    /// What a step does to such a record.
    fn change(step: &Step) -> fn(&mut Self);
    /// The record's schema number.
    fn schema(&mut self) -> &mut u32;
}

macro_rules! versioned {
    ($($record:ident => $part:ident),*) => {
        $(impl Versioned for record::$record {
            fn change(step: &Step) -> fn(&mut Self) {
                step.$part
            }

            fn schema(&mut self) -> &mut u32 {
                &mut self.schema
            }
        })*
    };
}
versioned!(Pod => pod, Container => container, Image => image, UnpackedLayer => layer, PackedLayer => blob);

/// Reads the record at `path` as one of the schema in force; `None` when there is none.
///
/// # Errors
/// [`Error::Newer`] when a newer version has written it; when it can't be read or is not such a record.
pub fn read_versioned<M: Versioned>(path: &Path) -> Result<Option<M>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read record", path)(error)),
    };
    decode(path, &bytes, steps(), schema()).map(Some)
}

fn decode<M: Versioned>(path: &Path, bytes: &[u8], steps: &[Step], current: u32) -> Result<M> {
    let wrong = |source| Error::Decode {
        path: path.to_owned(),
        source,
    };
    // Alone first: what else a newer version has written may be no such message for this one.
    let found = record::Versioned::decode(bytes).map_err(wrong)?.schema;
    if found > current {
        return Err(Error::Newer {
            path: path.to_owned(),
            schema: found,
            known: current,
        });
    }
    if found == 0 {
        return Err(Error::Unversioned { path: path.to_owned() });
    }
    let mut message = M::decode(bytes).map_err(wrong)?;
    for step in steps.iter().filter(|step| step.to > found) {
        M::change(step)(&mut message);
        *message.schema() = step.to;
    }
    Ok(message)
}

/// Takes the state directory over for this version: refuses that of a newer one, and does what of the way from an older
/// one is not done with the records. To be called with the directory locked, before anything else in it is read.
///
/// # Errors
/// [`Error::Newer`]; when a file can't be read, changed or written.
pub fn take_over(state_dir: &Path) -> Result<()> {
    let path = state_dir.join(FILE);
    let found = written(&path)?;
    let current = schema();
    if let Some(found) = found.filter(|found| *found > current) {
        return Err(Error::Newer {
            path,
            schema: found,
            known: current,
        });
    }
    if found == Some(current) {
        return Ok(());
    }
    // Before this file was, there was schema 1.
    let from = found.unwrap_or(1);
    for step in steps().iter().filter(|step| step.to > from) {
        tracing::info!(from, to = step.to, "the state of an older version is taken over");
        (step.files)(state_dir).map_err(failed("take over the state in", state_dir))?;
    }
    // Before any record has the new number. Not a record itself: people look into it when a version refuses the directory.
    let text = format!("schema {current}\nwharf {}\n", env!("CARGO_PKG_VERSION"));
    write_file(&path, text.as_bytes(), 0o600)?;
    let file = fs::File::open(&path).map_err(failed("open", &path))?;
    file.sync_all().map_err(failed("sync", &path))
}

/// What the file says; `None` when it is not there, or says nothing after a power loss: the records have their own numbers.
fn written(path: &Path) -> Result<Option<u32>> {
    let text = match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let number = text.lines().next().and_then(|line| line.strip_prefix("schema "));
    let number = number.and_then(|number| number.trim().parse().ok());
    if number.is_none() {
        tracing::warn!(path = %path.display(), "the file does not say a schema and is written anew");
    }
    Ok(number)
}

/// The schema that `state_dir/schema` says; `None` if it says none. For who checks the state.
///
/// # Errors
/// When the file is there and can't be read.
pub fn schema_on_disk(state_dir: &Path) -> Result<Option<u32>> {
    written(&state_dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schema 2 says stop signals by number, schema 3 pods by whom they are.
    const TEST_STEPS: &[Step] = &[
        Step {
            container: |container| container.stop_signal = container.stop_signal.replace("SIGTERM", "15"),
            ..Step::to(2)
        },
        Step {
            container: |container| container.stop_signal.push('!'),
            ..Step::to(3)
        },
    ];

    fn container(schema: u32) -> Vec<u8> {
        record::Container {
            schema,
            stop_signal: "SIGTERM".into(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    fn read(bytes: &[u8], current: u32) -> Result<record::Container> {
        decode(Path::new("/state/record"), bytes, TEST_STEPS, current)
    }

    #[test]
    fn a_record_takes_the_steps_that_are_ahead_of_it() {
        for (schema, signal) in [(1, "15!"), (2, "SIGTERM!"), (3, "SIGTERM")] {
            let record = read(&container(schema), 3).unwrap();
            assert_eq!(
                (record.schema, record.stop_signal.as_str()),
                (3, signal),
                "from {schema}"
            );
        }
    }

    #[test]
    fn a_newer_record_is_refused_with_its_name_and_both_versions_whatever_else_it_holds() {
        // Field 2, here a text, is a number in the newer version.
        let newer = [0x08, 4, 0x10, 7];
        let error = read(&newer, 3).unwrap_err().to_string();
        for part in ["/state/record", "schema 4", "3"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(matches!(read(&container(0), 3), Err(Error::Unversioned { .. })));
    }

    #[test]
    fn the_steps_lead_to_the_schema_without_a_gap() {
        let numbers = STEPS.iter().map(|step| step.to);
        assert!(numbers.eq((2..).take(SCHEMA as usize - 1)));
    }

    #[test]
    fn a_directory_is_marked_and_that_of_a_newer_version_is_left_alone() {
        let dir = std::env::temp_dir().join(format!("wharf-schema-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for text in [None, Some(""), Some("schema 1\n")] {
            match text {
                Some(text) => fs::write(dir.join(FILE), text).unwrap(),
                None => drop(fs::remove_file(dir.join(FILE))),
            }
            take_over(&dir).unwrap();
            assert_eq!(schema_on_disk(&dir).unwrap(), Some(SCHEMA), "{text:?}");
        }
        fs::write(dir.join(FILE), "schema 99\nwharf 9.9.9\n").unwrap();
        let error = take_over(&dir).unwrap_err().to_string();
        assert!(error.contains("99") && error.contains(dir.to_str().unwrap()), "{error}");
        assert_eq!(fs::read(dir.join(FILE)).unwrap(), b"schema 99\nwharf 9.9.9\n");
        fs::remove_dir_all(&dir).unwrap();
    }
}
