//! How the spec of a container that comes back must be that of the one that was dumped.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Process, Spec};

use super::Dumped;
use crate::containers::{Result, users::ResolvedUser};

/// Mounts that each container gets anew, wherever it is.
const OWN_MOUNTS: [&str; 9] = [
    "/dev",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
];

/// Mounts that a container gets whose user its image does not know.
const ENTRIES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Where the process is said to be, which may be elsewhere now.
const OF_THE_POD: &str = "HOSTNAME=";

impl Dumped {
    /// The user that the processes have. `wanted` is the one that was asked for, which counts where it must be the same.
    ///
    /// # Errors
    /// [`crate::containers::Error::Invalid`] when it must and is not, or the dump has no process.
    pub fn user(&self, wanted: &ResolvedUser) -> Result<ResolvedUser> {
        let user = self.process()?.user().clone();
        let mut groups = vec![user.gid()];
        groups.extend(user.additional_gids().clone().unwrap_or_default());
        let mut seen = BTreeSet::new();
        groups.retain(|group| seen.insert(*group));
        let is = ResolvedUser {
            uid: user.uid(),
            gid: user.gid(),
            groups,
            home: wanted.home.clone(),
        };
        if self.strict {
            let sorted = |user: &ResolvedUser| user.groups.iter().copied().collect::<BTreeSet<_>>();
            self.same(
                "user and groups",
                &(is.uid, is.gid, sorted(&is)),
                &(wanted.uid, wanted.gid, sorted(wanted)),
            )?;
        }
        Ok(is)
    }

    /// It had a passwd or group file of its own.
    pub fn had_entries(&self) -> bool {
        let had = mounts(&self.spec);
        ENTRIES.iter().any(|point| had.contains(Path::new(point)))
    }

    /// Makes `spec` that of the processes that come back: how they were called and as whom they run. What the checkpoint
    /// had mounted must be mounted again, and nothing besides. Entries for its user, which lie in `own`, are left out where
    /// it had none.
    ///
    /// # Errors
    /// [`crate::containers::Error::Invalid`] with the mounts that are missing or too many, or with what differs where
    /// nothing may.
    pub fn adopt(&self, spec: &mut Spec, own: &Path) -> Result<()> {
        let had = mounts(&self.spec);
        if let Some(mounts) = spec.mounts_mut() {
            mounts.retain(|mount| {
                let entry = ENTRIES.iter().any(|point| mount.destination() == Path::new(point));
                let ours = mount.source().as_ref().is_some_and(|source| source.starts_with(own));
                !(entry && ours) || had.contains(mount.destination())
            });
        }
        let has = mounts(spec);
        let list = |paths: Vec<&PathBuf>| {
            let texts: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            texts.join(", ")
        };
        let missing: Vec<_> = had.difference(&has).collect();
        if !missing.is_empty() {
            let what = format!("the container has mounts at {}, which the request lacks", list(missing));
            return Err(self.source.invalid(&what));
        }
        let added: Vec<_> = has.difference(&had).collect();
        if !added.is_empty() {
            let what = format!("the request has mounts at {}, which the container lacks", list(added));
            return Err(self.source.invalid(&what));
        }
        let was = self.process()?.clone();
        let Some(process) = spec.process_mut() else {
            return Ok(());
        };
        if self.strict {
            self.same("command", was.args(), process.args())?;
            self.same("working directory", was.cwd(), process.cwd())?;
            self.same_environment(&was, process)?;
        }
        process
            .set_args(was.args().clone())
            .set_env(was.env().clone())
            .set_cwd(was.cwd().clone())
            .set_user(was.user().clone());
        Ok(())
    }

    fn process(&self) -> Result<&Process> {
        let process = self.spec.process().as_ref();
        process.ok_or_else(|| self.source.invalid("its spec has no process"))
    }

    fn same<T: PartialEq + std::fmt::Debug>(&self, what: &str, was: &T, wanted: &T) -> Result<()> {
        if was == wanted {
            return Ok(());
        }
        let why = format!("the {what} of the container was {was:?}, and the request has {wanted:?}");
        Err(self.source.invalid(&why))
    }

