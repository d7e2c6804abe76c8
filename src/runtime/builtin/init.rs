//! Create, init's part: a world of mounts built from descriptors, then the wait at the gate, then the program.

use super::prepare::{self, Prepared};
use super::spec::{Bundle, Namespace};
use super::{attach, console, create, devices, hooks, process, sysctl};
use crate::runtime::error::Context;
use crate::runtime::report::{self, Report};
use crate::runtime::{Error, Result};
use crate::sys::{self, MountAttr};
use nix::unistd::{Gid, Uid, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxNamespaceType, LinuxPersonalityDomain};
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// What the helper has prepared.
pub struct Plan {
    pub bundle: Bundle,
    pub setup: process::Setup,
    /// The host's.
    pub procfs: OwnedFd,
    pub rootfs: OwnedFd,
    pub mounts: Vec<Prepared>,
    pub devices: Vec<devices::Node>,
    /// Detached mount of the host's null device.
    pub null: OwnedFd,
    pub terminal: bool,
    pub keyring: CString,
    /// Namespaces that init makes itself, as the root of its user namespace.
    pub unshare: i32,
    pub state: hooks::State,
}

/// Runs in init. `gate` leads to the helper and, later, to the monitor.
pub fn run(plan: Plan, gate: OwnedFd) -> ! {
    let start_hooks = hooks::of(&plan.bundle.spec, hooks::Moment::StartContainer).to_vec();
    let built = build(plan, &gate);
    let (setup, state) = match built {
        Ok((setup, state, console)) => {
            report::send(
                gate.as_fd(),
                &Ok(Report {
                    pid: 0,
                    fds: console.into_iter().collect(),
                    ..Report::default()
                }),
            );
            (setup, state)
        }
        Err(e) => fail(&gate, e),
    };
    // All else is gone before the wait.
    let mut kept = vec![0, 1, 2, gate.as_raw_fd()];
    kept.extend(setup.listener());
    if let Err(e) = sys::close_all_but(&kept) {
        fail(&gate, Error::os("close descriptors", e));
    }
    match report::receive(gate.as_fd()) {
        Ok(Some(_)) => {
            let moment = hooks::Moment::StartContainer;
            match state.run(&start_hooks, moment, own_pid()) {
                Ok(()) => fail(&gate, setup.execute()),
                Err(e) => fail(&gate, Error::StartFailed(e.to_string())),
            }
        }
        // The monitor is gone or does not want the container.
        _ => sys::exit_now(1),
    }
}

fn fail(gate: &OwnedFd, error: Error) -> ! {
    report::send(gate.as_fd(), &Err(error));
    sys::exit_now(1)
}

/// As the container sees it.
fn own_pid() -> i32 {
    nix::unistd::getpid().as_raw()
}

