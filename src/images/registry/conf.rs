//! `registries.conf`, version 2, as CRI-O, podman and skopeo read it: mirrors, rewritten names, blocked registries and
//! short names.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

/// The file and its drop-ins, merged.
#[derive(Debug, Clone, Default)]
pub(in crate::images) struct Conf {
    registries: Vec<Registry>,
    aliases: BTreeMap<String, String>,
    /// Registries that are tried for names without one.
    search: Vec<String>,
    enforcing: bool,
}

/// One `[[registry]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    #[serde(default)]
    credential_helpers: Vec<String>,
    /// Version 1's table.
    registries: Option<serde::de::IgnoredAny>,
}

/// A place that may have a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// `host[:port]/path/of/repository`.
    pub name: String,
    pub insecure: bool,
    pub mirror: bool,
    /// Asked for references by digest, and by tag.
    pub digests: bool,
    pub tags: bool,
}

impl Conf {
    /// Reads `file` and `<file>.d/*.conf`; absent is empty. Blocking.
    ///
    /// # Errors
    /// A sentence about a file that can't be used.
    pub fn read(file: &Path) -> Result<Self, String> {
        let mut conf = Self {
            enforcing: true,
            ..Self::default()
        };
        conf.merge(file)?;
        let mut directory = file.as_os_str().to_owned();
        directory.push(".d");
        if let Ok(listed) = fs::read_dir(&directory) {
            let mut files: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
            files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
            files.sort();
            for file in files {
                conf.merge(&file)?;
            }
        }
        Ok(conf)
    }

    fn merge(&mut self, path: &Path) -> Result<(), String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("read {}: {error}", path.display())),
        };
        self.add(&text)
            .map_err(|reason| format!("{}: {reason}", path.display()))
    }

    /// A later file's entries replace those before.
    pub(super) fn add(&mut self, text: &str) -> Result<(), String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.registries.is_some() {
            return Err("[registries.*] is version 1 of this file, which is not supported".into());
        }
        // The name of a file, not of a program, where none is set.
        if let Some(helper) = file
            .credential_helpers
            .iter()
            .find(|name| *name != "containers-auth.json")
        {
            tracing::warn!(
                helper,
                "registries.conf: the daemon asks no credential helpers; credentials come with each pull, of kubelet or of `wharf login`"
            );
        }
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix.clone_from(&registry.location);
            }
            if registry.prefix.is_empty() {
                return Err("a [[registry]] has neither prefix nor location".into());
            }
            let places = [&registry.prefix, &registry.location].into_iter();
            let mirrors = registry.mirror.iter().map(|mirror| &mirror.location);
            if let Some(place) = places.chain(mirrors).find(|place| place.contains("://")) {
                return Err(format!(
                    "{place:?} must not have a scheme; \"insecure\" is for plain HTTP"
                ));
            }
            for mirror in &registry.mirror {
                if registry.mirror_by_digest_only && !mirror.pull_from_mirror.is_empty() {
                    return Err(format!(
                        "[[registry]] {:?} has mirror-by-digest-only, and its mirror {:?} pull-from-mirror: only one can be",
                        registry.prefix, mirror.location
                    ));
                }
                if !matches!(
                    mirror.pull_from_mirror.as_str(),
                    "" | "all" | "digest-only" | "tag-only"
                ) {
                    return Err(format!("pull-from-mirror {:?} is not known", mirror.pull_from_mirror));
                }
            }
            self.registries.retain(|other| other.prefix != registry.prefix);
            self.registries.push(registry);
        }
        for (alias, target) in file.aliases {
            if target.is_empty() {
                // Takes an alias back.
                self.aliases.remove(&alias);
            } else {
                self.aliases.insert(alias, target);
            }
        }
        if let Some(search) = file.unqualified_search_registries {
            self.search = search;
        }
        match file.short_name_mode.as_deref() {
            None => {}
            Some("enforcing") => self.enforcing = true,
            Some("permissive" | "disabled") => self.enforcing = false,
            Some(other) => return Err(format!("short-name-mode {other:?} is not known")),
        }
        Ok(())
    }

    /// The full names that `text`, a reference, may stand for, the first that exists being meant; `None` if it has a
    /// registry or nothing is said about it.
    ///
    /// # Errors
    /// A sentence, when the name is ambiguous and must not be.
    pub fn expand(&self, text: &str) -> Result<Option<Vec<String>>, String> {
        let end = text.find(['@', ':']).unwrap_or(text.len());
        let name = &text[..end];
        if let Some((first, _)) = text.split_once('/')
            && (first.contains(['.', ':']) || first == "localhost")
        {
            return Ok(None);
        }
        if let Some(target) = self.aliases.get(name) {
            return Ok(Some(vec![format!("{target}{}", &text[end..])]));
        }
        match self.search.as_slice() {
            [] => Ok(None),
            all @ [_, _, ..] if self.enforcing => Err(format!(
                "the short name {name:?} could be in any of {}; short-name-mode is \"enforcing\", so give the full name",
                all.join(", ")
            )),
            all => Ok(Some(all.iter().map(|registry| format!("{registry}/{text}")).collect())),
        }
    }

    /// Where the repository `name` (with its registry) is to be asked for; `None` if nothing is said about it.
    ///
    /// # Errors
    /// A sentence, when it is blocked.
    pub(super) fn places(&self, name: &str) -> Result<Option<Vec<Place>>, String> {
        let found = self
            .registries
            .iter()
            .filter_map(|registry| matched(&registry.prefix, name).map(|length| (length, registry)))
            .max_by_key(|(length, registry)| (!registry.prefix.starts_with("*."), *length));
        let Some((length, registry)) = found else {
            return Ok(None);
        };
        if registry.blocked {
            return Err(format!("registries.conf blocks {:?}", registry.prefix));
        }
        let at = |location: &str| {
            if location.is_empty() {
                name.to_owned()
            } else {
                format!("{}{}", location.trim_end_matches('/'), &name[length..])
            }
        };
        let mut places: Vec<Place> = registry
            .mirror
            .iter()
            .map(|mirror| Place {
                name: at(&mirror.location),
                insecure: mirror.insecure,
                mirror: true,
                digests: mirror.pull_from_mirror != "tag-only",
                tags: mirror.pull_from_mirror != "digest-only" && !registry.mirror_by_digest_only,
            })
            .collect();
        places.push(Place {
            name: at(&registry.location),
            insecure: registry.insecure,
            mirror: false,
            digests: true,
            tags: true,
        });
        Ok(Some(places))
    }
}

