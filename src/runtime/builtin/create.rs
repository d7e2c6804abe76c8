//! Create, the helper's part: everything that needs the host, then the fork of init.

use super::spec::{Bundle, Namespace};
use super::{attach, devices, fork_in, hooks, idmap, init, prepare, process, sysctl};
use crate::cgroups::{self, Cgroup};
use crate::runtime::class;
use crate::runtime::error::Context;
use crate::runtime::report::{self, Report};
use crate::runtime::streams;
use crate::runtime::{CreateRequest, Error, Result, Stdio};
use crate::sys::{self, Forked, MountAttr};
use nix::sys::stat::{Mode, umask};
use oci_spec::runtime::{LinuxNamespaceType, LinuxResources};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

/// Kinds in the order in which existing ones are joined: the user namespace last, because the helper's privileges
/// over the others end there.
const KINDS: [(LinuxNamespaceType, i32); 6] = [
    (LinuxNamespaceType::Network, libc::CLONE_NEWNET),
    (LinuxNamespaceType::Ipc, libc::CLONE_NEWIPC),
    (LinuxNamespaceType::Uts, libc::CLONE_NEWUTS),
    (LinuxNamespaceType::Pid, libc::CLONE_NEWPID),
    (LinuxNamespaceType::Cgroup, libc::CLONE_NEWCGROUP),
    (LinuxNamespaceType::User, libc::CLONE_NEWUSER),
];

/// Runs in the helper. Reports init's pid, and as descriptors the gate and, with a terminal, its master.
pub fn run(request: &CreateRequest) -> Result<Report> {
    class::join(request.class)?;
    umask(Mode::empty());
    let bundle = Bundle::load(request.bundle)?;
    let linux = bundle.linux()?;
    let mut setup = process::Setup::new(bundle.process()?, linux, request.seccomp_filter)?;
    sysctl::check(&bundle)?;
    let state = hooks::State::new(&bundle, request.id, request.bundle);
    if let Some(listener) = &mut setup.listener {
        listener.describe(&state, None);
    }
    let mut runner = hooks::Runner::start(&bundle, &state)?;
    hooks::owe_poststop(&bundle, request.bundle)?;
    let new_userns = bundle.namespace(LinuxNamespaceType::User) == Namespace::New;
    setup.own_limits = !bundle.has_userns();

    let cgroup_error = |e: cgroups::Error| Error::Cgroup(e.to_string());
    let hierarchies = cgroups::detect().map_err(cgroup_error)?;
    let path = linux
        .cgroups_path()
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let path = path
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| format!("/{}", request.id));
    let cgroup = Cgroup::of_spec(&hierarchies, &path).map_err(cgroup_error)?;
    let inside = begin_scope(&cgroup, request.id)?;
    cgroup.create_for(linux.resources().as_ref()).map_err(cgroup_error)?;
    limit_devices(&bundle, &cgroup)?;

    set_oom_score(bundle.process()?.oom_score_adj())?;
    let mut plan = init::Plan {
        procfs: File::open("/proc").context(|| "open /proc".into())?.into(),
        rootfs: root_tree(&bundle)?,
        mounts: prepare::mounts(&bundle, &hierarchies, &cgroup)?,
        devices: devices::prepare(&bundle)?,
        null: devices::host_null()?,
        terminal: matches!(request.stdio, Stdio::Terminal),
        keyring: keyring_name(request.id)?,
        unshare: 0,
        state,
        bundle,
        setup,
    };
    let (mut new, existing) = namespaces(&plan.bundle)?;
    if new_userns && new & libc::CLONE_NEWIPC != 0 {
        // Its file system belongs to whoever makes the namespace: that must be the container's root.
        new &= !libc::CLONE_NEWIPC;
        plan.unshare = libc::CLONE_NEWIPC;
    }
    let joins_users = existing.iter().any(|(kind, ..)| *kind == libc::CLONE_NEWUSER);
    // Init is born in its cgroup where it can be: then it makes its cgroup namespace itself, because one begins where whoever
    // makes it is. Else, and where the helper gives up its rights over the cgroup, the helper goes ahead. Limits follow when
    // init is there.
    let born = !inside && !joins_users && cgroup.v2_dir().is_some();
    if born {
        plan.unshare |= new & libc::CLONE_NEWCGROUP;
        new &= !libc::CLONE_NEWCGROUP;
    } else if !inside {
        cgroup.join_self().map_err(cgroup_error)?;
    }
    streams::give(&request.stdio, streams::root(plan.bundle.linux()?))?;
    take_stdio(&request.stdio)?;
    // In another user namespace the helper may set no limits any more; else they wait until init is there.
    let early = joins_users.then(|| limit(&plan, &cgroup));
    for (kind, fd, path) in &existing {
        if *kind == libc::CLONE_NEWUSER {
            // The others are joined, and the privileges are still there.
            prepare::of_joined_namespaces(&plan.bundle, &mut plan.mounts)?;
        }
        sys::setns(fd.as_fd(), *kind).context(|| format!("join namespace {}", path.display()))?;
    }
    if existing.iter().all(|(kind, ..)| *kind != libc::CLONE_NEWUSER) {
        prepare::of_joined_namespaces(&plan.bundle, &mut plan.mounts)?;
    }
    drop(existing);

    let (ours, theirs) = report::channel()?;
    let flags = new | libc::CLONE_NEWNS | libc::CLONE_PARENT;
    let forked = match born.then(|| fork_in(&cgroup, flags)).flatten() {
        Some(forked) => forked,
        None => {
            if born {
                cgroup.join_self().map_err(cgroup_error)?;
            }
            sys::fork(flags).context(|| "fork init".into())?
        }
    };
    match forked {
        Forked::Child => {
            drop(ours);
            init::run(plan, theirs)
        }
        Forked::Parent { pid, pidfd } => {
            drop(theirs);
            let result = supervise(&plan, &cgroup, early, pid, new_userns, &ours, &mut runner);
            match result {
                Ok(console) => Ok(Report {
                    pid,
                    fds: std::iter::once(ours).chain(console).collect(),
                    hooks: !hooks::of(&plan.bundle.spec, hooks::Moment::Poststart).is_empty(),
                }),
                Err(e) => {
                    let _ = sys::pidfd_kill(pidfd.as_fd(), libc::SIGKILL);
                    Err(e)
                }
            }
        }
    }
}

