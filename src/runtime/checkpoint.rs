//! Checkpoint and restore: what both handlers share. The work is CRIU's (<https://criu.org>); a handler says how it is
//! called.

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    ContainerRef, Error, Pending, Result,
    error::Context as _,
    report::{self, Report},
};
use crate::{
    cgroups::{self, Cgroup},
    sys,
};

/// CRIU's log of a checkpoint, in the work directory.
pub const DUMP_LOG: &str = "dump.log";
/// CRIU's log of a restore, in the work directory.
pub const RESTORE_LOG: &str = "restore.log";
/// Where the three standard streams led, in the images directory: a JSON array of what /proc/PID/fd says, as runc
/// writes it.
pub const DESCRIPTORS: &str = "descriptors.json";

/// Options for CRIU where a program calls it, in the work directory of a restore.
pub const CRIU_OPTIONS: &str = "criu.conf";

/// The mounts that were dumped, in the images directory: a JSON array of mount points and kinds of file systems.
pub const MOUNTS: &str = "wharf.mounts.json";

/// Lines of CRIU's log that an error shows.
const SHOWN: usize = 4;

/// What [`super::Handler::checkpoint`] needs.
pub struct CheckpointRequest<'a> {
    pub container: ContainerRef<'a>,
    /// The program.
    pub criu: &'a Path,
    /// Existing, empty directory for what is dumped.
    pub images: &'a Path,
    /// Existing directory for the log and the statistics.
    pub work: &'a Path,
}

/// What [`super::Handler::restore`] needs besides what a create needs.
#[derive(Clone, Copy)]
pub struct RestoreRequest<'a> {
    /// The program.
    pub criu: &'a Path,
    /// What was dumped.
    pub images: &'a Path,
    /// Existing directory for the log.
    pub work: &'a Path,
    /// Below the hierarchies' roots, as in the spec.
    pub cgroup_path: &'a str,
}

/// Freezes the container and calls `dump` with its cgroup. It stays frozen when that succeeds, so that its files can be
/// read as they are in that moment; whoever asked for the checkpoint thaws it.
pub(super) fn frozen(container: &ContainerRef, dump: impl FnOnce(&Cgroup) -> Result<()>) -> Result<Report> {
    let failed = |error: cgroups::Error| Error::Cgroup(error.to_string());
    let hierarchies = cgroups::detect().map_err(failed)?;
    let cgroup = Cgroup::new(&hierarchies, container.cgroup_path).map_err(failed)?;
    cgroup.freeze().map_err(failed)?;
    let dumped = dump(&cgroup);
    if dumped.is_err() {
        cgroup.thaw().map_err(failed)?;
    }
    dumped.map(|()| Report::default())
}

/// Freezes the container until it is thawed, whatever its handler: a cgroup is the kernel's. Ask
/// [`super::Handler::finish_checkpoint`] how that went.
///
/// # Errors
/// No helper can be forked.
pub fn freeze(container: &ContainerRef) -> Result<Pending> {
    report::spawn_helper(&[], || frozen(container, |_| Ok(())))
}

/// Joins a namespace that the container shares with its pod: what CRIU is in itself it takes for the host's, neither dumps
/// nor makes anew. (With `--join-ns` version 3.17 makes another UTS namespace all the same.)
pub(super) fn enter(path: &Path, flag: i32) -> Result<()> {
    let what = || format!("join namespace {}", path.display());
    let file = fs::File::open(path).context(what)?;
    sys::setns(file.as_fd(), flag).context(what)
}

/// Where CRIU, and a runtime that calls it, look for programs: the monitor has no environment, and CRIU calls iptables
/// and tar.
pub(super) fn search_path(criu: &Path) -> std::ffi::OsString {
    let mut path = criu.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
    path.push(":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path
}

/// Runs CRIU to its end. `log` is what it calls its log in `work`.
pub(super) fn run(mut criu: Command, work: &Path, log: &str) -> Result<()> {
    let program = Path::new(criu.get_program()).display().to_string();
    criu.env("PATH", search_path(Path::new(&program)));
    let output = criu
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .context(|| format!("run {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let why = complaints(&work.join(log)).unwrap_or(if said.is_empty() {
        output.status.to_string()
    } else {
        said
    });
    Err(Error::Failed(format!("criu: {why}")))
}

/// The first errors of a log of CRIU, without its clock; `None` if it has none.
pub(super) fn complaints(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(log).ok()?).into_owned();
    let lines: Vec<_> = text.lines().filter_map(complaint).take(SHOWN).collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

/// `(00.004) Error (criu/vdso.c:1): text` → `text`, with `PID: ` in front where CRIU says whose.
fn complaint(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, text) = rest.split_once("): ")?;
    // Said of every program that CRIU tries, wanted or not.
    Some(text.trim()).filter(|text| !text.is_empty() && !text.starts_with("exited, status="))
}