fn build(plan: Plan, gate: &OwnedFd) -> Result<(process::Setup, hooks::State, Option<OwnedFd>)> {
    let Plan {
        bundle,
        mut setup,
        procfs,
        rootfs,
        mut mounts,
        devices,
        null,
        terminal,
        keyring,
        unshare,
        state,
    } = plan;
    let linux = bundle.linux()?;
    let place = match hooks::before_pivot(&bundle.spec) {
        true => Some(attach::Place::open(&bundle.rootfs)?),
        false => None,
    };
    if bundle.has_userns() {
        become_root_of_userns(gate)?;
    }
    if unshare != 0 {
        sys::unshare(unshare).context(|| "make namespaces".into())?;
    }
    setsid().context(|| "start a session".into())?;
    // Kernels without keys, or a user's full quota: the process then has no session keyring of its own.
    let _ = sys::new_session_keyring(&keyring);
    names(&bundle)?;
    sysctl::write(&bundle, procfs.as_fd())?;
    setup.open_labels(procfs.as_fd())?;
    drop(procfs);

    // While the host's file systems are in sight, without which the kernel refuses new ones to a user namespace.
    for mount in &mut mounts {
        prepare::make(mount)?;
    }
    let readonly_dev = attach::readonly_dev(&mounts);
    let has_kcore = Path::new("/proc/kcore").exists();
    let root = match &place {
        Some(place) => place.put(rootfs)?,
        None => attach::enter_root(rootfs)?,
    };
    attach::attach_all(&root, mounts)?;
    devices::create(&root, devices, has_kcore)?;
    if place.is_some() {
        run_hooks(&bundle, &state, gate)?;
        attach::leave_host(&root)?;
    }
    let mut master = None;
    if terminal {
        let opened = console::open(&root)?;
        console::mount_console(&root, &opened)?;
        use_terminal(&opened, bundle.process()?.console_size().as_ref())?;
        master = Some(opened.master);
    }
    // runc makes the working directory when the image lacks it; a file in its place is reported by the chdir.
    let _ = root.ensure_dir(setup.cwd());
    attach::make_readonly(&root, linux.readonly_paths().as_deref().unwrap_or_default())?;
    attach::mask(&root, linux.masked_paths().as_deref().unwrap_or_default(), null)?;
    if readonly_dev {
        let dev = root
            .open(Path::new("/dev"), libc::O_PATH)
            .context(|| "open /dev".into())?;
        set_readonly(&dev).context(|| "make /dev read-only".into())?;
    }
    attach::finish_root(&root, &bundle)?;
    set_personality(&bundle)?;
    setup.settle(&root)?;
    Ok((setup, state, master))
}

/// The hooks that see host and container at once: those of the helper, then init's own.
fn run_hooks(bundle: &Bundle, state: &hooks::State, gate: &OwnedFd) -> Result<()> {
    if hooks::wants_runner(&bundle.spec) {
        report::send(gate.as_fd(), &Ok(Report::default()));
        report::receive(gate.as_fd())?.ok_or(Error::HelperDied("create"))?;
    }
    let moment = hooks::Moment::CreateContainer;
    state.run(hooks::of(&bundle.spec, moment), moment, own_pid())
}

fn set_readonly(mount: &OwnedFd) -> std::io::Result<()> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_fd(), false, &attr)
}

fn become_root_of_userns(gate: &OwnedFd) -> Result<()> {
    let what = || "become root of the user namespace".to_string();
    report::receive(gate.as_fd())?.ok_or(Error::HelperDied("create"))?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).context(what)?;
    setresuid(uid, uid, uid).context(what)?;
    sys::set_undumpable().context(what)
}

fn names(bundle: &Bundle) -> Result<()> {
    let own = bundle.namespace(LinuxNamespaceType::Uts) != Namespace::Host;
    let wanted = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (host, domain) = (wanted(bundle.spec.hostname()), wanted(bundle.spec.domainname()));
    if !own && (host.is_some() || domain.is_some()) {
        return Err(Error::InvalidSpec(
            "hostname without a UTS namespace of the container's own".into(),
        ));
    }
    // A namespace that is joined has its names from whoever made it.
    if bundle.namespace(LinuxNamespaceType::Uts) != Namespace::New {
        return Ok(());
    }
    if let Some(name) = host {
        nix::unistd::sethostname(&name).context(|| format!("set hostname {name:?}"))?;
    }
    if let Some(name) = domain {
        sys::set_domainname(&name).context(|| format!("set domainname {name:?}"))?;
    }
    Ok(())
}

/// Make a terminal the standard streams and the session's own.
pub fn use_terminal(terminal: &console::Terminal, size: Option<&oci_spec::runtime::Box>) -> Result<()> {
    let what = || "take the terminal".to_string();
    if let Some(size) = size {
        let side = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
        sys::set_window_size(terminal.slave.as_fd(), side(size.height()), side(size.width())).context(what)?;
    }
    for stream in 0..3 {
        create::replace_stream(stream, &terminal.slave).context(what)?;
    }
    sys::take_terminal(terminal.slave.as_fd()).context(what)
}

fn set_personality(bundle: &Bundle) -> Result<()> {
    let Some(personality) = bundle.linux()?.personality() else {
        return Ok(());
    };
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(Error::Unsupported("linux.personality.flags".into()));
    }
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    sys::personality(domain).context(|| "set the personality".into())
}
