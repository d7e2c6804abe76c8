//! Linux security modules: what AppArmor and SELinux of this machine can do for containers.
//!
//! The room knows the modules' files and programs, profiles and labels. It decides nothing about pods: which profile or
//! label a container gets is for `containers` and `sandbox` to say. It asks no other room.

pub mod apparmor;
pub mod selinux;
