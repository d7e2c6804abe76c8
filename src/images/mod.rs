pub mod rootfs;
pub mod unpack;
