//! systemd's names: how slices nest, which unit a container is, and where both lie in the cgroup file system.

use super::super::{Error, Result};

/// Longest name of a unit, bytes (systemd's `UNIT_NAME_MAX`).
const LONGEST: usize = 255;
const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";

fn invalid(name: &str, reason: &'static str) -> Error {
    Error::InvalidPath {
        path: name.to_owned(),
        reason,
    }
}

/// Where a slice lies below the hierarchy's root, without leading slash: `a-b.slice` is `a.slice/a-b.slice`
/// (systemd.slice(5)). The root slice `-.slice` is empty.
///
/// # Errors
/// [`Error::InvalidPath`] for what is no slice's name.
pub fn slice_path(slice: &str) -> Result<String> {
    let stem = slice
        .strip_suffix(SLICE)
        .ok_or_else(|| invalid(slice, "is not the name of a slice"))?;
    if slice.len() > LONGEST {
        return Err(invalid(slice, "is longer than systemd takes"));
    }
    if stem == "-" {
        return Ok(String::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(invalid(slice, "has an empty part between dashes"));
    }
    if !stem.bytes().all(is_unit_byte) {
        return Err(invalid(slice, "has a character that systemd does not take"));
    }
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    let levels: Vec<_> = ends.map(|end| format!("{}{SLICE}", &stem[..end])).collect();
    Ok(levels.join("/"))
}

/// The slice that a CRI `cgroup_parent` means (contract rule 31). Kubelet with the systemd driver gives the path of a slice,
/// whose last part is its name. Any other path is turned into a name as kubelet turns its own: parts are joined by dashes.
///
/// # Errors
/// [`Error::InvalidPath`] if no slice can have that name.
pub fn slice_of(parent: &str) -> Result<String> {
    // What leaves the hierarchy is refused as with the other driver.
    let clean = super::super::path::sanitise(parent)?;
    let last = clean.rsplit('/').next().unwrap_or_default();
    let name = match last.ends_with(SLICE) {
        true => last.to_owned(),
        false => {
            let parts: Vec<_> = clean.split('/').filter(|part| !part.is_empty()).map(escape).collect();
            if parts.is_empty() {
                return Err(invalid(parent, "the root cgroup belongs to the machine"));
            }
            format!("{}{SLICE}", parts.join("-"))
        }
    };
    if slice_path(&name)?.is_empty() {
        return Err(invalid(parent, "the root slice belongs to the machine"));
    }
    Ok(name)
}

/// One part of a path as a part of a slice's name. A dash would begin a new level.
fn escape(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'-' => out.push('_'),
            byte if is_unit_byte(byte) && byte != b'\\' => out.push(char::from(byte)),
            byte => out.push_str(&format!("\\x{byte:02x}")),
        }
    }
    out
}

fn is_unit_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\')
}

/// A scope and the slice that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Such as `kubepods-pod1.slice`.
    pub slice: String,
    /// Such as `wharf-0123.scope`.
    pub unit: String,
}

impl Scope {
    /// The scope of a container: `wharf-ID.scope`, as every runtime makes it of [`Scope::spec_path`].
    #[must_use]
    pub fn of_container(slice: &str, id: &str) -> Scope {
        Scope {
            slice: slice.to_owned(),
            unit: format!("{}-{id}{SCOPE}", super::PREFIX),
        }
    }

    /// The scope of the monitors of pods whose own slice is `slice`: `wharf-monitors.scope` in `wharf.slice`.
    #[must_use]
    pub fn of_monitors(slice: &str) -> Scope {
        Scope {
            slice: slice.to_owned(),
            unit: format!("{}-monitors{SCOPE}", slice.trim_end_matches(SLICE)),
        }
    }

