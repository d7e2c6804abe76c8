//! Capabilities: what the spec asks for, as far as this machine has it.

use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys::{self, CapSets};
use oci_spec::runtime::{Capabilities, LinuxCapabilities};

/// By number, from capability 0 on.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub const SYS_ADMIN: u64 = 1 << 21;

/// The five sets of a process as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Sets {
    /// No section means no capabilities.
    pub fn of(spec: Option<&LinuxCapabilities>) -> Result<Sets> {
        let Some(spec) = spec else { return Ok(Sets::default()) };
        Ok(Sets {
            bounding: bits(spec.bounding().as_ref())?,
            effective: bits(spec.effective().as_ref())?,
            permitted: bits(spec.permitted().as_ref())?,
            inheritable: bits(spec.inheritable().as_ref())?,
            ambient: bits(spec.ambient().as_ref())?,
        })
    }

    /// Drop everything else from the bounding set; while this process is still root.
    pub fn limit_bounding(&self) -> Result<()> {
        for cap in 0..64 {
            if self.bounding & 1 << cap != 0 {
                continue;
            }
            match sys::prctl(libc::PR_CAPBSET_READ, cap, 0) {
                Ok(0) => {}
                Ok(_) => sys::prctl(libc::PR_CAPBSET_DROP, cap, 0)
                    .map(drop)
                    .context(|| format!("drop capability {cap}"))?,
                // Past the last capability that this kernel knows.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Set the other sets. `keep` stays effective and permitted on top, as far as it is there.
    pub fn apply(&self, keep: u64) -> Result<()> {
        let available = sys::capget().context(|| "read capabilities".into())?.permitted;
        let sets = CapSets {
            effective: (self.effective & self.permitted | keep) & available,
            permitted: (self.permitted | keep) & available,
            inheritable: self.inheritable & available,
        };
        sys::capset(&sets).context(|| "set capabilities".into())?;
        let ambient = libc::PR_CAP_AMBIENT;
        sys::prctl(ambient, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)
            .context(|| "clear ambient capabilities".into())?;
        let raise = self.ambient & sets.inheritable & self.permitted & available;
        for cap in (0..64).filter(|cap| raise & 1 << cap != 0) {
            sys::prctl(ambient, libc::PR_CAP_AMBIENT_RAISE as u64, cap)
                .context(|| format!("raise ambient capability {cap}"))?;
        }
        Ok(())
    }

    /// After [`Sets::apply`] with `keep`: give up what was kept.
    pub fn give_up(&self, kept: u64) -> Result<()> {
        let mut sets = sys::capget().context(|| "read capabilities".into())?;
        sets.permitted &= self.permitted | !kept;
        sets.effective &= self.effective | !kept;
        sets.effective &= sets.permitted;
        sys::capset(&sets).context(|| "give up capabilities".into())
    }
}

fn bits(set: Option<&Capabilities>) -> Result<u64> {
    set.into_iter()
        .flatten()
        .try_fold(0, |bits, capability| Ok(bits | 1 << number(&capability.to_string())?))
}

/// Number of a capability, however the name is spelt: "CAP_SYS_ADMIN", "SYS_ADMIN", "SysAdmin".
fn number(name: &str) -> Result<usize> {
    let plain = |text: &str| text.replace('_', "").to_uppercase();
    let wanted = plain(name);
    let wanted = wanted.strip_prefix("CAP").unwrap_or(&wanted);
    let found = NAMES.iter().position(|known| plain(known) == wanted);
    found.ok_or_else(|| Error::InvalidSpec(format!("unknown capability {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_spec_library_are_known() {
        let json = r#"{"bounding":["CAP_CHOWN","CAP_SYS_ADMIN","CAP_CHECKPOINT_RESTORE","CAP_NET_BIND_SERVICE"]}"#;
        let spec: LinuxCapabilities = serde_json::from_str(json).unwrap();
        assert_eq!(
            Sets::of(Some(&spec)).unwrap().bounding,
            1 | SYS_ADMIN | 1 << 40 | 1 << 10
        );
        assert!(number("CAP_NO_SUCH").is_err());
        assert_eq!(number("CHECKPOINT_RESTORE").unwrap(), 40);
    }
}
