//! How a process ended, in the words of CRI.

use std::path::Path;

use wharf_proto::record;

use crate::store;

/// A container's end.
#[derive(Clone, Debug)]
pub struct Exit {
    /// 0..255.
    pub code: i32,
    pub oom_killed: bool,
    /// It was ended because of the system calls that it made.
    pub seccomp_killed: bool,
    /// For people; empty after an ordinary end.
    pub message: String,
    /// The program never ran.
    pub start_failed: bool,
    /// Unix time, nanoseconds.
    pub finished_at: i64,
}

/// Exit code of a container whose program could not be started (contract rule 16).
pub const START_FAILED_CODE: i32 = 128;

/// The code of a wait status: what the process gave, or 128 + the signal that ended it.
#[must_use]
pub fn code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    }
}

impl Exit {
    /// The reason that CRI shows. A container that ended well is Completed even if the kernel killed a child of it.
    fn reason(&self) -> &'static str {
        match self {
            Exit { start_failed: true, .. } => "StartError",
            Exit {
                seccomp_killed: true, ..
            } => "seccomp killed",
            Exit { code: 0, .. } => "Completed",
            Exit { oom_killed: true, .. } => "OOMKilled",
            _ => "Error",
        }
    }

    /// Writes the durable record, by rename.
    ///
    /// # Errors
    /// As the store.
    pub fn save(&self, file: &Path, started_at: i64) -> store::Result<()> {
        store::write_record(
            file,
            &record::Exit {
                code: self.code,
                reason: self.reason().to_owned(),
                message: self.message.clone(),
                finished_at: self.finished_at,
                started_at,
                schema: store::SCHEMA,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_processs_own_or_128_plus_the_signal() {
        assert_eq!(code(0), 0);
        assert_eq!(code(3 << 8), 3);
        assert_eq!(code(255 << 8), 255);
        assert_eq!(code(libc::SIGKILL), 137);
        assert_eq!(code(libc::SIGSEGV | 0x80), 139, "with a core dump");
    }

    #[test]
    fn reasons_follow_code_and_oom() {
        let exit = |code, oom_killed, start_failed| Exit {
            code,
            oom_killed,
            seccomp_killed: false,
            message: String::new(),
            start_failed,
            finished_at: 1,
        };
        assert_eq!(exit(0, false, false).reason(), "Completed");
        assert_eq!(exit(0, true, false).reason(), "Completed");
        assert_eq!(exit(137, true, false).reason(), "OOMKilled");
        assert_eq!(exit(137, false, false).reason(), "Error");
        assert_eq!(exit(128, false, true).reason(), "StartError");
        let ended = Exit {
            seccomp_killed: true,
            ..exit(137, false, false)
        };
        assert_eq!(ended.reason(), "seccomp killed");
    }
}
