//! Names of devices, and where a container asks for them.

use wharf_proto::cri;

use super::Error;

/// Annotations with this prefix name devices, separated by commas.
const ANNOTATION: &str = "cdi.k8s.io/";

/// The devices that a container asks for: those of the field, then those of annotations, each once.
///
/// # Errors
/// A name that is not `vendor/class=device`.
pub fn requested(config: &cri::ContainerConfig) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str, place: &str| {
        split(name).map_err(|reason| Error::Name {
            name: name.to_owned(),
            place: place.to_owned(),
            reason,
        })?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        Ok(())
    };
    for device in &config.cdi_devices {
        add(&device.name, "")?;
    }
    let mut annotations: Vec<_> = config
        .annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .collect();
    annotations.sort();
    for (key, value) in annotations {
        for name in value.split(',') {
            add(name, &format!(" in annotation {key}"))?;
        }
    }
    Ok(names)
}

/// Vendor, class and device of a qualified name.
fn split(name: &str) -> Result<(&str, &str, &str), &'static str> {
    let (kind, device) = name.split_once('=').ok_or("not of the form vendor/class=device")?;
    let (vendor, class) = check_kind(kind)?;
    check_device(device)?;
    Ok((vendor, class, device))
}

/// The two parts of `vendor/class`, by the rules of the CDI specification.
pub(super) fn check_kind(kind: &str) -> Result<(&str, &str), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("its kind is not vendor/class")?;
    let word = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
    };
    match (word(vendor), word(class)) {
        (true, true) => Ok((vendor, class)),
        (false, _) => Err("its vendor is not made of letters, digits and _-. between a letter and a letter or digit"),
        (_, false) => Err("its class is not made of letters, digits and _-. between a letter and a letter or digit"),
    }
}

/// A device's name within its kind.
pub(super) fn check_device(name: &str) -> Result<(), &'static str> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c));
    match good {
        true => Ok(()),
        false => Err("its device name is not made of letters, digits and _-.: between letters or digits"),
    }
}
