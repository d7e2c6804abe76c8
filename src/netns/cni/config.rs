//! CNI network configurations: finding the one that counts and taking it apart.

use std::path::Path;

use serde_json::{Map, Value};

use crate::netns::{Error, Result};

/// The versions of the protocol that are spoken, oldest first.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

/// A network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct NetworkList {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) plugins: Vec<Plugin>,
    /// The list as a list, whatever the file was; it goes to the pod's record.
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
    /// The first configuration in `dir` by name, if there is any. Files that can't be used are skipped; if no other is
    /// there, the first one's error is returned.
    ///
    /// # Errors
    /// When the directory can't be read for another reason than not being there, or see above.
    pub(super) fn first_in(dir: &Path) -> Result<Option<Self>> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("list CNI configurations in", dir, source)),
        };
        let mut paths: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .and_then(|e| e.to_str())
                    .is_some_and(|e| EXTENSIONS.contains(&e))
            })
            .collect();
        paths.sort();
        let mut first_error = None;
        for path in paths {
            let read = std::fs::read_to_string(&path)
                .map_err(|source| Error::io("read CNI configuration", &path, source))
                .and_then(|text| Self::parse(&path.display().to_string(), &text));
            match read {
                Ok(list) => return Ok(Some(list)),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    /// Reads a list, or a single plugin's configuration as a list of one. `origin` is named in errors.
    ///
    /// # Errors
    /// When `text` is not such a configuration or is of a version that is not spoken.
    pub(super) fn parse(origin: &str, text: &str) -> Result<Self> {
        let wrong = |reason: String| Error::CniConfig {
            origin: origin.to_owned(),
            reason,
        };
        let mut list: Map<String, Value> = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
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
        let name = text_of(&list, "name").ok_or_else(|| wrong("has no name".into()))?;
        let sane = name.chars().next().is_some_and(char::is_alphanumeric)
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !sane {
            return Err(wrong(format!("{name:?} is no name of a network")));
        }
        let version = version(&list).map_err(wrong)?;
        let mut plugins = Vec::new();
        for (place, plugin) in list
            .get("plugins")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .enumerate()
        {
            let mut config = plugin
                .as_object()
                .cloned()
                .ok_or_else(|| wrong(format!("plugin {place} is no object")))?;
            let kind = text_of(&config, "type").ok_or_else(|| wrong(format!("plugin {place} has no type")))?;
            if kind.contains('/') || kind == ".." || kind == "." {
                return Err(wrong(format!("{kind:?} is no type of a plugin")));
            }
            config.insert("name".into(), name.clone().into());
            config.insert("cniVersion".into(), version.clone().into());
            plugins.push(Plugin { kind, config });
        }
        if plugins.is_empty() {
            return Err(wrong("has no plugins".into()));
        }
        let text = Value::Object(list).to_string();
        Ok(Self {
            name,
            version,
            plugins,
            text,
        })
    }

    /// True if plugins of this version are told on DEL what ADD had answered.
    pub(super) fn tells_result_on_del(&self) -> bool {
        !matches!(self.version.as_str(), "0.3.0" | "0.3.1")
    }
}

/// The version to speak: the newest that both sides know, of `cniVersions` if given, else `cniVersion`.
fn version(list: &Map<String, Value>) -> std::result::Result<String, String> {
    let mut offered: Vec<String> = list
        .get("cniVersions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|version| version.as_str().map(str::to_owned))
        .collect();
    offered.extend(text_of(list, "cniVersion"));
    VERSIONS
        .iter()
        .rev()
        .find(|known| offered.iter().any(|version| version == *known))
        .map(|known| (*known).to_owned())
        .ok_or_else(|| {
            format!(
                "is of version {offered:?}, of which none is known; {} to 1.1.0 are",
                VERSIONS[0]
            )
        })
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
        let list = NetworkList::parse("f", text).unwrap();
        assert_eq!(list.version, "1.1.0");
        assert_eq!(list.plugins[0].config["cniVersion"], "1.1.0");
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
        ] {
            let error = NetworkList::parse("/etc/f", text).unwrap_err().to_string();
            assert!(error.contains("/etc/f") && error.contains(word), "{error}");
        }
    }
}
