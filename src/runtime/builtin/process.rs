//! The last steps of a process before its program: shared by a container's init and by what is run in it later.

use super::listener::Listener;
use super::paths::Root;
use super::rlimits::{self, Limits};
use super::sched::Scheduling;
use super::{caps, labels};
use crate::runtime::error::Context;
use crate::runtime::{Error, Result, seccomp_compile};
use crate::sys;
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Uid, fchown, setgroups, setresgid, setresuid};
use oci_spec::runtime::{IOPriorityClass, Linux, LinuxIOPriority, Process};
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};

/// A process with everything parsed and checked.
pub struct Setup {
    args: Vec<CString>,
    env: Vec<CString>,
    cwd: PathBuf,
    uid: u32,
    gid: u32,
    groups: Vec<Gid>,
    umask: u32,
    caps: caps::Sets,
    no_new_privileges: bool,
    limits: Limits,
    /// As ioprio_set(2) takes it.
    io_priority: Option<i32>,
    scheduling: Scheduling,
    labels: labels::Labels,
    filter: Option<(Vec<u8>, u64)>,
    /// Where the filter's descriptor goes that tells of blocked calls.
    pub listener: Option<Listener>,
    /// Whether the limits are set by this process itself.
    pub own_limits: bool,
}

/// Class and level in one number (linux/ioprio.h).
fn io_priority(priority: &LinuxIOPriority) -> Result<i32> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match i32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(Error::InvalidSpec(format!(
            "process.ioPriority.priority {} is not 0 to 7",
            priority.priority()
        ))),
    }
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A passwd file larger than this is not searched for a home directory.
const MAX_PASSWD: u64 = 1 << 20;

impl Setup {
    /// `filter`: a compiled seccomp program; without it the profile is compiled here.
    pub fn new(process: &Process, linux: &Linux, filter: Option<&Path>) -> Result<Setup> {
        let seccomp = linux.seccomp().as_ref();
        let strings = |list: Option<&Vec<String>>| -> Result<Vec<CString>> {
            let string = |text: &String| {
                CString::new(text.as_str()).map_err(|_| Error::InvalidSpec(format!("{text:?} has a zero byte in it")))
            };
            list.into_iter().flatten().map(string).collect()
        };
        let filter = match (seccomp, filter) {
            (None, _) => None,
            (Some(profile), Some(file)) => Some((seccomp_compile::load(file)?, seccomp_compile::flags(profile)?)),
            (Some(profile), None) => Some((seccomp_compile::compile(profile)?, seccomp_compile::flags(profile)?)),
        };
        let user = process.user();
        Ok(Setup {
            listener: seccomp.map(Listener::connect).transpose()?.flatten(),
            args: strings(process.args().as_ref())?,
            env: strings(process.env().as_ref())?,
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: user
                .additional_gids()
                .iter()
                .flatten()
                .map(|gid| Gid::from_raw(*gid))
                .collect(),
            umask: user.umask().unwrap_or(0o022),
            caps: caps::Sets::of(process.capabilities().as_ref())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            limits: rlimits::prepare(process.rlimits().as_deref().unwrap_or_default())?,
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            scheduling: Scheduling::of(process, linux)?,
            labels: labels::Labels::of(process)?,
            filter,
            own_limits: true,
        })
    }

    /// Limits and scheduling of a process (0: the caller), with the caller's privileges.
    pub fn limit(&self, pid: i32) -> Result<()> {
        rlimits::apply(pid, &self.limits)?;
        self.scheduling.schedule(pid)
    }

    /// What must stay open until the filter is in force.
    pub fn listener(&self) -> Option<RawFd> {
        self.listener.as_ref().map(Listener::fd)
    }

    pub fn cwd(&self) -> &Path {
        &self.cwd
    }

    /// Open what later steps write to, and learn what they tell, while the host's procfs is at hand.
    pub fn open_labels(&mut self, procfs: BorrowedFd) -> Result<()> {
        if let Some(listener) = &mut self.listener {
            listener.find_pid(procfs)?;
        }
        self.labels.open(procfs)
    }