    /// Reads `slice:prefix:name`, the form of `cgroupsPath` in a spec for runtimes that ask systemd.
    ///
    /// # Errors
    /// [`Error::InvalidPath`] for anything else.
    pub fn of_spec(path: &str) -> Result<Scope> {
        let parts: Vec<_> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(invalid(path, "is not of the form slice:prefix:name"));
        };
        slice_path(slice)?;
        let unit = match prefix {
            "" => format!("{name}{SCOPE}"),
            prefix => format!("{prefix}-{name}{SCOPE}"),
        };
        if name.is_empty() || unit.len() > LONGEST || !unit.bytes().all(is_unit_byte) {
            return Err(invalid(path, "names no unit that systemd takes"));
        }
        Ok(Scope {
            slice: slice.to_owned(),
            unit,
        })
    }

    /// As a runtime is told: `slice:wharf:ID`.
    #[must_use]
    pub fn spec_path(slice: &str, id: &str) -> String {
        format!("{slice}:{}:{id}", super::PREFIX)
    }

    /// Where it lies below the hierarchy's root, with a leading slash.
    ///
    /// # Errors
    /// As [`slice_path`].
    pub fn path(&self) -> Result<String> {
        let slice = slice_path(&self.slice)?;
        Ok(match slice.is_empty() {
            true => format!("/{}", self.unit),
            false => format!("/{slice}/{}", self.unit),
        })
    }

    /// The scope at a path as [`Scope::path`] gives it; None for the path of anything else.
    #[must_use]
    pub fn at(path: &str) -> Option<Scope> {
        let (above, unit) = path.rsplit_once('/')?;
        let slice = above.rsplit('/').next().filter(|slice| !slice.is_empty());
        let found = Scope {
            slice: slice.unwrap_or("-.slice").to_owned(),
            unit: unit.to_owned(),
        };
        (unit.ends_with(SCOPE) && found.path().is_ok_and(|own| own == path)).then_some(found)
    }
}

/// The unit whose cgroup lies at `path`, if it is the path of a scope or slice.
pub fn unit_at(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let is_slice = || slice_path(name).is_ok_and(|own| path.trim_start_matches('/') == own);
    (Scope::at(path).is_some() || is_slice()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_nest_by_the_dashes_of_their_names() {
        assert_eq!(slice_path("a.slice").unwrap(), "a.slice");
        assert_eq!(
            slice_path("kubepods-burstable-pod1_2.slice").unwrap(),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
        assert_eq!(slice_path("-.slice").unwrap(), "");
        for bad in [
            "a",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            ".slice",
            "a/b.slice",
            "a b.slice",
        ] {
            assert!(slice_path(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn kubelets_parents_are_slices_and_plain_paths_become_some() {
        let pod = "kubepods-burstable-pod0b3c_1.slice";
        for parent in [
            format!("/kubepods.slice/kubepods-burstable.slice/{pod}"),
            pod.to_owned(),
            "/kubepods/burstable/pod0b3c-1".to_owned(),
        ] {
            assert_eq!(slice_of(&parent).unwrap(), pod, "{parent}");
        }
        assert_eq!(slice_of("/a b/c").unwrap(), "a\\x20b-c.slice");
        for bad in ["", "/", "/..", "/-.slice", "/a--b.slice", "x.slice:y:z"] {
            assert!(slice_of(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_container_is_the_scope_that_runc_makes_of_its_path() {
        let scope = Scope::of_container("kubepods-pod1.slice", "c1");
        assert_eq!(
            Scope::of_spec(&Scope::spec_path("kubepods-pod1.slice", "c1")).unwrap(),
            scope
        );
        let path = scope.path().unwrap();
        assert_eq!(path, "/kubepods.slice/kubepods-pod1.slice/wharf-c1.scope");
        assert_eq!(Scope::at(&path), Some(scope));
        for bad in ["a.slice:b", "a:b:c", "a.slice::", "a.slice:b:c/d", "a.slice:b:c:d"] {
            assert!(Scope::of_spec(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn only_paths_as_systemd_makes_them_are_units() {
        assert_eq!(unit_at("/a.slice/a-b.slice"), Some("a-b.slice"));
        assert_eq!(unit_at("/a.slice/x.scope"), Some("x.scope"));
        for other in ["/wharf/c1", "/a/x.scope", "/x/a-b.slice", "/a-b.slice", "/a.slice/c1"] {
            assert_eq!(unit_at(other), None, "{other}");
        }
    }

    #[test]
    fn monitors_have_one_scope_for_each_slice_of_wharfs_own() {
        let scope = Scope::of_monitors("wharf.slice");
        assert_eq!(scope.path().unwrap(), "/wharf.slice/wharf-monitors.scope");
    }
}
