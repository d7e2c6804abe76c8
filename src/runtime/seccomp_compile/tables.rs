//! System call numbers by name, from the kernel's headers up to Linux 6.17.

use std::collections::HashMap;

/// A set of system call numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

/// x32 calls carry this bit.
pub const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Abi = Abi::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Abi = Abi::Aarch64;

    /// AUDIT_ARCH value in `struct seccomp_data`.
    pub fn token(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Arguments are 64 bits wide.
    pub fn wide(self) -> bool {
        matches!(self, Abi::X86_64 | Abi::Aarch64)
    }

    /// Added to the numbers of the table.
    pub fn base(self) -> u32 {
        if self == Abi::X32 { X32_BIT } else { 0 }
    }

    pub fn table(self) -> HashMap<&'static str, u32> {
        self.lines().collect()
    }

    /// Names and numbers.
    pub fn lines(self) -> impl Iterator<Item = (&'static str, u32)> {
        let text = match self {
            Abi::X86_64 => include_str!("syscalls/x86_64"),
            Abi::X86 => include_str!("syscalls/x86"),
            Abi::X32 => include_str!("syscalls/x32"),
            Abi::Aarch64 => include_str!("syscalls/aarch64"),
            Abi::Arm => include_str!("syscalls/arm"),
        };
        text.lines().filter_map(move |line| {
            let (name, number) = line.split_once(' ')?;
            Some((name, number.parse::<u32>().ok()? + self.base()))
        })
    }
}

/// On 32-bit x86 these calls also exist as operations of `socketcall` or `ipc`: the call and the operation's number.
pub fn multiplexed(name: &str) -> Option<(&'static str, u64)> {
    const SOCKETCALL: [&str; 20] = [
        "socket",
        "bind",
        "connect",
        "listen",
        "accept",
        "getsockname",
        "getpeername",
        "socketpair",
        "send",
        "recv",
        "sendto",
        "recvfrom",
        "shutdown",
        "setsockopt",
        "getsockopt",
        "sendmsg",
        "recvmsg",
        "accept4",
        "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u64); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if let Some(at) = SOCKETCALL.iter().position(|known| *known == name) {
        return Some(("socketcall", at as u64 + 1));
    }
    IPC.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| ("ipc", *number))
}
