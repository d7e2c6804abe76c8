//! Device rules on cgroup v2: a small eBPF program per cgroup.
//!
//! The kernel calls the program at each open and mknod with the kind of access and device numbers. Rules become a chain
//! of comparisons, last rule first, because the last match decides.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use super::{
    Error, Result,
    devices::{ALL_ACCESS, Kind, Rule},
};

const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_PROG_GET_FD_BY_ID: i32 = 13;
const BPF_PROG_QUERY: i32 = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Replaces the device rules of the cgroup at `dir`. Programs of the cgroups above stay in force.
pub(super) fn restrict_devices(dir: &Path, rules: &[Rule]) -> Result<()> {
    let cgroup = File::open(dir).map_err(|e| Error::io("open cgroup", dir, e))?;
    let fail = |attempt: &str, e: io::Error| match e.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => Error::Unsupported(format!(
            "{attempt} {}: the kernel lacks device programs: {e}",
            dir.display()
        )),
        _ => Error::io(attempt, dir, e),
    };
    let old = attached(&cgroup).map_err(|e| fail("list device programs of cgroup", e))?;
    // The new program comes before the old one goes, so that the cgroup is never open.
    if !rules.last().is_some_and(|r| r.allow && r.is_total()) {
        let program = load(&assemble(rules)).map_err(|e| fail("load device program for cgroup", e))?;
        attach(&cgroup, &program).map_err(|e| fail("attach device program to cgroup", e))?;
    }
    for id in old {
        detach(&cgroup, id).map_err(|e| fail("detach device program from cgroup", e))?;
    }
    Ok(())
}

/// One instruction: opcode, destination and source register, jump offset, immediate.
fn insn(op: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
    u64::from(op)
        | u64::from(dst & 0xf) << 8
        | u64::from(src & 0xf) << 12
        | u64::from(off as u16) << 16
        | u64::from(imm as u32) << 32
}

const LOAD_WORD: u8 = 0x61;
const MOV_IMM: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const AND_IMM: u8 = 0x57;
const SHIFT_RIGHT_IMM: u8 = 0x77;
const JUMP_EQ_IMM: u8 = 0x15;
const JUMP_NE_IMM: u8 = 0x55;
const JUMP_NE_REG: u8 = 0x5d;
/// Compares the lower halves, so that a number above 2^31 is not sign-extended.
const JUMP32_NE_IMM: u8 = 0x56;
const EXIT: u8 = 0x95;

