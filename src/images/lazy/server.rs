//! The file system of one container: a directory for each of its layers that has not come whole, served over /dev/fuse.
//!
//! It has no state but its layers and the journal of open requests: files are opened without the daemon, and numbers of files are
//! places in the layers' tables. So another daemon, which gets the device from the pod's monitor, goes on where this one was
//! killed.

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    task::JoinSet,
};

use super::{
    journal::Journal,
    layer::LazyLayer,
    table::{Kind, Node},
    wire::{self, Request, op},
};
use crate::{failpoint, sys};

/// The directory of the layers.
const ROOT: u64 = 1;

/// What a container is served.
pub(super) struct Server {
    root: Node,
    /// By name: `0`, `1`, ...
    layers: Vec<Arc<LazyLayer>>,
}

/// Opens the device and mounts a file system at `dir`, which [`unmount`] takes away from there. Blocking.
///
/// # Errors
/// When the kernel has no FUSE, or refuses.
pub(super) fn attach(dir: &Path) -> io::Result<OwnedFd> {
    let device = open_device()?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
        device.as_raw_fd()
    );
    mount(
        Some("wharf"),
        dir,
        Some("fuse"),
        MsFlags::MS_RDONLY | MsFlags::MS_NOATIME,
        Some(options.as_str()),
    )?;
    Ok(device.into())
}

/// What this kernel's FUSE can do, asked of a file system that is mounted nowhere. Blocking.
///
/// # Errors
/// What it lacks.
pub(super) fn probe() -> Result<wire::Abilities, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let device = open_device().map_err(|error| failed("open /dev/fuse", &error))?;
    let parameters = [
        ("source", "wharf".to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", "0".to_owned()),
        ("group_id", "0".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value));
    let _mount = sys::fsmount("fuse", &parameters, 0).map_err(|error| failed("make a FUSE file system", &error))?;
    // The kernel has asked by now: it does not wait for the answer.
    let mut buffer = vec![0; wire::BUFFER];
    let length = nix::unistd::read(&device, &mut buffer).map_err(|errno| failed("read /dev/fuse", &errno))?;
    let request = Request::parse(buffer.get(..length).unwrap_or_default());
    let init = request.filter(|request| request.operation == op::INIT);
    let (_, can) = init
        .and_then(|init| wire::init(&init))
        .ok_or("its FUSE does not begin as it should")?;
    can.ok_or_else(|| "its FUSE is older than that of Linux 5.1".to_owned())
}

fn open_device() -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open("/dev/fuse")
}

