//! CNI network configurations: finding the one that counts and taking it apart.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::netns::{Error, Result};

/// The versions of the protocol that are spoken, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::netns) struct NetworkList {
    pub(super) name: String,
    /// The version that is spoken.
    pub(super) version: String,
    /// All versions that the configuration offers and that are known, oldest first.
    pub(super) offered: Vec<String>,
    pub(super) plugins: Vec<Plugin>,
    /// CHECK is not to be called.
    pub(super) disable_check: bool,
    /// GC is not to be called.
    pub(super) disable_gc: bool,
    /// The list as a list with all its plugins, whatever the files were; it goes to the pod's record.
    pub(super) text: String,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plugin {
    pub(super) kind: String,
    /// As configured, with the list's name and version.
    pub(super) config: Map<String, Value>,
}

impl Plugin {
    /// True if the plugin is configured to be told of `capability`.
    pub(super) fn wants(&self, capability: &str) -> bool {
        self.config.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

impl NetworkList {
    /// The first `most` configurations in `dir` by their files' names, each of a network of its own; 0 is all. Files that
    /// can't be used are skipped; if no other is there, the first one's error is returned.
    ///
    /// # Errors
    /// When the directory can't be read for another reason than not being there, or see above.
    pub(super) fn first_in(dir: &Path, most: usize) -> Result<Vec<Self>> {
        let mut first_error = None;
        let mut lists: Vec<Self> = Vec::new();
        for path in files(dir, &EXTENSIONS)? {
            match Self::read(&path) {
                // libcni names its files after the network: the second of a name would overwrite the first one's.
                Ok(list) if lists.iter().any(|other| other.name == list.name) => {}
                Ok(list) => lists.push(list),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
            if most > 0 && lists.len() == most {
                break;
            }
        }
        match first_error {
            Some(error) if lists.is_empty() => Err(error),
            _ => Ok(lists),
        }
    }

    /// Reads a file, and the files of the directory beside it that is named after the network, unless the list says that
    /// all its plugins are in it (`loadOnlyInlinedPlugins`).
    ///
    /// # Errors
    /// When a file can't be read or is no such configuration.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let read =
            |path: &Path| fs::read_to_string(path).map_err(|source| Error::io("read CNI configuration", path, source));
        let origin = path.display().to_string();
        let mut list = object(&origin, &read(path)?)?;
        if list.contains_key("plugins")
            && !flag(&list, "loadOnlyInlinedPlugins").map_err(|reason| wrong(&origin, reason))?
        {
            let name = network_name(&list).map_err(|reason| wrong(&origin, reason))?;
            for file in files(&path.with_file_name(name), &["conf"])? {
                let plugin = object(&file.display().to_string(), &read(&file)?)?;
                if let Some(Value::Array(plugins)) = list.get_mut("plugins") {
                    plugins.push(Value::Object(plugin));
                }
            }
        }
        Self::from_object(&origin, list)
    }

    /// Reads a list, or a single plugin's configuration as a list of one. `origin` is named in errors.
    ///
    /// # Errors
    /// When `text` is not such a configuration or is of a version that is not spoken.
    pub(super) fn parse(origin: &str, text: &str) -> Result<Self> {
        Self::from_object(origin, object(origin, text)?)
    }

    fn from_object(origin: &str, mut list: Map<String, Value>) -> Result<Self> {
        let wrong = |reason: String| wrong(origin, reason);
        if !list.contains_key("plugins") {
            let mut outer = Map::new();
            for key in ["cniVersion", "name"] {
                outer.extend(list.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            outer.insert(
                "plugins".into(),
                Value::Array(vec![Value::Object(std::mem::take(&mut list))]),
            );
            list = outer;
        }
        let name = network_name(&list).map_err(wrong)?;
        let offered = offered(&list).map_err(wrong)?;
        let version = offered.last().cloned().unwrap_or_default();
        let mut plugins = Vec::new();
        let entries = list.get("plugins").and_then(Value::as_array);
        for (place, plugin) in entries.into_iter().flatten().enumerate() {
            let config = plugin
                .as_object()
                .cloned()
                .ok_or_else(|| wrong(format!("plugin {place} is no object")))?;
            let kind = text_of(&config, "type").ok_or_else(|| wrong(format!("plugin {place} has no type")))?;
            if kind.contains('/') || kind == ".." || kind == "." {
                return Err(wrong(format!("{kind:?} is no type of a plugin")));
            }
            plugins.push(Plugin { kind, config });
        }
        if plugins.is_empty() {
            return Err(wrong("has no plugins".into()));
        }
        let disable_check = flag(&list, "disableCheck").map_err(wrong)?;
        let disable_gc = flag(&list, "disableGC").map_err(wrong)?;
        let mut list = Self {
            version: String::new(),
            name,
            offered,
            plugins,
            disable_check,
            disable_gc,
            text: Value::Object(list).to_string(),
        };
        list.speak(&version);
        Ok(list)
    }

    /// Chooses the version that its plugins are spoken to in; one of those that it offers.
    pub(super) fn speak(&mut self, version: &str) {
        self.version = version.to_owned();
        // Whoever reads the record later must not choose again.
        if self.offered.last().is_some_and(|newest| newest != version)
            && let Ok(mut list) = serde_json::from_str::<Map<String, Value>>(&self.text)
        {
            list.remove("cniVersions");
            list.insert("cniVersion".into(), version.into());
            self.text = Value::Object(list).to_string();
        }
        for plugin in &mut self.plugins {
            plugin.config.insert("name".into(), self.name.clone().into());
            plugin.config.insert("cniVersion".into(), version.into());
        }
    }

    /// True if the version that is spoken is `version` or newer.
    pub(super) fn speaks(&self, version: &str) -> bool {
        place(&self.version) >= place(version)
    }

    /// True if none of its plugins makes host ports.
    pub(super) fn lacks_host_ports(&self) -> bool {
        !self.plugins.iter().any(|plugin| plugin.wants("portMappings"))
    }
}

/// Whether `version` of the protocol is spoken here.
pub(super) fn is_known(version: &str) -> bool {
    place(version).is_some()
}

/// The place of a version in the order of versions; none if it is not known.
fn place(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

/// Regular files of `dir` with one of the extensions, by name; none if there is no such directory.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::io("list CNI configurations in", dir, source)),
    };
    let wanted = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| extensions.contains(&extension)) && !path.is_dir()
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(wanted).collect();
    paths.sort();
    Ok(paths)
}

fn wrong(origin: &str, reason: String) -> Error {
    Error::CniConfig {
        origin: origin.to_owned(),
        reason,
    }
}

fn object(origin: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|error| wrong(origin, error.to_string()))
}

/// The network's name, which becomes part of files' names.
fn network_name(list: &Map<String, Value>) -> std::result::Result<String, String> {
    let name = text_of(list, "name").ok_or("has no name")?;
    let sane = name.chars().next().is_some_and(char::is_alphanumeric)
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    match sane {
        true => Ok(name),
        false => Err(format!("{name:?} is no name of a network")),
    }
}

/// A switch: a boolean, or, as libcni allows, a text that says one.
fn flag(list: &Map<String, Value>, key: &str) -> std::result::Result<bool, String> {
    match list.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} is {other}, not true or false")),
    }
}