/// Notes where the standard streams of a process lead.
pub(super) fn write_descriptors(pid: i32, images: &Path) -> Result<()> {
    let mut streams = Vec::new();
    for number in 0..3 {
        let path = format!("/proc/{pid}/fd/{number}");
        let target = match fs::read_link(&path) {
            Ok(target) => target.to_string_lossy().into_owned(),
            // Closed by the program.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::os(format!("read {path}"), error)),
        };
        streams.push(target);
    }
    write_json(&streams, images.join(DESCRIPTORS))
}

/// What [`write_descriptors`] wrote.
pub(super) fn read_descriptors(images: &Path) -> Result<Vec<String>> {
    read_json(images.join(DESCRIPTORS))
}

/// Notes which mounts the container had.
pub(super) fn write_mounts(mounts: &[(PathBuf, String)], images: &Path) -> Result<()> {
    write_json(&mounts, images.join(MOUNTS))
}

/// What [`write_mounts`] wrote.
pub(super) fn read_mounts(images: &Path) -> Result<Vec<(PathBuf, String)>> {
    read_json(images.join(MOUNTS))
}

fn write_json(value: &impl serde::Serialize, file: PathBuf) -> Result<()> {
    let json = serde_json::to_vec(value).map_err(|error| Error::Failed(error.to_string()))?;
    fs::write(&file, json).context(|| format!("write {}", file.display()))
}

fn read_json<T: serde::de::DeserializeOwned>(file: PathBuf) -> Result<T> {
    let json = fs::read(&file).context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&json).map_err(|error| Error::Failed(format!("{}: {error}", file.display())))
}

/// CRIU's name of a namespace that is not the container's own: `net[INODE]:net`.
pub(super) fn external_namespace(kind: &str, path: &Path) -> Result<String> {
    let inode = fs::metadata(path)
        .context(|| format!("look at namespace {}", path.display()))?
        .ino();
    Ok(format!("{kind}[{inode}]:{}", external_key(kind)))
}

/// Under which name CRIU remembers such a namespace. runc's names, so that either can restore what the other dumped.
pub(super) fn external_key(kind: &str) -> String {
    let mut name = kind.to_owned();
    name[..1].make_ascii_uppercase();
    match kind {
        "net" => "extRootNetNS".to_owned(),
        "pid" => "extRootPidNS".to_owned(),
        _ => format!("extRoot{name}NS"),
    }
}

/// Mount points of a process with the kind of their file system, as the process sees them, in the order of mounting.
pub(super) fn mounts_of(pid: i32) -> Result<Vec<(PathBuf, String)>> {
    let path = format!("/proc/{pid}/mountinfo");
    let table = fs::read_to_string(&path).context(|| format!("read {path}"))?;
    Ok(table.lines().filter_map(mount).collect())
}

/// proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<(PathBuf, String)> {
    let (left, right) = line.split_once(" - ")?;
    let point = left.split(' ').nth(4)?.replace("\\040", " ").replace("\\011", "\t");
    Some((
        PathBuf::from(point.replace("\\134", "\\")),
        right.split(' ').next()?.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_first_complaints_of_the_log() {
        let log = std::env::temp_dir().join(format!("wharf-criu-{}.log", std::process::id()));
        fs::write(
            &log,
            "(00.000034) Version: 3.17.1\n(00.07) Warn  (criu/kerndat.c:1): x\n\
             (00.080) Error (criu/vdso.c:648): vdso: Unexpected rt vDSO area bounds\n\
             (00.081) Error (criu/cr-dump.c:1781): Dumping FAILED.\n",
        )
        .unwrap();
        let text = complaints(&log);
        fs::remove_file(&log).unwrap();
        assert_eq!(
            text.as_deref(),
            Some("vdso: Unexpected rt vDSO area bounds; Dumping FAILED.")
        );
        assert_eq!(complaints(&log), None);
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let line = "40 39 0:30 / /a\\040b rw,nosuid master:3 - cgroup2 cgroup rw";
        assert_eq!(mount(line), Some(("/a b".into(), "cgroup2".into())));
    }
}