    /// Everything up to the seccomp filter. The process is root in the container; afterwards it is the user.
    pub fn settle(&mut self, root: &Root) -> Result<()> {
        self.set_home(root);
        if self.own_limits {
            self.limit(0)?;
        }
        self.scheduling.place_memory()?;
        if let Some(priority) = self.io_priority {
            sys::set_io_priority(priority).context(|| "set the I/O priority".into())?;
        }
        self.labels.write()?;
        reopen_null(root);
        self.own_stdio();
        self.caps.limit_bounding()?;
        umask(Mode::from_bits_truncate(self.umask));
        // The directory may be open only to root or only to the user.
        let entered = self.change_directory().is_ok();
        sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).context(|| "keep capabilities".into())?;
        let what = || format!("become user {}:{}", self.uid, self.gid);
        setgroups(&self.groups).context(what)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setresgid(gid, gid, gid).context(what)?;
        setresuid(uid, uid, uid).context(what)?;
        // Changing the user has set the flag back to a default that an administrator can choose.
        sys::set_undumpable().context(what)?;
        sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0).context(|| "keep capabilities".into())?;
        if !entered {
            self.change_directory()?;
        }
        if self.no_new_privileges {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).context(|| "set no_new_privs".into())?;
        }
        self.caps.apply(self.kept_for_filter())
    }

    /// Installing a filter takes no_new_privs or CAP_SYS_ADMIN.
    fn kept_for_filter(&self) -> u64 {
        if self.filter.is_some() && !self.no_new_privileges {
            caps::SYS_ADMIN
        } else {
            0
        }
    }

    fn change_directory(&self) -> Result<()> {
        let failed =
            |e: std::io::Error| Error::StartFailed(format!("chdir to working directory {:?}: {}", self.cwd, text(&e)));
        std::env::set_current_dir(&self.cwd).map_err(failed)?;
        // A directory outside the root would show here: an inherited descriptor must not be a way out.
        match std::env::current_dir() {
            Ok(dir) if dir.is_absolute() => Ok(()),
            Ok(_) => Err(Error::StartFailed(format!(
                "working directory {:?} is outside the container",
                self.cwd
            ))),
            Err(e) => Err(failed(e)),
        }
    }

    /// Without HOME in the environment it comes from the container's passwd file.
    fn set_home(&mut self, root: &Root) {
        if self.env.iter().any(|entry| entry.to_bytes().starts_with(b"HOME=")) {
            return;
        }
        let home = home(root, self.uid).unwrap_or_else(|| "/".into());
        if let Ok(entry) = CString::new(format!("HOME={home}")) {
            self.env.push(entry);
        }
    }

    /// Let the user open /dev/stdout and its like again. Not possible for every kind of file, which is fine.
    fn own_stdio(&self) {
        for fd in 0..3 {
            // SAFETY: descriptors 0 to 2 stay open for the whole life of the process.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let Ok(stat) = fstat(fd) else { continue };
            let terminal = nix::unistd::isatty(fd).unwrap_or(false);
            let device = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT) == SFlag::S_IFCHR;
            if stat.st_uid != self.uid && (terminal || !device) {
                // A terminal's group belongs to the system.
                let gid = (!terminal).then(|| Gid::from_raw(self.gid));
                let _ = fchown(fd, Some(Uid::from_raw(self.uid)), gid);
            }
        }
    }

    /// Install the filter and become the program; returns only the failure.
    pub fn execute(&self) -> Error {
        if let Err(e) = sys::close_range(3, u32::MAX, true) {
            return Error::os("mark descriptors to be closed", e);
        }
        if let Some((program, flags)) = &self.filter {
            if let Err(e) = self.install(program, *flags) {
                return Error::os("install the seccomp filter", e);
            }
            let kept = self.kept_for_filter();
            if kept != 0
                && self.caps.permitted & self.caps.effective & kept == 0
                && let Err(e) = self.caps.give_up(kept)
            {
                return e;
            }
        }
        let name = self.args[0].to_string_lossy();
        let failed = |e: std::io::Error| Error::StartFailed(format!("exec {name:?}: {}", text(&e)));
        if name.contains('/') {
            return failed(sys::execve(&self.args[0], &self.args, &self.env));
        }
        let mut denied = None;
        for dir in self.search_path().split(':') {
            let dir = if dir.is_empty() { "." } else { dir };
            let Ok(path) = CString::new(format!("{dir}/{name}")) else {
                continue;
            };
            let error = sys::execve(&path, &self.args, &self.env);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => {}
                Some(libc::EACCES) => denied = Some(error),
                _ => return failed(error),
            }
        }
        match denied {
            Some(error) => failed(error),
            None => Error::StartFailed(format!("exec {name:?}: executable file not found in $PATH")),
        }
    }

    fn install(&self, program: &[u8], flags: u64) -> std::io::Result<()> {
        let Some(listener) = &self.listener else {
            return sys::seccomp_set_filter(program, flags);
        };
        let text = listener.text();
        let filter = sys::seccomp_set_listening_filter(program, flags)?;
        listener.send(&text, &filter)
    }

    fn search_path(&self) -> String {
        let path = self
            .env
            .iter()
            .rev()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        path.map_or_else(
            || DEFAULT_PATH.to_string(),
            |path| String::from_utf8_lossy(path).into_owned(),
        )
    }
}

/// The system's words for an error, as other runtimes print them.
pub fn text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn home(root: &Root, uid: u32) -> Option<String> {
    // Not a pipe or a device, which the image may have put there.
    let file = root
        .open(
            Path::new("/etc/passwd"),
            libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY,
        )
        .ok()?;
    if super::paths::file_type(&file).ok()? != SFlag::S_IFREG {
        return None;
    }
    let mut content = String::new();
    File::from(file).take(MAX_PASSWD).read_to_string(&mut content).ok()?;
    find_home(&content, uid)
}

fn find_home(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let matches = fields.get(2)?.parse() == Ok(uid);
        (matches && fields.len() >= 6 && !fields[5].is_empty()).then(|| fields[5].to_string())
    })
}

/// Streams that lead to the host's null device lead to the container's from here on: nothing of the host stays open, and
/// a checkpoint finds only what is in the container. One without such a device keeps the host's.
fn reopen_null(root: &Root) {
    let is_null = |fd: BorrowedFd| {
        let null = nix::sys::stat::makedev(1, 3);
        fstat(fd).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == null)
    };
    for number in 0..3 {
        // SAFETY: descriptors 0 to 2 stay open for the whole life of the process.
        let stream = unsafe { BorrowedFd::borrow_raw(number) };
        if is_null(stream)
            && let Ok(own) = root.open(Path::new("/dev/null"), libc::O_RDWR | libc::O_NOCTTY)
            && is_null(own.as_fd())
        {
            let _ = super::create::replace_stream(number, &own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_of_a_user_is_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33::/var/www:/bin/false\nnone:x:5:5:::\n";
        assert_eq!(find_home(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(find_home(passwd, 33).as_deref(), Some("/var/www"));
        assert_eq!(find_home(passwd, 5), None);
        assert_eq!(find_home(passwd, 1), None);
    }

    #[test]
    fn errors_read_like_those_of_other_runtimes() {
        assert_eq!(
            text(&std::io::Error::from_raw_os_error(libc::ENOENT)),
            "no such file or directory"
        );
    }
}