/// How many bytes of `name` the prefix covers, if it fits.
fn matched(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let end = name.find('/').unwrap_or(name.len());
        let host = name[..end].split(':').next().unwrap_or_default();
        return (domain.starts_with('.') && host.ends_with(domain)).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(prefix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(texts: &[&str]) -> Conf {
        let mut conf = Conf {
            enforcing: true,
            ..Conf::default()
        };
        for text in texts {
            conf.add(text).unwrap();
        }
        conf
    }

    fn names(conf: &Conf, name: &str) -> Vec<String> {
        let places = conf.places(name).unwrap().unwrap_or_default();
        places.into_iter().map(|place| place.name).collect()
    }

    #[test]
    fn the_longest_prefix_rewrites_the_name() {
        let conf = conf(&[r#"
            [[registry]]
            prefix = "a.example"
            location = "b.example/cache"
            [[registry]]
            prefix = "a.example/team"
            location = "c.example"
            insecure = true
            [[registry.mirror]]
            location = "m.example:80/x"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "n.example"
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "a.example/pinned"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m.example"
            [[registry]]
            location = "evil.example"
            blocked = true
            [[registry]]
            prefix = "*.wild.example"
            [[registry]]
            prefix = "*.moved.example"
            location = "new.example/old"
        "#]);
        assert_eq!(names(&conf, "a.example/x/y"), ["b.example/cache/x/y"]);
        assert_eq!(
            names(&conf, "a.example/team/app"),
            ["m.example:80/x/app", "n.example/app", "c.example/app"]
        );
        let places = conf.places("a.example/team/app").unwrap().unwrap();
        assert!(places[0].insecure && places[0].mirror && places[0].digests && !places[0].tags);
        assert!(!places[1].digests && places[1].tags);
        assert!(places[2].insecure && !places[2].mirror && places[2].tags);
        let places = conf.places("a.example/pinned").unwrap().unwrap();
        assert!(places[0].digests && !places[0].tags && places[1].tags);
        // A prefix ends at a boundary.
        assert_eq!(names(&conf, "a.example/teamwork/app"), ["b.example/cache/teamwork/app"]);
        assert!(conf.places("a.example.org/x").unwrap().is_none());
        assert!(conf.places("evil.example/x").unwrap_err().contains("blocks"));
        assert_eq!(names(&conf, "sub.wild.example/x"), ["sub.wild.example/x"]);
        assert!(conf.places("wild.example/x").unwrap().is_none());
        assert_eq!(names(&conf, "a.b.moved.example/x/y"), ["new.example/old/x/y"]);
    }

    #[test]
    fn short_names_are_aliases_first_and_then_searched() {
        let mut conf = conf(&[
            "unqualified-search-registries = [\"one.example\"]\n[aliases]\n\"app\" = \"q.example/team/app\"",
            "[aliases]\n\"x/y\" = \"q.example/xy\"",
        ]);
        let expand = |conf: &Conf, text: &str| conf.expand(text).unwrap().unwrap_or_default();
        assert_eq!(expand(&conf, "app:v1"), ["q.example/team/app:v1"]);
        assert_eq!(expand(&conf, "x/y"), ["q.example/xy"]);
        assert_eq!(expand(&conf, "other"), ["one.example/other"]);
        assert!(expand(&conf, "localhost/app").is_empty() && expand(&conf, "h:1/app").is_empty());
        conf.add("unqualified-search-registries = [\"one\", \"two\"]").unwrap();
        assert!(conf.expand("other").unwrap_err().contains("one, two"));
        conf.add("short-name-mode = \"permissive\"").unwrap();
        assert_eq!(expand(&conf, "other@d"), ["one/other@d", "two/other@d"]);
        assert!(self::conf(&[]).expand("busybox").unwrap().is_none());
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let mut conf = Conf::default();
        for (text, reason) in [
            ("[registries.search]\nregistries = []", "version 1"),
            ("[[registry]]\ninsecure = true", "neither prefix nor location"),
            ("short-name-mode = \"x\"", "not known"),
            ("[[registry]]\nlocation = \"https://a.example\"", "scheme"),
            (
                "[[registry]]\nlocation = \"a\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"b\"\n\
                 pull-from-mirror = \"all\"",
                "only one",
            ),
            (
                "[[registry]]\nlocation = \"a\"\n[[registry.mirror]]\nlocation = \"b\"\npull-from-mirror = \"x\"",
                "not known",
            ),
        ] {
            let error = conf.add(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
