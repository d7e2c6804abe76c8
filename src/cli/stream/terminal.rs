//! The person's terminal.

use std::io::{self, IsTerminal as _};
use std::os::fd::AsRawFd as _;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Whether someone types there.
pub fn stdin_is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// Every key goes through as it is, until this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// # Errors
    /// When stdin is no terminal.
    pub fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Width and height of the terminal at stdout, stdin or stderr; `None` without one.
pub fn size() -> Option<(u16, u16)> {
    [
        io::stdout().as_raw_fd(),
        io::stdin().as_raw_fd(),
        io::stderr().as_raw_fd(),
    ]
    .into_iter()
    .find_map(|fd| {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: `size` is a valid place for the result.
        let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
        (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    })
}