/// The helper's work while init builds its world; returns the terminal's master.
fn supervise(
    plan: &init::Plan,
    cgroup: &Cgroup,
    limited: Option<Result<()>>,
    pid: i32,
    new_userns: bool,
    init: &OwnedFd,
    runner: &mut Option<hooks::Runner>,
) -> Result<Option<OwnedFd>> {
    let linux = plan.bundle.linux()?;
    if !plan.setup.own_limits {
        // Init waits until this is done, so its pid is its own.
        plan.setup.limit(pid)?;
        if new_userns {
            idmap::write(pid, linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref())?;
        }
        report::send(init.as_fd(), &Ok(Report::default()));
    }
    let limited = limited.unwrap_or_else(|| limit(plan, cgroup));
    if let Some(runner) = runner.take() {
        // Init has built its mounts, or fails here.
        report::receive(init.as_fd())?.ok_or(Error::HelperDied("create"))?;
        runner.run(pid)?;
        report::send(init.as_fd(), &Ok(Report::default()));
    }
    // Init's own words first: a limit that could not be set is less likely the cause of trouble than its effect.
    let report = report::receive(init.as_fd())?.ok_or(Error::HelperDied("create"))?;
    limited?;
    Ok(report.fds.into_iter().next())
}

fn limit(plan: &init::Plan, cgroup: &Cgroup) -> Result<()> {
    limit_cgroup(&plan.bundle, cgroup)
}

/// Has systemd make the container's cgroup around this process, if it is a scope.
pub fn begin_scope(cgroup: &Cgroup, id: &str) -> Result<bool> {
    cgroup
        .start_scope(&format!("Container {id} of Wharf"))
        .map_err(|e| Error::Cgroup(e.to_string()))
}

/// Writes the spec's limits other than those of devices.
pub fn limit_cgroup(bundle: &Bundle, cgroup: &Cgroup) -> Result<()> {
    let Some(mut resources) = bundle.linux()?.resources().clone() else {
        return Ok(());
    };
    resources.set_devices(None);
    cgroup.apply(&resources).map_err(|e| Error::Cgroup(e.to_string()))
}

