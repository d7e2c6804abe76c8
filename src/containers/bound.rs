//! Devices of containers in user namespaces, in which nobody can make device nodes: the node's own are mounted in their
//! places. That is done here and not by the runtime, for some look for a node only at the path that it has in the container, and
//! Debian's crun (1.8) can do without any device only.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::stat::makedev;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, Spec};

/// Where a device's node is in the container, and where on the machine.
pub(super) type Place = (PathBuf, PathBuf);

/// What every runtime puts into a container's /dev by itself, in the way that it can.
const BY_ITSELF: [&str; 7] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    // The container's terminals are its own.
    "/dev/ptmx",
];

/// Makes mounts of the spec's devices. Those that are in no place of `places` (plugins name none) are looked for at the
/// path that they have in the container. Pipes stay: they can be made. Blocking.
///
/// # Errors
/// When the machine has something else there, by name.
pub(super) fn mount_devices(spec: &mut Spec, places: &[Place]) -> Result<(), String> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let (bound, kept): (Vec<LinuxDevice>, Vec<LinuxDevice>) = linux
        .devices()
        .iter()
        .flatten()
        .cloned()
        .partition(|device| device.typ() != LinuxDeviceType::P);
    linux.set_devices(Some(kept).filter(|kept| !kept.is_empty()));
    let mut mounts = Vec::new();
    for device in bound {
        if BY_ITSELF.iter().any(|path| device.path() == Path::new(path)) {
            continue;
        }
        // A later one replaces an earlier, as it does among the devices.
        let place = places.iter().rev().find(|(inside, _)| inside == device.path());
        let source = place.map_or(device.path(), |(_, source)| source);
        check(&device, source)?;
        let mut mount = Mount::default();
        mount
            .set_destination(device.path().clone())
            .set_typ(Some("bind".to_owned()))
            .set_source(Some(source.clone()))
            .set_options(Some(vec!["bind".to_owned(), "rprivate".to_owned()]));
        mounts.push(mount);
    }
    if !mounts.is_empty() {
        spec.mounts_mut().get_or_insert_default().extend(mounts);
    }
    Ok(())
}

/// Whether the node is that device.
fn check(device: &LinuxDevice, source: &Path) -> Result<(), String> {
    let inside = device.path().display();
    let wrong = |why: String| {
        format!(
            "device {inside}: a pod with a user namespace gets the node's own device, and {}: {why}",
            source.display()
        )
    };
    let metadata = fs::symlink_metadata(source).map_err(|error| wrong(error.to_string()))?;
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        _ => libc::S_IFCHR,
    };
    let number = |number: i64| u64::try_from(number).unwrap_or(u64::MAX);
    let same = metadata.mode() & libc::S_IFMT == kind
        && metadata.rdev() == makedev(number(device.major()), number(device.minor()));
    if same {
        Ok(())
    } else {
        Err(wrong("it is not that device".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(path: &str, kind: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        let mut device = LinuxDevice::default();
        device
            .set_path(path.into())
            .set_typ(kind)
            .set_major(major)
            .set_minor(minor);
        device
    }

    fn mounted(devices: Vec<LinuxDevice>, places: &[Place]) -> Result<Spec, String> {
        let mut spec = Spec::default();
        spec.linux_mut().get_or_insert_default().set_devices(Some(devices));
        spec.set_mounts(None);
        mount_devices(&mut spec, places).map(|()| spec)
    }

    #[test]
    fn devices_become_mounts_of_the_nodes_own() {
        let c = LinuxDeviceType::C;
        let places = [("/dev/mine".into(), "/dev/zero".into())];
        let spec = mounted(
            vec![
                device("/dev/mine", c, 1, 5),
                device("/dev/null", c, 1, 3),
                device("/dev/pipe", LinuxDeviceType::P, 0, 0),
            ],
            &places,
        )
        .unwrap();
        let mounts = spec.mounts().clone().unwrap();
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].destination(), Path::new("/dev/mine"));
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/dev/zero")));
        let left = spec.linux().as_ref().unwrap().devices().clone().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].path(), Path::new("/dev/pipe"));
    }

    #[test]
    fn what_is_not_that_device_is_refused_by_name() {
        let c = LinuxDeviceType::C;
        for (path, source) in [
            ("/dev/a", "/dev/null"),
            ("/dev/b", "/etc/passwd"),
            ("/dev/c", "/dev/no-such"),
        ] {
            let places = [(path.into(), source.into())];
            let error = mounted(vec![device(path, c, 1, 5)], &places).unwrap_err();
            assert!(error.contains(path) && error.contains(source), "{error}");
        }
        let error = mounted(vec![device("/dev/no-such", c, 1, 5)], &[]).unwrap_err();
        assert!(error.contains("/dev/no-such"), "{error}");
        let block = vec![device("/dev/zero2", LinuxDeviceType::B, 1, 5)];
        assert!(mounted(block, &[("/dev/zero2".into(), "/dev/zero".into())]).is_err());
    }
}