    /// Values may be secrets: only names are told.
    fn same_environment(&self, was: &Process, wanted: &Process) -> Result<()> {
        let set = |process: &Process| -> BTreeSet<String> {
            let env = process.env().clone().unwrap_or_default();
            env.into_iter().filter(|pair| !pair.starts_with(OF_THE_POD)).collect()
        };
        let (was, wanted) = (set(was), set(wanted));
        let names: BTreeSet<_> = was
            .symmetric_difference(&wanted)
            .map(|pair| pair.split('=').next().unwrap_or(pair))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = names.into_iter().collect();
        let why = format!(
            "the environment of the container and that of the request differ in {}",
            names.join(", ")
        );
        Err(self.source.invalid(&why))
    }
}

/// Mount points that must be the same.
fn mounts(spec: &Spec) -> BTreeSet<PathBuf> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let points = mounts.iter().map(|mount| mount.destination().clone());
    points
        .filter(|point| {
            let own = OWN_MOUNTS.iter().any(|own| point == Path::new(own));
            !own && !point.starts_with("/sys/fs/cgroup")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::restore::{Source, described::Descriptions};

    fn spec(mounts: &[(&str, &str)], env: &[&str]) -> Spec {
        let mounts: Vec<_> = mounts
            .iter()
            .map(|(point, source)| serde_json::json!({ "destination": point, "type": "bind", "source": source }))
            .collect();
        let json = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": { "args": ["a", "b"], "env": env, "cwd": "/", "user": { "uid": 7, "gid": 8, "additionalGids": [8, 9] } },
            "mounts": mounts,
        });
        serde_json::from_value(json).unwrap()
    }

    fn dumped(spec: Spec, strict: bool) -> Dumped {
        Dumped {
            source: Source::Directory("/c".into()),
            described: Descriptions::default(),
            spec,
            strict,
        }
    }

    #[test]
    fn entries_for_the_user_are_those_that_there_were() {
        let own = Path::new("/own");
        let with = [("/proc", "proc"), ("/etc/passwd", "/own/passwd"), ("/data", "/x")];
        let without = [("/data", "/y")];
        let mut has = spec(&with, &[]);
        dumped(spec(&without, &[]), false).adopt(&mut has, own).unwrap();
        assert!(!mounts(&has).contains(Path::new("/etc/passwd")));
        let had = dumped(spec(&with, &[]), false);
        assert!(had.had_entries());
        let mut has = spec(&with, &[]);
        had.adopt(&mut has, own).unwrap();
        assert!(mounts(&has).contains(Path::new("/etc/passwd")));
        let error = had.adopt(&mut spec(&without, &[]), own).unwrap_err().to_string();
        assert!(error.contains("/etc/passwd"), "{error}");
        // One that CRI mounts is no entry of ours.
        let mut has = spec(&[("/etc/passwd", "/host/passwd"), ("/data", "/x")], &[]);
        let error = dumped(spec(&without, &[]), false).adopt(&mut has, own).unwrap_err();
        assert!(error.to_string().contains("/etc/passwd"), "{error}");
    }

    #[test]
    fn a_pods_container_is_asked_for_as_it_was() {
        let was = || dumped(spec(&[], &["A=1", "HOSTNAME=old"]), true);
        let own = Path::new("/own");
        was().adopt(&mut spec(&[], &["HOSTNAME=new", "A=1"]), own).unwrap();
        let error = was().adopt(&mut spec(&[], &["A=secret"]), own).unwrap_err().to_string();
        assert!(error.contains("differ in A") && !error.contains("secret"), "{error}");
        let mut other = spec(&[], &["A=1"]);
        other.process_mut().as_mut().unwrap().set_args(Some(vec!["c".into()]));
        let error = was().adopt(&mut other, own).unwrap_err().to_string();
        assert!(error.contains("command"), "{error}");
        dumped(spec(&[], &["A=1"]), false).adopt(&mut other, own).unwrap();
        let user = |uid| ResolvedUser {
            uid,
            gid: 8,
            groups: vec![8, 9],
            home: "/h".into(),
        };
        assert_eq!(was().user(&user(7)).unwrap(), user(7));
        assert!(was().user(&user(0)).unwrap_err().to_string().contains("user"));
        assert_eq!(dumped(spec(&[], &[]), false).user(&user(0)).unwrap(), user(7));
    }
}
