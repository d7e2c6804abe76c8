//! Labels of the security modules, for the moment of execution.

use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use oci_spec::runtime::Process;
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Files below /proc/self and what to write there.
#[derive(Default)]
pub struct Labels(Vec<Label>);

struct Label {
    path: &'static str,
    text: String,
    file: Option<File>,
}

/// A label that this kernel cannot give is an error.
pub fn check_selinux(label: &str) -> Result<()> {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return Ok(());
    }
    Err(Error::Unsupported(format!(
        "SELinux label {label:?}: SELinux is not enabled here"
    )))
}

impl Labels {
    /// Labels of a process. Asking for one that this kernel cannot give is an error: the process would run without
    /// the confinement that was ordered.
    pub fn of(process: &Process) -> Result<Labels> {
        let mut labels = Vec::new();
        let wanted = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
        if let Some(profile) = wanted(process.apparmor_profile()).filter(|profile| profile != "unconfined") {
            let enabled =
                std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"));
            if !enabled {
                return Err(Error::Unsupported(format!(
                    "AppArmor profile {profile:?}: AppArmor is not enabled here"
                )));
            }
            let own = Path::new("/proc/self/attr/apparmor/exec").exists();
            let path = if own {
                "self/attr/apparmor/exec"
            } else {
                "self/attr/exec"
            };
            labels.push(Label {
                path,
                text: format!("exec {profile}"),
                file: None,
            });
        }
        if let Some(label) = wanted(process.selinux_label()) {
            check_selinux(&label)?;
            labels.push(Label {
                path: "self/attr/exec",
                text: label,
                file: None,
            });
        }
        Ok(Labels(labels))
    }

    /// Open the files through the host's procfs, by the process that will write them: the container's own could lead
    /// anywhere.
    pub fn open(&mut self, procfs: BorrowedFd) -> Result<()> {
        for label in &mut self.0 {
            let path = Path::new(label.path);
            let file = sys::openat2(procfs, path, libc::O_WRONLY, 0, libc::RESOLVE_BENEATH);
            label.file = Some(
                file.context(|| format!("open the file for label {:?}", label.text))?
                    .into(),
            );
        }
        Ok(())
    }

    /// Write them.
    pub fn write(&mut self) -> Result<()> {
        for label in &mut self.0 {
            let what = || format!("set label {:?}", label.text);
            let mut file = label
                .file
                .take()
                .ok_or_else(|| Error::Failed(format!("{}: not opened", what())))?;
            file.write_all(label.text.as_bytes()).context(what)?;
        }
        Ok(())
    }
}
