//! Resource limits, clamped where the machine does not let them be raised.

use crate::runtime::error::Context;
use crate::runtime::{Error, Result};
use crate::sys;
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

/// Limits as the kernel counts them: resource, soft, hard.
pub type Limits = Vec<(i32, u64, u64)>;

pub fn prepare(spec: &[PosixRlimit]) -> Result<Limits> {
    let mut limits: Limits = Vec::new();
    for limit in spec {
        let resource = resource(limit.typ());
        if limits.iter().any(|(seen, _, _)| *seen == resource) {
            return Err(Error::InvalidSpec(format!("rlimit {} is given twice", limit.typ())));
        }
        limits.push((resource, limit.soft(), limit.hard()));
    }
    Ok(limits)
}

/// Set the limits of a process (0: the caller). Without the privilege to raise a hard limit the highest that is
/// allowed is taken.
pub fn apply(pid: i32, limits: &Limits) -> Result<()> {
    for &(resource, soft, hard) in limits {
        let what = || format!("set rlimit {resource} to {soft}:{hard}");
        match sys::setrlimit(pid, resource, soft, hard) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                let (_, most) = sys::getrlimit(resource).context(what)?;
                let hard = hard.min(most);
                sys::setrlimit(pid, resource, soft.min(hard), hard).context(what)?;
            }
            result => result.context(what)?,
        }
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> i32 {
    (match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }) as i32
}
