//! OCI hooks that the node's administrator has laid down in directories, as CRI-O and Podman read them: JSON files, each
//! with a hook, when it is to run, and at which stages (oci-hooks(5), version 1.0.0, and 0.1.0, which older packages bring).
//!
//! Files are read for each container, so that a change counts at once. Of two files of one name that in the later
//! directory counts; hooks run in the order of the files' names. A file that can't be understood refuses the container:
//! a hook may be there for the node's safety.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Hook, Hooks, Spec};
use regex::Regex;
use serde::Deserialize;

/// No sane hook is longer, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Of the form of files that is known in full.
const VERSION: &str = "1.0.0";

/// Why hooks can't be taken from a directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory or file can't be read.
    #[error("read OCI hooks in {path}: {source}")]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file makes no sense.
    #[error("OCI hook {path}: {reason}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// What hooks ask about a container.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    /// Of the pod, the container and the spec.
    pub annotations: HashMap<&'a str, &'a str>,
    /// The first argument of its process.
    pub command: &'a str,
    /// It has mounts of its own.
    pub has_bind_mounts: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: String,
    hook: HookFile,
    #[serde(default)]
    when: When,
    stages: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HookFile {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct When {
    always: Option<bool>,
    /// Regular expressions, of which each must match a name and its value.
    annotations: BTreeMap<String, String>,
    /// Regular expressions, of which one must match.
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
    /// Regular expressions for values of annotations, whatever their name; of version 0.1.0.
    #[serde(skip)]
    values: Vec<String>,
    /// One of all conditions is enough, as in version 0.1.0.
    #[serde(skip)]
    one_is_enough: bool,
}

impl When {
    /// Whether all that is said holds, or one of it; nothing said is never.
    fn matches(&self, subject: &Subject) -> Result<bool, String> {
        let mut said = Vec::new();
        said.extend(self.always);
        said.extend(self.has_bind_mounts.map(|wanted| wanted && subject.has_bind_mounts));
        for (name, value) in &self.annotations {
            let (name, value) = (pattern(name)?, pattern(value)?);
            let mut annotations = subject.annotations.iter();
            said.push(annotations.any(|(key, text)| name.is_match(key) && value.is_match(text)));
        }
        for value in &self.values {
            let value = pattern(value)?;
            said.push(subject.annotations.values().any(|text| value.is_match(text)));
        }
        if !self.commands.is_empty() {
            let mut one = false;
            for command in &self.commands {
                one |= pattern(command)?.is_match(subject.command);
            }
            said.push(one);
        }
        Ok(match self.one_is_enough {
            true => said.contains(&true),
            false => !said.is_empty() && !said.contains(&false),
        })
    }
}

/// A file of version 0.1.0, or without a version. Its names may be in the singular.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldFile {
    #[serde(default, rename = "version")]
    _version: String,
    hook: PathBuf,
    #[serde(default)]
    arguments: Vec<String>,
    #[serde(default, alias = "stage")]
    stages: Vec<String>,
    #[serde(default, alias = "cmd")]
    cmds: Vec<String>,
    #[serde(default, alias = "annotation")]
    annotations: Vec<String>,
    hasbindmounts: Option<bool>,
}

impl From<OldFile> for File {
    fn from(old: OldFile) -> File {
        let name = old.hook.display().to_string();
        let args = match old.arguments.is_empty() {
            true => Vec::new(),
            false => std::iter::once(name).chain(old.arguments).collect(),
        };
        File {
            version: VERSION.to_owned(),
            hook: HookFile {
                path: old.hook,
                args,
                env: Vec::new(),
                timeout: None,
            },
            when: When {
                commands: old.cmds,
                has_bind_mounts: old.hasbindmounts,
                values: old.annotations,
                one_is_enough: true,
                ..When::default()
            },
            stages: old.stages,
        }
    }
}

fn pattern(text: &str) -> Result<Regex, String> {
    Regex::new(text).map_err(|_| format!("{text:?} is no regular expression"))
}

/// Adds to `spec` what the hooks in `directories` want of it. A directory that is not there is empty. Blocking.
///
/// # Errors
/// The first file that can't be read or understood.
pub fn add(directories: &[PathBuf], subject: &Subject, spec: &mut Spec) -> Result<(), Error> {
    let mut files: BTreeMap<_, PathBuf> = BTreeMap::new();
    for directory in directories {
        for path in list(directory)? {
            if let Some(name) = path.file_name() {
                files.insert(name.to_owned(), path);
            }
        }
    }
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let mut added = false;
    for path in files.into_values() {
        let bad = |reason| Error::Bad {
            path: path.clone(),
            reason,
        };
        let file = read(&path)?;
        if file.when.matches(subject).map_err(bad)? {
            for stage in &file.stages {
                push(&mut hooks, stage, &file.hook).map_err(bad)?;
            }
            added = true;
        }
    }
    if added {
        spec.set_hooks(Some(hooks));
    }
    Ok(())
}