/// The program: r2 is the device's type, r3 the access, r4 and r5 major and minor.
fn assemble(rules: &[Rule]) -> Vec<u64> {
    let mut out = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(MOV_REG, 3, 2, 0, 0),
        insn(AND_IMM, 2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT_IMM, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    let mut ended = false;
    for rule in rules.iter().rev() {
        let checks = checks(rule);
        // What a jump of check `i` skips: the checks after it and the two instructions of the verdict.
        let total = checks.len();
        for (at, check) in checks.into_iter().enumerate() {
            let skip = (total - at + 1) as u64;
            let jumps = matches!(check as u8, JUMP_EQ_IMM | JUMP_NE_IMM | JUMP_NE_REG | JUMP32_NE_IMM);
            out.push(if jumps { check | skip << 16 } else { check });
        }
        out.push(insn(MOV_IMM, 0, 0, 0, i32::from(rule.allow)));
        out.push(insn(EXIT, 0, 0, 0, 0));
        if rule.is_total() {
            // The verifier refuses instructions that can never run.
            ended = true;
            break;
        }
    }
    if !ended {
        out.push(insn(MOV_IMM, 0, 0, 0, 0));
        out.push(insn(EXIT, 0, 0, 0, 0));
    }
    out
}

/// Instructions that go on if the rule matches; jump offsets are filled in later.
fn checks(rule: &Rule) -> Vec<u64> {
    let mut out = Vec::new();
    match rule.kind {
        Kind::All => {}
        Kind::Block => out.push(insn(JUMP_NE_IMM, 2, 0, 0, 1)),
        Kind::Char => out.push(insn(JUMP_NE_IMM, 2, 0, 0, 2)),
    }
    if rule.access != ALL_ACCESS {
        out.push(insn(MOV_REG, 1, 3, 0, 0));
        out.push(insn(AND_IMM, 1, 0, 0, i32::from(rule.access)));
        // To allow, all that is wanted must be granted; to deny, one forbidden part is enough.
        out.push(match rule.allow {
            true => insn(JUMP_NE_REG, 1, 3, 0, 0),
            false => insn(JUMP_EQ_IMM, 1, 0, 0, 0),
        });
    }
    for (register, number) in [(4, rule.major), (5, rule.minor)] {
        if let Some(number) = number {
            out.push(insn(JUMP32_NE_IMM, register, 0, 0, number as i32));
        }
    }
    out
}

/// The kernel's `union bpf_attr` for the commands used here, as bytes: newer fields are zero.
#[repr(C, align(8))]
struct Attr([u8; 72]);

impl Attr {
    fn new(words: &[(usize, u32)], longs: &[(usize, u64)]) -> Attr {
        let mut attr = Attr([0; 72]);
        for (at, word) in words {
            attr.0[*at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (at, long) in longs {
            attr.0[*at..at + 8].copy_from_slice(&long.to_ne_bytes());
        }
        attr
    }
}

fn bpf(command: i32, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes at most `size` bytes of `attr`; each caller keeps alive for the call the
    // buffers whose addresses it put in.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_mut_ptr(), attr.0.len()) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc as i32)
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: bpf(2) has just returned this descriptor, close-on-exec, to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let words = [(0, PROG_TYPE_CGROUP_DEVICE), (4, program.len() as u32)];
    let longs = [(8, program.as_ptr() as u64), (16, license.as_ptr() as u64)];
    bpf(BPF_PROG_LOAD, &mut Attr::new(&words, &longs)).map(owned)
}

fn attach(cgroup: &File, program: &OwnedFd) -> io::Result<()> {
    let (cgroup, program) = (cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let words = [(0, cgroup), (4, program), (8, ATTACH_CGROUP_DEVICE), (12, ALLOW_MULTI)];
    bpf(BPF_PROG_ATTACH, &mut Attr::new(&words, &[])).map(drop)
}

/// Ids of the programs attached to this very cgroup.
fn attached(cgroup: &File) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let words = [
        (0, cgroup.as_raw_fd() as u32),
        (4, ATTACH_CGROUP_DEVICE),
        (24, ids.len() as u32),
    ];
    let mut attr = Attr::new(&words, &[(16, ids.as_mut_ptr() as u64)]);
    bpf(BPF_PROG_QUERY, &mut attr)?;
    let count = u32::from_ne_bytes([attr.0[24], attr.0[25], attr.0[26], attr.0[27]]) as usize;
    Ok(ids[..count.min(ids.len())].to_vec())
}

fn detach(cgroup: &File, id: u32) -> io::Result<()> {
    let program = match bpf(BPF_PROG_GET_FD_BY_ID, &mut Attr::new(&[(0, id)], &[])) {
        Ok(fd) => owned(fd),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        Err(e) => return Err(e),
    };
    let words = [
        (0, cgroup.as_raw_fd() as u32),
        (4, program.as_raw_fd() as u32),
        (8, ATTACH_CGROUP_DEVICE),
    ];
    match bpf(BPF_PROG_DETACH, &mut Attr::new(&words, &[])) {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::devices::READ;

    const DENY_ALL: Rule = Rule {
        allow: false,
        kind: Kind::All,
        major: None,
        minor: None,
        access: ALL_ACCESS,
    };

    #[test]
    fn instructions_are_packed_as_the_kernel_reads_them() {
        assert_eq!(
            insn(LOAD_WORD, 2, 1, 0, 0).to_le_bytes(),
            [0x61, 0x12, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(
            insn(JUMP_NE_IMM, 2, 0, 3, -1).to_le_bytes(),
            [0x55, 0x02, 3, 0, 0xff, 0xff, 0xff, 0xff]
        );
    }

    #[test]
    fn the_verdict_is_reached_or_skipped_as_a_whole() {
        let null = Rule {
            allow: true,
            kind: Kind::Char,
            major: Some(1),
            minor: Some(3),
            access: READ,
        };
        let program = assemble(&[DENY_ALL, null]);
        // Six loads, six checks, verdict of two, then the total rule's verdict of two.
        assert_eq!(program.len(), 6 + 6 + 2 + 2);
        let jump_of = |at: usize| (program[at] >> 16) as u16;
        // The type check at 6 must land on 14: the offset counts from the next instruction.
        assert_eq!(jump_of(6), 7);
        assert_eq!(jump_of(11), 2);
    }
}
