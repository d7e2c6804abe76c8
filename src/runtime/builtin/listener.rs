//! Hands a seccomp filter's descriptor to who listens to it: the runtime specification's "container process state"
//! (config-linux.md), over the stream socket of the profile's `listenerPath`.
//!
//! The process sends it itself, right after the filter has begun to hold: until somebody has the descriptor, a call that is told of
//! waits for ever. So a profile must let `sendmsg` pass; others are refused ([`check`]). runc and crun send from outside.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt as _, net::UnixStream},
    },
};

use nix::{
    fcntl::readlinkat,
    sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg},
};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde_json::{Value, json};

use super::hooks;
use crate::runtime::{Error, Result, error::Context as _};

/// Whether the filter can be handed over from below itself.
///
/// # Errors
/// When it would hold that up.
pub fn check(profile: &LinuxSeccomp) -> Result<()> {
    if profile.listener_path().is_none() {
        return Ok(());
    }
    let mut rules = profile.syscalls().iter().flatten();
    let own = rules.find(|rule| rule.names().iter().any(|name| name == "sendmsg"));
    let action = own.map_or(profile.default_action(), |rule| rule.action());
    match action {
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog => Ok(()),
        _ => Err(Error::Unsupported(
            "linux.seccomp.listenerPath with a profile that does not allow sendmsg".into(),
        )),
    }
}

/// A connection to the listener, and what it will be told.
pub struct Listener {
    socket: UnixStream,
    /// The container process state, but for what is known in the process only.
    told: Value,
}

impl Listener {
    /// Connects, if the profile has a listener.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(profile: &LinuxSeccomp) -> Result<Option<Self>> {
        let Some(path) = profile.listener_path() else {
            return Ok(None);
        };
        let socket = UnixStream::connect(path).context(|| format!("connect to seccomp listener {}", path.display()))?;
        let mut told = json!({ "fds": ["seccompFd"] });
        if let Some(metadata) = profile.listener_metadata() {
            told["metadata"] = metadata.as_str().into();
        }
        Ok(Some(Self { socket, told }))
    }

    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Adds the container's state. `init`: its first process, if it is not this one.
    pub fn describe(&mut self, state: &hooks::State, init: Option<i32>) {
        let status = if init.is_some() { "running" } else { "creating" };
        let state = state.value(status, init.unwrap_or(0));
        self.told["ociVersion"] = state["ociVersion"].clone();
        self.told["state"] = state;
    }

    /// Adds this process's number, as the node's `procfs` has it. To be called in the process.
    ///
    /// # Errors
    /// When it can't be found.
    pub fn find_pid(&mut self, procfs: BorrowedFd) -> Result<()> {
        let what = || "find the process's number for the seccomp listener".to_string();
        let own = readlinkat(procfs, "self").context(what)?;
        let text = std::str::from_utf8(own.as_bytes()).ok();
        let pid: i32 = text
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| Error::Failed(format!("{}: {own:?} is none", what())))?;
        self.told["pid"] = pid.into();
        let state = self.told.get_mut("state").and_then(Value::as_object_mut);
        if let Some(state) = state {
            state.entry("pid").or_insert_with(|| pid.into());
        }
        Ok(())
    }

    /// Ready to be sent: composed before the filter holds.
    pub fn text(&self) -> Vec<u8> {
        self.told.to_string().into_bytes()
    }

    /// Sends the descriptor with the first bytes.
    pub fn send(&self, text: &[u8], filter: &OwnedFd) -> io::Result<()> {
        let fds = [filter.as_raw_fd()];
        let send = |text: &[u8], rights: &[ControlMessage]| {
            sendmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &[IoSlice::new(text)],
                rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            )
        };
        let mut sent = send(text, &[ControlMessage::ScmRights(&fds)])?;
        // Who has the descriptor may not care for the rest.
        while sent < text.len() {
            match send(&text[sent..], &[]) {
                Ok(more) => sent += more,
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(default: &str, rules: &str) -> LinuxSeccomp {
        let text = format!(r#"{{"defaultAction": "{default}", "listenerPath": "/run/x", "syscalls": [{rules}]}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_profile_must_let_its_own_hand_over_pass() {
        let told = r#"{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}"#;
        let sends = r#"{"names": ["sendto", "sendmsg"], "action": "SCMP_ACT_ALLOW"}"#;
        check(&profile("SCMP_ACT_ALLOW", told)).unwrap();
        check(&profile("SCMP_ACT_ERRNO", &format!("{told}, {sends}"))).unwrap();
        check(&profile("SCMP_ACT_ERRNO", told)).unwrap_err();
        let blocks = told.replace("mkdir", "sendmsg");
        assert!(
            check(&profile("SCMP_ACT_ALLOW", &blocks))
                .unwrap_err()
                .to_string()
                .contains("sendmsg")
        );
    }
}
