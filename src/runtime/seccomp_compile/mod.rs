//! Compiles an OCI seccomp profile to the kernel's filter program, and keeps compiled programs as files.
//!
//! The meaning follows libseccomp as runc uses it: unknown system call names are skipped, an unconditional rule beats
//! conditional ones of the same call, an architecture that is not listed ends the process, and a call newer than the
//! newest one that the profile names answers ENOSYS, so that programs fall back to older calls. seccompiler (0.5) was
//! looked at: it has one action besides the default and one architecture for a filter, so Docker's profile does not fit.

mod emit;
mod rules;
mod tables;

use super::error::Context;
use super::{Error, Result};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use std::io::Write;
use std::path::Path;
use tables::Abi;

/// Instructions that the kernel accepts in one program (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// Compile a profile to an array of `struct sock_filter` in native byte order.
///
/// # Errors
/// [`Error::InvalidSpec`] for values out of range.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut sections = Vec::new();
    for (token, abis) in group(&abis(profile)) {
        let mut leaves = Vec::new();
        for abi in &abis {
            rules::collect(profile, *abi, default, &mut leaves)?;
        }
        sections.push((token, rules::close(leaves, &abis, default)));
    }
    let program = emit::program(&sections);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::InvalidSpec(format!(
            "seccomp profile needs {} instructions",
            program.len()
        )));
    }
    Ok(program.iter().flat_map(emit::Instruction::bytes).collect())
}

/// Flags of seccomp(2) that the profile asks for. TSYNC has no meaning for a process with one thread.
pub fn flags(profile: &LinuxSeccomp) -> Result<u64> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::Unsupported("seccomp flag WAIT_KILLABLE_RECV".into()));
            }
        };
    }
    Ok(flags)
}

/// Name of a system call, by the architecture and number that a filter is given. The kernel's tables are in order, and
/// few are asked for: they are searched.
pub fn name(arch: u32, number: u32) -> Option<&'static str> {
    let known = [Abi::X86_64, Abi::X32, Abi::X86, Abi::Aarch64, Abi::Arm];
    let abi = known
        .into_iter()
        .find(|abi| abi.token() == arch && (number & tables::X32_BIT) == abi.base())?;
    abi.lines().find_map(|(name, known)| (known == number).then_some(name))
}

/// Names of all system calls of this machine's programs.
pub fn names() -> impl Iterator<Item = &'static str> {
    Abi::NATIVE.lines().map(|(name, _)| name)
}

/// Put a compiled program where [`load`] finds it; a reader sees all of it or nothing.
pub fn save(path: &Path, program: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(program)?;
        std::fs::rename(&temporary, path)
    };
    write().context(|| format!("write seccomp filter {}", path.display()))
}

/// Read a compiled program.
pub fn load(path: &Path) -> Result<Vec<u8>> {
    let program = std::fs::read(path).context(|| format!("read seccomp filter {}", path.display()))?;
    let instruction = size_of::<libc::sock_filter>();
    if program.is_empty() || program.len() % instruction != 0 || program.len() / instruction > MAX_INSTRUCTIONS {
        return Err(Error::InvalidSpec(format!(
            "seccomp filter {} is not a filter program",
            path.display()
        )));
    }
    Ok(program)
}

/// The kernel's 32-bit return value for an action.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    let data = |default: i32| {
        let value = errno.unwrap_or(default as u32);
        u16::try_from(value).map_err(|_| Error::InvalidSpec(format!("seccomp errnoRet {value} is out of range")))
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | u32::from(data(libc::EPERM)?),
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | u32::from(data(libc::EPERM)?),
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    })
}

/// The listed architectures that this machine can run; its own is always among them.
fn abis(profile: &LinuxSeccomp) -> Vec<Abi> {
    let mut abis = vec![Abi::NATIVE];
    for arch in profile.architectures().iter().flatten() {
        let abi = match arch {
            Arch::ScmpArchX86_64 => Abi::X86_64,
            Arch::ScmpArchX86 => Abi::X86,
            Arch::ScmpArchX32 => Abi::X32,
            Arch::ScmpArchAarch64 => Abi::Aarch64,
            Arch::ScmpArchArm => Abi::Arm,
            // Never seen by a filter on the machines that Wharf is built for.
            _ => continue,
        };
        if !abis.contains(&abi) {
            abis.push(abi);
        }
    }
    abis
}

/// x86_64 and x32 share the token that the kernel gives to a filter.
fn group(abis: &[Abi]) -> Vec<(u32, Vec<Abi>)> {
    let mut groups: Vec<(u32, Vec<Abi>)> = Vec::new();
    for abi in abis {
        match groups.iter_mut().find(|(token, _)| *token == abi.token()) {
            Some((_, members)) => members.push(*abi),
            None => groups.push((abi.token(), vec![*abi])),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
