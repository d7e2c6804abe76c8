//! Limits that only the machine or the daemon's configuration can judge: CPUs that are there, classes of block I/O,
//! numbers of processes.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxPids, LinuxResources, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, Spec,
};
use wharf_proto::cri::LinuxContainerResources;

use super::{Error, Result, rdt};
use crate::config::{BlockIoClass, Config};

/// Keys of a container's own annotation; of its pod's for one container, to which its name is added; and of its pod's
/// for all, in the order of precedence, as peers read them.
const CLASS_KEYS: [[&str; 3]; 2] = [
    [
        "io.kubernetes.cri.blockio-class",
        "blockio.resources.beta.kubernetes.io/container.",
        "blockio.resources.beta.kubernetes.io/pod",
    ],
    [
        "io.kubernetes.cri.rdt-class",
        "rdt.resources.beta.kubernetes.io/container.",
        "rdt.resources.beta.kubernetes.io/pod",
    ],
];

/// Refuses limits that this machine can't set, or a handler does not allow (no memory limit below `least` bytes), with words that say more than the kernel's "invalid argument" (rows E4
/// and E5).
///
/// # Errors
/// [`Error::Invalid`], which names the field.
pub(super) fn check(limits: &LinuxContainerResources, least: u64) -> Result<()> {
    let invalid = |text: String| Err(Error::Invalid(text));
    if let memory @ 1.. = limits.memory_limit_in_bytes
        && memory.unsigned_abs() < least
    {
        return invalid(format!(
            "memory_limit_in_bytes {memory}: less than {least}, with which no process starts"
        ));
    }
    for (field, list, online, what) in [
        (
            "cpuset_cpus",
            &limits.cpuset_cpus,
            "/sys/devices/system/cpu/online",
            "CPU",
        ),
        (
            "cpuset_mems",
            &limits.cpuset_mems,
            "/sys/devices/system/node/online",
            "memory node",
        ),
    ] {
        if list.is_empty() {
            continue;
        }
        let Some(wanted) = ranges(list) else {
            return invalid(format!("{field} {list:?}: not a list such as \"0-2,4\""));
        };
        // A kernel without the file is asked by setting the limit.
        let Some(there) = fs::read_to_string(online).ok().and_then(|text| ranges(text.trim())) else {
            continue;
        };
        let is_there = |number: u32| there.iter().any(|(first, last)| (*first..=*last).contains(&number));
        for (first, last) in wanted {
            // The first that is absent; what is online is a handful of ranges.
            if let Some(absent) = (first..=last).find(|number| !is_there(*number)) {
                return invalid(format!(
                    "{field} {list:?}: {what} {absent} is not there, this machine has {}",
                    text_of(&there)
                ));
            }
        }
    }
    Ok(())
}

/// Ranges of a list such as `0-2,4`, as the kernel reads it (cpuset(7), "List format").
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| !text.starts_with('+'));
    list.split(',')
        .map(|part| match part.split_once('-') {
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some((first, last))
            }
            None => number(part).map(|one| (one, one)),
        })
        .collect()
}

fn text_of(ranges: &[(u32, u32)]) -> String {
    let one = |(first, last): &(u32, u32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Adds to the spec what comes from the configuration: the limit of processes, and the class of block I/O that the
/// annotations of the container called `name` or of its pod ask for.
///
/// Returns the `tasks` file of the class of cache and memory bandwidth that they ask for, if they do.
///
/// # Errors
/// [`Error::Invalid`] for a class that is not configured or names a device that is not there; see also [`rdt::tasks`].
pub(super) fn apply(
    config: &Config,
    name: &str,
    own: &HashMap<String, String>,
    of_pod: &HashMap<String, String>,
    spec: &mut Spec,
) -> Result<Option<PathBuf>> {
    let class = |keys: [&str; 3]| {
        own.get(keys[0])
            .or_else(|| of_pod.get(&format!("{}{name}", keys[1])))
            .or_else(|| of_pod.get(keys[2]))
            .filter(|class| !class.is_empty())
    };
    let [block_io, rdt] = CLASS_KEYS.map(class);
    let rdt = rdt.map(|class| rdt::tasks(config, class, name)).transpose()?;
    let Some(linux) = spec.linux_mut() else { return Ok(rdt) };
    let resources: &mut LinuxResources = linux.resources_mut().get_or_insert_default();
    if let Some(limit) = config.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit.into());
        resources.set_pids(Some(pids));
    }
    if let Some(class) = block_io {
        resources.set_block_io(Some(self::block_io(config, class, name)?));
    }
    Ok(rdt)
}

