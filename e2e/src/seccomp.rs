//! Who listens to system calls that a seccomp profile tells of (seccomp_unotify(2)), written apart from the daemon.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use serde_json::Value;

use crate::Result;

#[derive(Default)]
struct Heard {
    states: Vec<Value>,
    calls: usize,
    ended: bool,
}

/// Answers every call that it is told of with one error, until it is dropped and the containers have ended.
pub struct Agent {
    path: PathBuf,
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Listens at `path`; what is told of fails with `errno`.
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn listen(path: &Path, errno: i32) -> Result<Self> {
        let socket = UnixListener::bind(path)?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let shared = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            let mut filters = Vec::new();
            while let Ok((connection, _)) = socket.accept() {
                if shared.lock().unwrap().ended {
                    break;
                }
                let Ok((state, filter)) = receive(&connection) else {
                    continue;
                };
                shared.lock().unwrap().states.push(state);
                let shared = Arc::clone(&shared);
                filters.push(std::thread::spawn(move || answer(&filter, errno, &shared)));
            }
            for filter in filters {
                let _ = filter.join();
            }
        });
        Ok(Self {
            path: path.to_owned(),
            heard,
            thread: Some(thread),
        })
    }

    /// What it was told of each process whose filter it holds: the runtime specification's container process states.
    ///
    /// # Panics
    /// When a thread of it has.
    pub fn states(&self) -> Vec<Value> {
        self.heard.lock().unwrap().states.clone()
    }

    /// How many calls it has answered.
    ///
    /// # Panics
    /// As [`Agent::states`].
    pub fn calls(&self) -> usize {
        self.heard.lock().unwrap().calls
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Ok(mut heard) = self.heard.lock() {
            heard.ended = true;
        }
        // Wakes it.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn receive(connection: &UnixStream) -> Result<(Value, OwnedFd)> {
    let (mut text, mut filter) = (Vec::new(), None);
    loop {
        let mut piece = [0; 4096];
        let mut control = nix::cmsg_space!([RawFd; 4]);
        let mut buffers = [IoSliceMut::new(&mut piece)];
        let message = recvmsg::<UnixAddr>(
            connection.as_raw_fd(),
            &mut buffers,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let count = message.bytes;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                for fd in fds {
                    // SAFETY: the kernel has just given it to this process.
                    filter = Some(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        if count == 0 {
            break;
        }
        text.extend_from_slice(&piece[..count]);
        // Some senders keep the connection; one whole document is all there is.
        if let Ok(state) = serde_json::from_slice(&text) {
            return Ok((state, filter.ok_or("no descriptor came with the state")?));
        }
    }
    Err(format!("no state: {}", String::from_utf8_lossy(&text)).into())
}

/// Until no process has the filter any more.
fn answer(filter: &OwnedFd, errno: i32, heard: &Mutex<Heard>) {
    loop {
        let mut ready = [PollFd::new(filter.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, PollTimeout::NONE) {
            Ok(_)
                if ready[0]
                    .revents()
                    .is_some_and(|events| events.contains(PollFlags::POLLIN)) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            _ => return,
        }
        // SAFETY: zeros are a value of this plain structure.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such structure, whose zeros it wants.
        if unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) } < 0 {
            continue;
        }
        let answer = libc::seccomp_notif_resp {
            id: call.id,
            val: 0,
            error: -errno,
            flags: 0,
        };
        heard.lock().unwrap().calls += 1;
        // SAFETY: the kernel reads one such structure. A caller that has been killed meanwhile is no error.
        unsafe { libc::ioctl(filter.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    }
}
