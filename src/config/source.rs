//! The files a configuration comes from: reading, merging, and finding the line of a key.

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::Deserialize as _;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::validate::Fault;
use super::{Config, Error, Result};

/// The files in the order in which they apply.
#[derive(Default)]
pub struct Layers(Vec<Layer>);

struct Layer {
    path: PathBuf,
    text: String,
    table: Table,
}

impl Layers {
    /// Reads `file`, then every `*.toml` of the directory `<file>.d` in the order of their names.
    pub fn read(file: &Path, must_exist: bool) -> Result<Self> {
        let mut layers = Self::default();
        match fs::read_to_string(file) {
            Ok(text) => layers.push(file.to_owned(), text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => {}
            Err(source) => {
                return Err(Error::Read {
                    path: file.to_owned(),
                    source,
                });
            }
        }
        for path in drop_ins(file)? {
            let text = fs::read_to_string(&path).map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
            layers.push(path, text)?;
        }
        Ok(layers)
    }

    /// Adds a file's text after checking it on its own, so that a mistake is reported with its line.
    pub fn push(&mut self, path: PathBuf, text: String) -> Result<()> {
        let fail = |error: &toml::de::Error| explain(&path, &text, error);
        let table = toml::from_str::<Table>(&text).map_err(|e| fail(&e))?;
        toml::from_str::<Config>(&text).map_err(|e| fail(&e))?;
        self.0.push(Layer { path, text, table });
        Ok(())
    }

    /// The settings of all files, the last word winning for each key.
    pub fn merged(&self) -> Result<Config> {
        let mut merged = Table::new();
        for layer in &self.0 {
            overlay(&mut merged, layer.table.clone());
        }
        Config::deserialize(Value::Table(merged)).map_err(|error| Error::Value(error.message().to_owned()))
    }

    /// The error for a value that is out of range, with the file and line that set it.
    pub fn locate(&self, fault: &Fault) -> Error {
        let message = format!("{}: {}", fault.key.join("."), fault.message);
        for layer in self.0.iter().rev() {
            let Ok(root) = DeTable::parse(&layer.text) else {
                continue;
            };
            if let Some(offset) = offset_of(root.get_ref(), &fault.key) {
                let line = line_of(&layer.text, offset);
                return Error::At {
                    path: layer.path.clone(),
                    line,
                    message,
                };
            }
        }
        Error::Value(message)
    }
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>> {
    let mut name = file.as_os_str().to_owned();
    name.push(".d");
    let dir = PathBuf::from(name);
    let fail = |source| Error::Read {
        path: dir.clone(),
        source,
    };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(fail(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn overlay(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => overlay(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Says what is wrong in the words of a person who knows the file, not of the parser.
fn explain(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let offset = error.span().map_or(0, |span| span.start);
    let raw = error.message().trim().replace('\n', ", ");
    let message = if let Some((unknown, known)) = unknown_field(&raw) {
        let hint = nearest(&unknown, &known).map_or_else(
            || format!("known here are {}", known.join(", ")),
            |near| format!("did you mean \"{near}\"?"),
        );
        format!("unknown key \"{unknown}\", {hint}")
    } else {
        let root = DeTable::parse(text).ok();
        match root.and_then(|root| key_at(root.get_ref(), offset)) {
            Some(key) => format!("{key}: {raw}"),
            None => raw,
        }
    };
    Error::At {
        path: path.to_owned(),
        line: line_of(text, offset),
        message,
    }
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let mut quoted = rest.split('`').step_by(2).map(str::to_owned);
    let unknown = quoted.next()?;
    Some((unknown, quoted.filter(|name| !name.is_empty()).collect()))
}

fn nearest<'a>(word: &str, known: &'a [String]) -> Option<&'a str> {
    let best = known.iter().min_by_key(|name| distance(word, name))?;
    (distance(word, best) <= 1 + word.len() / 3).then_some(best)
}

/// Insertions, deletions and substitutions between two words; a swap of neighbours counts one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut cost = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                cost = cost.min(rows[i - 2][j - 2] + 1);
            }
            row.push(cost);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

fn offset_of(table: &DeTable<'_>, key: &[String]) -> Option<usize> {
    let (first, rest) = key.split_first()?;
    let (name, value) = table.iter().find(|(name, _)| name.get_ref() == first.as_str())?;
    match (rest.is_empty(), value.get_ref()) {
        (false, DeValue::Table(inner)) => offset_of(inner, rest).or(Some(name.span().start)),
        _ => Some(name.span().start),
    }
}

/// The dotted key whose value covers `offset`.
fn key_at(table: &DeTable<'_>, offset: usize) -> Option<String> {
    let covers = |name: &Spanned<_>, value: &Spanned<DeValue<'_>>| {
        let (name, value): (&Spanned<toml::de::DeString<'_>>, _) = (name, value.span());
        name.span().contains(&offset) || value.contains(&offset)
    };
    for (name, value) in table {
        if let DeValue::Table(inner) = value.get_ref()
            && let Some(key) = key_at(inner, offset)
        {
            return Some(format!("{}.{key}", name.get_ref()));
        }
        if covers(name, value) {
            return Some(name.get_ref().to_string());
        }
    }
    None
}