/// Takes the file system away from `dir`; who uses it goes on. Nothing there is fine. Blocking.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn detach(dir: &Path) -> io::Result<()> {
    loop {
        match umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What becomes of a request.
enum Reply {
    Now(Result<Vec<u8>, i32>),
    Read {
        layer: Arc<LazyLayer>,
        node: u32,
        offset: u64,
        size: u32,
    },
    None,
    End,
}

impl Server {
    pub fn new(layers: Vec<Arc<LazyLayer>>) -> Self {
        let names = (0..).map(|number: u32| number.to_string().into_bytes());
        let root = Node {
            kind: Kind::Directory {
                names: names.zip(0..layers.len() as u32).collect(),
                opaque: false,
            },
            ..Node::implied(0, Vec::new())
        };
        Self { root, layers }
    }

    /// Answers `device` until the file system is gone, at first what is open in `journal`. `able` hears whether the kernel can
    /// do what is needed, if it says so: one that another daemon has begun to serve does not say it again.
    pub async fn serve(
        self,
        device: OwnedFd,
        journal: Journal,
        mut able: Option<oneshot::Sender<bool>>,
    ) -> io::Result<()> {
        let desk = Arc::new(Desk {
            device: watch(device)?,
            journal,
        });
        let mut reads = JoinSet::new();
        for slot in desk.journal.open_slots() {
            if !self.answer(&desk, slot, &mut able, &mut reads).await {
                return Ok(());
            }
        }
        loop {
            let Some(slot) = desk.journal.take() else {
                // Only reads of content keep their places.
                reads.join_next().await;
                continue;
            };
            loop {
                tokio::select! {
                    Some(_) = reads.join_next(), if !reads.is_empty() => {}
                    read = desk.next(slot) => match read {
                        Ok(true) => break,
                        // It has been unmounted everywhere.
                        Ok(false) => return Ok(()),
                        Err(error) => return Err(error),
                    },
                }
            }
            if !self.answer(&desk, slot, &mut able, &mut reads).await {
                return Ok(());
            }
        }
    }

    /// Answers the request in `slot`, or has it answered when its content has come. False: it was the last.
    async fn answer(
        &self,
        desk: &Arc<Desk>,
        slot: usize,
        able: &mut Option<oneshot::Sender<bool>>,
        reads: &mut JoinSet<()>,
    ) -> bool {
        let bytes = desk.journal.request(slot);
        let Some(request) = Request::parse(&bytes) else {
            desk.journal.done(slot);
            return true;
        };
        if let Err(errno) = reach(request.operation).await {
            desk.send(slot, request.unique, Err(errno));
            return true;
        }
        let mut can = None;
        match self.reply(&request, &mut can) {
            Reply::Now(result) => desk.send(slot, request.unique, result.as_deref().map_err(|errno| *errno)),
            Reply::Read {
                layer,
                node,
                offset,
                size,
            } => {
                let (desk, unique) = (desk.clone(), request.unique);
                reads.spawn(async move {
                    let result = layer.read(node, offset, size).await;
                    desk.send(slot, unique, result.as_deref().map_err(|errno| *errno));
                });
            }
            Reply::None => desk.journal.done(slot),
            Reply::End => {
                desk.journal.done(slot);
                return false;
            }
        }
        // Told once the kernel knows what it may do.
        if let Some(can) = can
            && let Some(able) = able.take()
        {
            let _ = able.send(can);
        }
        true
    }

    fn reply(&self, request: &Request, able: &mut Option<bool>) -> Reply {
        match request.operation {
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return Reply::None,
            op::DESTROY => return Reply::End,
            op::INIT => {
                let Some((body, can)) = wire::init(request) else {
                    return Reply::Now(Err(libc::EPROTO));
                };
                *able = Some(can.is_some());
                return Reply::Now(Ok(body));
            }
            op::STATFS => return Reply::Now(Ok(statfs())),
            // All is open, for good: the kernel does not ask again.
            op::OPEN | op::OPENDIR => return Reply::Now(Err(libc::ENOSYS)),
            _ => {}
        }
        let Some((layer, number, node)) = self.find(request.node) else {
            return Reply::Now(Err(libc::ESTALE));
        };
        if request.operation == op::READ {
            let (Some(layer), Some((offset, size))) = (layer, request.range()) else {
                return Reply::Now(Err(libc::EINVAL));
            };
            return Reply::Read {
                layer: layer.clone(),
                node: number,
                offset,
                size,
            };
        }
        Reply::Now(match request.operation {
            op::LOOKUP => self.lookup(request, node),
            op::GETATTR => Ok(wire::attributes_of(request.node, node)),
            op::READLINK => match &node.kind {
                Kind::Symlink(target) => Ok(target.clone()),
                _ => Err(libc::EINVAL),
            },
            op::READDIR => self.list(request, node),
            op::GETXATTR => xattr(node, request.name(8))
                .ok_or(libc::ENODATA)
                .and_then(|value| wire::sized(value, request.room())),
            op::LISTXATTR => {
                let mut names = Vec::new();
                for (name, _) in &node.xattrs {
                    names.extend_from_slice(name);
                    names.push(0);
                }
                if is_opaque(node) {
                    names.extend_from_slice(OPAQUE);
                    names.push(0);
                }
                wire::sized(&names, request.room())
            }
            _ => Err(libc::ENOSYS),
        })
    }

    /// A node by the kernel's number: whose, its place there, and it.
    fn find(&self, number: u64) -> Option<(Option<&Arc<LazyLayer>>, u32, &Node)> {
        if number == ROOT {
            return Some((None, 0, &self.root));
        }
        let layer = self.layers.get(usize::try_from(number >> 32).ok()?.checked_sub(1)?)?;
        let place = number as u32;
        Some((Some(layer), place, layer.table.nodes.get(place as usize)?))
    }

    /// The kernel's number of what `node`, which has the number `of`, calls by a name that leads to `place`.
    fn number(&self, of: u64, place: u32) -> u64 {
        match of {
            ROOT => (u64::from(place) + 1) << 32,
            _ => (of >> 32) << 32 | u64::from(place),
        }
    }

    fn lookup(&self, request: &Request, node: &Node) -> Result<Vec<u8>, i32> {
        if !matches!(node.kind, Kind::Directory { .. }) {
            return Err(libc::ENOTDIR);
        }
        let Some(place) = node.child(request.name(0)) else {
            return Ok(wire::entry(None));
        };
        let number = self.number(request.node, place);
        let (_, _, found) = self.find(number).ok_or(libc::ESTALE)?;
        Ok(wire::entry(Some((number, found))))
    }

    fn list(&self, request: &Request, node: &Node) -> Result<Vec<u8>, i32> {
        let Kind::Directory { names, .. } = &node.kind else {
            return Err(libc::ENOTDIR);
        };
        let (offset, room) = request.range().ok_or(libc::EINVAL)?;
        let mut list = wire::Listing::new(room);
        let own = [(b".".as_slice(), request.node), (b"..".as_slice(), ROOT)];
        let own = own.into_iter().map(|(name, number)| (name, number, libc::S_IFDIR));
        let others = names.iter().filter_map(|(name, place)| {
            let number = self.number(request.node, *place);
            let (_, _, node) = self.find(number)?;
            Some((name.as_slice(), number, wire::format(&node.kind)))
        });
        let skip = usize::try_from(offset).map_err(|_| libc::EINVAL)?;
        for (at, (name, number, format)) in own.chain(others).enumerate().skip(skip) {
            if !list.add(number, at as u64 + 1, format, name) {
                break;
            }
        }
        Ok(list.bytes)
    }
}

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

fn is_opaque(node: &Node) -> bool {
    matches!(node.kind, Kind::Directory { opaque: true, .. })
}

fn xattr<'a>(node: &'a Node, name: &[u8]) -> Option<&'a [u8]> {
    if name == OPAQUE {
        return is_opaque(node).then_some(b"y");
    }
    let known = node.xattrs.iter().find(|(known, _)| known == name);
    known.map(|(_, value)| value.as_slice())
}

