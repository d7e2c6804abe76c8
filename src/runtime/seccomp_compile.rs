//! Compiles an OCI seccomp profile to the kernel's filter program.

use super::Result;
use oci_spec::runtime::LinuxSeccomp;

/// Compile a profile to an array of `struct sock_filter` in native byte order, as stored in the cache.
pub fn compile(_profile: &LinuxSeccomp) -> Result<Vec<u8>> {
    todo!()
}