/// A door for the fuzz target (fuzz/).
#[cfg(any(fuzzing, test))]
pub fn fuzzing(text: &[u8]) {
    let Ok(file) = parse(Path::new("fuzz"), text) else {
        return;
    };
    let subject = Subject {
        command: "/bin/sh",
        ..Subject::default()
    };
    let mut hooks = Hooks::default();
    if file.when.matches(&subject) == Ok(true) {
        let _ = file
            .stages
            .iter()
            .try_for_each(|stage| push(&mut hooks, stage, &file.hook));
    }
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let bad = |reason: String| Error::Bad {
        path: path.to_owned(),
        reason,
    };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(bad(format!("longer than {MAX_FILE} bytes")));
    }
    parse(path, &fs::read(path).map_err(failed)?)
}

fn parse(path: &Path, text: &[u8]) -> Result<File, Error> {
    let bad = |reason: String| Error::Bad {
        path: path.to_owned(),
        reason,
    };
    /// What is asked of a file first.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Probe {
        version: String,
    }
    let probe: Probe = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
    let file = match probe.version.as_str() {
        "" | "0.1.0" => serde_json::from_slice(text).map(|old: OldFile| old.into()),
        _ => serde_json::from_slice(text),
    };
    let file: File = file.map_err(|error| bad(error.to_string()))?;
    if file.version != VERSION {
        return Err(bad(format!(
            "version {:?} is neither {VERSION} nor 0.1.0",
            file.version
        )));
    }
    if !file.hook.path.is_absolute() {
        return Err(bad(format!("its path {} is not absolute", file.hook.path.display())));
    }
    if file.stages.is_empty() {
        return Err(bad("it has no stages".to_owned()));
    }
    Ok(file)
}