/// Nothing is free, names may have 255 bytes.
fn statfs() -> Vec<u8> {
    let mut body = vec![0; 40];
    for value in [4096_u32, 255, 4096, 0] {
        body.extend(value.to_ne_bytes());
    }
    body.resize(80, 0);
    body
}

/// That the file system is gone is told as an error only.
fn awaited() -> Interest {
    Interest::READABLE | Interest::ERROR
}

fn watch(device: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is made, which gives it to nobody, so that it stays open and the same.
    Ok(unsafe { AsyncFd::register_with_interest(device, awaited()) }?)
}

/// Where a test kills the daemon between a question and its answer; see [`failpoint`].
async fn reach(operation: u32) -> Result<(), i32> {
    let reached = match operation {
        op::LOOKUP => failpoint::reach("lazy.lookup").await,
        op::READ => failpoint::reach("lazy.read").await,
        _ => return Ok(()),
    };
    reached.map_err(|_| libc::EIO)
}

/// Where requests come from and answers go to.
struct Desk {
    device: AsyncFd<OwnedFd>,
    journal: Journal,
}

impl Desk {
    /// Waits for the next request, which is then in `slot`; false when the file system is gone. May be given up.
    async fn next(&self, slot: usize) -> io::Result<bool> {
        loop {
            let mut ready = self.device.ready(awaited()).await?;
            match self.journal.read(slot, self.device.get_ref()) {
                Ok(()) => return Ok(true),
                Err(Errno::ENODEV) => return Ok(false),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // Taken back before it was read.
                Err(Errno::EINTR | Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Answers what is in `slot`; who asked may have gone.
    fn send(&self, slot: usize, unique: u64, result: Result<&[u8], i32>) {
        let bytes = wire::answer(unique, result);
        if let Err(errno) = nix::unistd::write(self.device.get_ref().as_fd(), &bytes)
            && !matches!(errno, Errno::ENOENT | Errno::ENODEV)
        {
            tracing::warn!(%errno, "the kernel does not take an answer about a file of an image");
        }
        self.journal.done(slot);
    }
}

/// Has the kernel ask again what a daemon that is gone has not answered: for one that has kept no journal.
///
/// # Errors
/// When the kernel can't (before Linux 6.9), or the file system is gone.
pub(super) fn ask_again(device: &OwnedFd) -> io::Result<()> {
    nix::unistd::write(device.as_fd(), &wire::resend())?;
    Ok(())
}
