//! The terminal of a session, which may come later than its size.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    sync::{Arc, Mutex, PoisonError},
};

use super::streams::Shared;

/// Shared by the session and what brings the terminal.
#[derive(Debug, Clone)]
pub(super) struct Terminal(Arc<Mutex<State>>);

#[derive(Debug)]
enum State {
    /// There is none and there will be none.
    None,
    /// It has not come; the size that it gets when it does.
    Awaited(Option<(u16, u16)>),
    There(Shared),
}

impl Terminal {
    pub fn none() -> Self {
        Self::new(State::None)
    }

    pub fn awaited() -> Self {
        Self::new(State::Awaited(None))
    }

    pub fn there(master: Shared) -> Self {
        Self::new(State::There(master))
    }

    fn new(state: State) -> Self {
        Self(Arc::new(Mutex::new(state)))
    }

    /// The terminal has come.
    pub fn arrive(&self, master: Shared) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Awaited(Some((width, height))) = *state
            && let Err(error) = set_size(master.get_ref().as_fd(), width, height)
        {
            tracing::warn!(%error, "could not give a container's terminal its size");
        }
        *state = State::There(master);
    }

    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            State::None => Err(io::Error::new(io::ErrorKind::NotFound, "there is none")),
            State::Awaited(size) => {
                *size = Some((width, height));
                Ok(())
            }
            State::There(master) => set_size(master.get_ref().as_fd(), width, height),
        }
    }
}

/// Gives a terminal its size in characters; the kernel tells the processes in it.
fn set_size(terminal: BorrowedFd, width: u16, height: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` is a valid winsize that lives through the call.
    nix::errno::Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;

    use super::{super::streams, *};

    fn size(terminal: BorrowedFd) -> (u16, u16) {
        // SAFETY: all zeroes is a valid winsize.
        let mut size: libc::winsize = unsafe { std::mem::zeroed() };
        // SAFETY: `size` is a valid place for the result.
        assert_eq!(
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) },
            0
        );
        (size.ws_col, size.ws_row)
    }

    #[tokio::test]
    async fn a_size_that_comes_before_the_terminal_is_not_lost() {
        let pty = openpty(None, None).unwrap();
        let terminal = Terminal::awaited();
        terminal.resize(80, 24).unwrap();
        terminal.resize(100, 30).unwrap();
        terminal.arrive(streams::writer(pty.master).unwrap());
        assert_eq!(size(pty.slave.as_fd()), (100, 30));
        terminal.resize(132, 43).unwrap();
        assert_eq!(size(pty.slave.as_fd()), (132, 43));
        assert!(Terminal::none().resize(80, 24).is_err());
    }
}