fn push(hooks: &mut Hooks, stage: &str, file: &HookFile) -> Result<(), String> {
    let list = match stage {
        #[allow(deprecated)] // Still what many files name.
        "prestart" => hooks.prestart_mut(),
        "createRuntime" => hooks.create_runtime_mut(),
        "createContainer" => hooks.create_container_mut(),
        "startContainer" => hooks.start_container_mut(),
        "poststart" => hooks.poststart_mut(),
        "poststop" => hooks.poststop_mut(),
        other => return Err(format!("stage {other:?} does not exist")),
    };
    let mut hook = Hook::default();
    hook.set_path(file.path.clone())
        .set_args(Some(file.args.clone()).filter(|args| !args.is_empty()))
        .set_env(Some(file.env.clone()).filter(|env| !env.is_empty()))
        .set_timeout(file.timeout.filter(|seconds| *seconds > 0));
    list.get_or_insert_default().push(hook);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("wharf-hooks-{}-{name}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            for sub in ["usr", "etc"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            Self(dir)
        }

        fn write(&self, name: &str, path: &str, when: &str, stages: &str) {
            let text = format!(
                r#"{{"version":"1.0.0","hook":{{"path":"{path}","args":["x","{name}"],"env":["A=b"],"timeout":3}},
                "when":{when},"stages":{stages}}}"#
            );
            fs::write(self.0.join(name), text).unwrap();
        }

        fn add(&self, subject: &Subject) -> Result<Hooks, Error> {
            let mut spec = Spec::default();
            let directories = ["usr", "etc", "absent"].map(|name| self.0.join(name));
            add(&directories, subject, &mut spec)?;
            Ok(spec.hooks().clone().unwrap_or_default())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn paths(hooks: &Option<Vec<Hook>>) -> Vec<String> {
        let list = hooks.iter().flatten();
        list.map(|hook| hook.path().display().to_string()).collect()
    }

    #[test]
    fn the_later_directory_wins_and_names_give_the_order() {
        let dir = Scratch::new("order");
        let always = r#"{"always":true}"#;
        dir.write("usr/20.json", "/usr/20", always, r#"["createRuntime","poststop"]"#);
        dir.write("usr/10.json", "/usr/10", always, r#"["poststop"]"#);
        dir.write("etc/20.json", "/etc/20", always, r#"["poststop"]"#);
        dir.write("etc/05.json", "/etc/05", always, r#"["poststop"]"#);
        fs::write(dir.0.join("etc/README"), "no hook").unwrap();
        let hooks = dir.add(&Subject::default()).unwrap();
        assert_eq!(paths(hooks.poststop()), ["/etc/05", "/usr/10", "/etc/20"]);
        assert!(hooks.create_runtime().is_none());
        let hook = &hooks.poststop().as_ref().unwrap()[0];
        assert_eq!(hook.args().as_ref().unwrap(), &["x", "etc/05.json"]);
        assert_eq!((hook.env().as_ref().unwrap().len(), hook.timeout()), (1, Some(3)));
    }

    #[test]
    fn a_hook_runs_when_all_that_it_says_holds() {
        let subject = Subject {
            annotations: HashMap::from([("com.example.gpu", "yes"), ("other", "no")]),
            command: "/usr/bin/python3",
            has_bind_mounts: true,
        };
        let cases = [
            ("{}", false),
            (r#"{"always":false,"hasBindMounts":true}"#, false),
            (r#"{"hasBindMounts":true}"#, true),
            (r#"{"hasBindMounts":false}"#, false),
            (r#"{"annotations":{"^com\\.example\\.":"^yes$"}}"#, true),
            (r#"{"annotations":{"^com\\.example\\.":"^no$"}}"#, false),
            (r#"{"commands":["ruby","python"]}"#, true),
            (r#"{"commands":["^python"]}"#, false),
            (r#"{"commands":["python"],"annotations":{"absent":"."}}"#, false),
            (
                r#"{"always":true,"commands":["python"],"annotations":{"other":"no"}}"#,
                true,
            ),
        ];
        for (when, runs) in cases {
            let dir = Scratch::new("when");
            dir.write("etc/a.json", "/hook", when, r#"["poststart"]"#);
            assert_eq!(dir.add(&subject).unwrap().poststart().is_some(), runs, "{when}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        let always = r#"{"always":true}"#;
        let cases = [
            ("relative", always, r#"["poststop"]"#, "not absolute"),
            ("/hook", always, "[]", "no stages"),
            ("/hook", always, r#"["prestop"]"#, "prestop"),
            (
                "/hook",
                r#"{"commands":["("]}"#,
                r#"["poststop"]"#,
                "no regular expression",
            ),
            ("/hook", r#"{"sometimes":true}"#, r#"["poststop"]"#, "sometimes"),
        ];
        for (path, when, stages, says) in cases {
            let dir = Scratch::new("bad");
            dir.write("etc/a.json", path, when, stages);
            let error = dir.add(&Subject::default()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("etc/a.json"), "{error}");
        }
        let dir = Scratch::new("version");
        fs::write(
            dir.0.join("usr/a.json"),
            r#"{"version":"2.0.0","hook":{"path":"/x"},"stages":["prestart"]}"#,
        )
        .unwrap();
        assert!(dir.add(&Subject::default()).unwrap_err().to_string().contains("2.0.0"));
    }

    #[test]
    fn files_of_the_first_version_run_when_one_thing_holds() {
        let subject = Subject {
            annotations: HashMap::from([("any.name", "yes")]),
            command: "/usr/bin/python3",
            has_bind_mounts: false,
        };
        let cases = [
            (r#""cmd":[".*"],"stage":["poststart"]"#, true),
            (r#""version":"0.1.0","cmds":["ruby"],"stages":["poststart"]"#, false),
            (
                r#""cmds":["ruby"],"annotations":["^yes$"],"stages":["poststart"]"#,
                true,
            ),
            (
                r#""annotation":["^no$"],"hasbindmounts":true,"stage":["poststart"]"#,
                false,
            ),
            (r#""stage":["poststart"]"#, false),
        ];
        for (text, runs) in cases {
            let dir = Scratch::new("old");
            let text = format!(r#"{{"hook":"/hook","arguments":["a"],{text}}}"#);
            fs::write(dir.0.join("etc/a.json"), &text).unwrap();
            let hooks = dir.add(&subject).unwrap();
            assert_eq!(hooks.poststart().is_some(), runs, "{text}");
            for hook in hooks.poststart().iter().flatten() {
                assert_eq!(hook.args().as_ref().unwrap(), &["/hook", "a"]);
            }
        }
        let dir = Scratch::new("old-bad");
        fs::write(dir.0.join("etc/a.json"), r#"{"hook":"/hook","sometimes":1}"#).unwrap();
        assert!(dir.add(&subject).unwrap_err().to_string().contains("sometimes"));
    }
}