/// What a class of block I/O means for the container called `name`.
///
/// # Errors
/// [`Error::Invalid`] for one that is not configured or names a device that is not there.
pub(super) fn block_io(config: &Config, class: &str, name: &str) -> Result<LinuxBlockIo> {
    if let Some(settings) = config.blockio_classes.get(class) {
        return block_io_of(class, settings);
    }
    let known: Vec<_> = config.blockio_classes.keys().map(String::as_str).collect();
    Err(Error::Invalid(format!(
        "block I/O class {class:?} of container {name:?} is not among the configured ones ({})",
        if known.is_empty() {
            "there are none".to_owned()
        } else {
            known.join(", ")
        }
    )))
}

fn block_io_of(class: &str, settings: &BlockIoClass) -> Result<LinuxBlockIo> {
    let rates =
        |map: &std::collections::BTreeMap<std::path::PathBuf, u64>| -> Result<Option<Vec<LinuxThrottleDevice>>> {
            let list: Vec<_> = map
                .iter()
                .map(|(path, rate)| {
                    let failed =
                        |why: String| Error::Invalid(format!("block I/O class {class:?}: {}: {why}", path.display()));
                    let metadata = fs::metadata(path).map_err(|error| failed(error.to_string()))?;
                    if !std::os::unix::fs::FileTypeExt::is_block_device(&metadata.file_type()) {
                        return Err(failed("not a block device".to_owned()));
                    }
                    LinuxThrottleDeviceBuilder::default()
                        .major(nix::sys::stat::major(metadata.rdev()) as i64)
                        .minor(nix::sys::stat::minor(metadata.rdev()) as i64)
                        .rate(*rate)
                        .build()
                        .map_err(|error| failed(error.to_string()))
                })
                .collect::<Result<_>>()?;
            Ok(Some(list).filter(|list| !list.is_empty()))
        };
    let mut out = LinuxBlockIo::default();
    out.set_weight(settings.weight)
        .set_throttle_read_bps_device(rates(&settings.read_bps)?)
        .set_throttle_write_bps_device(rates(&settings.write_bps)?)
        .set_throttle_read_iops_device(rates(&settings.read_iops)?)
        .set_throttle_write_iops_device(rates(&settings.write_iops)?);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_does() {
        assert_eq!(ranges("0"), Some(vec![(0, 0)]));
        assert_eq!(ranges("0-2,4"), Some(vec![(0, 2), (4, 4)]));
        for bad in ["", "a", "3-1", "1,", "-1", "1-", "+1", "0 1", "1--2"] {
            assert_eq!(ranges(bad), None, "{bad:?}");
        }
        assert_eq!(text_of(&[(0, 2), (4, 4)]), "0-2,4");
    }

    #[test]
    fn what_the_machine_does_not_have_is_named() {
        let cpus = |list: &str| LinuxContainerResources {
            cpuset_cpus: list.into(),
            ..Default::default()
        };
        let check = |limits: &LinuxContainerResources| super::check(limits, 512 << 10);
        check(&cpus("0")).unwrap();
        let text = check(&cpus("0,4000-5000")).unwrap_err().to_string();
        assert!(
            text.contains("cpuset_cpus") && text.contains("CPU 4000 is not there"),
            "{text}"
        );
        let text = check(&cpus("0-")).unwrap_err().to_string();
        assert!(text.contains("not a list"), "{text}");
        let tiny = LinuxContainerResources {
            memory_limit_in_bytes: 4096,
            ..Default::default()
        };
        assert!(
            check(&tiny)
                .unwrap_err()
                .to_string()
                .contains("memory_limit_in_bytes 4096")
        );
    }

    #[test]
    fn the_nearest_annotation_names_the_class() {
        let mut config = Config::default();
        for (name, weight) in [("own", 100), ("one", 200), ("all", 300)] {
            let class = BlockIoClass {
                weight: Some(weight),
                ..Default::default()
            };
            config.blockio_classes.insert(name.into(), class);
        }
        config.pids_limit = Some(77);
        let [keys, rdt] = CLASS_KEYS;
        let weight = |own: &[(&str, &str)], pod: &[(&str, &str)]| {
            let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
                pairs
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect()
            };
            let mut spec = Spec::default();
            apply(&config, "main", &map(own), &map(pod), &mut spec)?;
            let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
            assert_eq!(resources.pids().unwrap().limit(), 77);
            Ok::<_, Error>(resources.block_io().as_ref().and_then(|io| io.weight()))
        };
        let one = format!("{}main", keys[1]);
        let pod = [(one.as_str(), "one"), (keys[2], "all")];
        assert_eq!(weight(&[(keys[0], "own")], &pod).unwrap(), Some(100));
        assert_eq!(weight(&[], &pod).unwrap(), Some(200));
        assert_eq!(weight(&[], &[(keys[2], "all")]).unwrap(), Some(300));
        assert_eq!(weight(&[], &[]).unwrap(), None);
        assert!(
            weight(&[(keys[0], "none")], &[])
                .unwrap_err()
                .to_string()
                .contains("all, one, own")
        );
        // Neither the class nor, mostly, any.
        assert!(matches!(weight(&[], &[(rdt[2], "no such")]), Err(Error::Invalid(_))));
    }
}