/// Writes the device rules, while the cgroup is empty: on v1 nothing is allowed between the first rule and the last, and
/// init makes devices.
pub fn limit_devices(bundle: &Bundle, cgroup: &Cgroup) -> Result<()> {
    let mut only = LinuxResources::default();
    let given = bundle.linux()?.resources().as_ref();
    let mut rules = given.and_then(|r| r.devices().clone()).unwrap_or_default();
    rules.extend(devices::default_rules());
    only.set_devices(Some(rules));
    cgroup.apply(&only).map_err(|e| Error::Cgroup(e.to_string()))
}

/// The root file system as a detached tree that hears of the host's mounts, or not, and never tells of its own.
fn root_tree(bundle: &Bundle) -> Result<OwnedFd> {
    let what = || format!("root file system {}", bundle.rootfs.display());
    let tree = sys::clone_tree(&bundle.rootfs, true).context(what)?;
    let propagation = match attach::root_propagation(bundle)? {
        libc::MS_PRIVATE | libc::MS_UNBINDABLE => libc::MS_PRIVATE,
        _ => libc::MS_SLAVE,
    };
    sys::mount_setattr(
        tree.as_fd(),
        true,
        &MountAttr {
            propagation,
            ..MountAttr::default()
        },
    )
    .context(what)?;
    Ok(tree)
}

/// Flags for new namespaces, and open descriptors of those to join.
type Existing = Vec<(i32, OwnedFd, PathBuf)>;

fn namespaces(bundle: &Bundle) -> Result<(i32, Existing)> {
    let (mut new, mut existing) = (0, Vec::new());
    for (kind, flag) in KINDS {
        match bundle.namespace(kind) {
            Namespace::Host => {}
            Namespace::New => new |= flag,
            Namespace::Join(path) => {
                let file = File::open(path).context(|| format!("open {kind} namespace {}", path.display()))?;
                existing.push((flag, OwnedFd::from(file), path.to_owned()));
            }
        }
    }
    Ok((new, existing))
}

/// Lowering the score takes a privilege that the machine may lack; the inherited score is then the lowest allowed.
pub fn set_oom_score(score: Option<i32>) -> Result<()> {
    let Some(score) = score else { return Ok(()) };
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => Ok(()),
        result => result.context(|| format!("set oom_score_adj to {score}")),
    }
}

/// Put the streams at descriptors 0 to 2; the null device until a terminal takes their place.
pub fn take_stdio(stdio: &Stdio) -> Result<()> {
    let what = || "set standard streams".to_string();
    let open = || File::options().read(true).write(true).open("/dev/null");
    let null: OwnedFd = open().context(what)?.into();
    let sources = match stdio {
        Stdio::Streams(fds) => *fds,
        Stdio::Terminal => [null.as_fd(); 3],
    };
    // Copies above the range first, because a source may be one of the targets.
    let mut copies = Vec::new();
    for source in sources {
        copies.push(source.try_clone_to_owned().context(what)?);
    }
    for (target, copy) in copies.iter().enumerate() {
        replace_stream(target as i32, copy).context(what)?;
    }
    Ok(())
}

/// Make a standard stream refer to what `fd` refers to.
pub fn replace_stream(target: i32, fd: &OwnedFd) -> nix::Result<()> {
    match target {
        0 => nix::unistd::dup2_stdin(fd),
        1 => nix::unistd::dup2_stdout(fd),
        _ => nix::unistd::dup2_stderr(fd),
    }
}

/// Descriptors of the request that the helper keeps.
pub fn kept(stdio: &Stdio) -> Vec<i32> {
    match stdio {
        Stdio::Streams(fds) => fds.iter().map(|fd| fd.as_raw_fd()).collect(),
        Stdio::Terminal => Vec::new(),
    }
}

pub fn keyring_name(id: &str) -> Result<std::ffi::CString> {
    std::ffi::CString::new(format!("_ses.{id}")).map_err(|_| Error::InvalidSpec(format!("container id {id:?}")))
}