/// The versions of `cniVersions` and `cniVersion` that are known, oldest first. Not empty.
fn offered(list: &Map<String, Value>) -> std::result::Result<Vec<String>, String> {
    let mut offered: Vec<String> = list
        .get("cniVersions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|version| version.as_str().map(str::to_owned))
        .collect();
    offered.extend(text_of(list, "cniVersion"));
    let known = |version: &&str| offered.iter().any(|offered| offered == *version);
    let common: Vec<String> = VERSIONS.iter().copied().filter(known).map(str::to_owned).collect();
    match common.is_empty() {
        false => Ok(common),
        true => Err(format!(
            "is of version {offered:?}, of which none is known; {} to 1.1.0 are",
            VERSIONS[0]
        )),
    }
}

fn text_of(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key)?
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_plugin_becomes_a_list_of_one() {
        let list = NetworkList::parse("f", r#"{"cniVersion":"0.4.0","name":"n","type":"bridge","mtu":9}"#).unwrap();
        assert_eq!(
            (list.plugins.len(), list.plugins[0].kind.as_str(), list.version.as_str()),
            (1, "bridge", "0.4.0")
        );
        assert_eq!(NetworkList::parse("record", &list.text).unwrap(), list);
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["0.3.1","1.1.0","9.0.0"],"name":"n","plugins":[{"type":"x","capabilities":{"dns":true,"ips":false}}]}"#;
        let mut list = NetworkList::parse("f", text).unwrap();
        assert_eq!(
            (list.version.as_str(), list.offered.len(), list.speaks("1.1.0")),
            ("1.1.0", 3, true)
        );
        assert_eq!(list.plugins[0].config["cniVersion"], "1.1.0");
        list.speak("0.4.0");
        assert_eq!(
            (&list.plugins[0].config["cniVersion"], list.speaks("1.0.0")),
            (&"0.4.0".into(), false)
        );
        assert!(
            list.plugins[0].wants("dns") && !list.plugins[0].wants("ips") && !list.plugins[0].wants("portMappings")
        );
    }

    #[test]
    fn what_can_not_be_used_is_named() {
        for (text, word) in [
            ("{", "EOF"),
            ("[]", "map"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#, "no name"),
            (
                r#"{"cniVersion":"1.0.0","name":"../n","plugins":[{"type":"x"}]}"#,
                "../n",
            ),
            (r#"{"cniVersion":"0.1.0","name":"n","plugins":[{"type":"x"}]}"#, "0.1.0"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "no plugins"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../x"}]}"#,
                "../x",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "no type"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableGC":"perhaps","plugins":[{"type":"x"}]}"#,
                "disableGC",
            ),
        ] {
            let error = NetworkList::parse("/etc/f", text).unwrap_err().to_string();
            assert!(error.contains("/etc/f") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn plugins_beside_a_list_belong_to_it_unless_it_says_that_it_is_whole() {
        let dir = std::env::temp_dir().join(format!("wharf-cni-{}", std::process::id()));
        fs::create_dir_all(dir.join("n")).unwrap();
        fs::write(dir.join("n/20-b.conf"), r#"{"type":"b"}"#).unwrap();
        fs::write(dir.join("n/10-a.conf"), r#"{"type":"a"}"#).unwrap();
        fs::write(dir.join("n/15-no.json"), "{").unwrap();
        let kinds = |text: &str| {
            fs::write(dir.join("1.conflist"), text).unwrap();
            let list = NetworkList::first_in(&dir, 1).unwrap().remove(0);
            assert_eq!(NetworkList::parse("record", &list.text).unwrap(), list);
            list.plugins
                .iter()
                .map(|plugin| plugin.kind.clone())
                .collect::<Vec<_>>()
        };
        let list = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"n",{more}"plugins":[{{"type":"x"}}]}}"#);
        assert_eq!(kinds(&list("")), ["x", "a", "b"]);
        assert_eq!(kinds(&list(r#""loadOnlyInlinedPlugins":true,"#)), ["x"]);
        assert_eq!(kinds(r#"{"cniVersion":"1.1.0","name":"n","plugins":[]}"#), ["a", "b"]);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn several_networks_are_taken_in_the_order_of_their_files_each_once() {
        let dir = std::env::temp_dir().join(format!("wharf-cni-several-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        for (file, name) in [("1.conf", "a"), ("2.conf", "b"), ("3.conf", "a"), ("4.conf", "c")] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#);
            fs::write(dir.join(file), text).unwrap();
        }
        fs::write(dir.join("0.conf"), "{").unwrap();
        for (most, names) in [(1, "a"), (2, "a b"), (0, "a b c")] {
            let lists = NetworkList::first_in(&dir, most).unwrap();
            let seen: Vec<_> = lists.iter().map(|list| list.name.as_str()).collect();
            assert_eq!(seen.join(" "), names);
        }
        fs::remove_dir_all(dir).unwrap();
    }
}
