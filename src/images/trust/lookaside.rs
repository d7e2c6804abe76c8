//! Where signatures by GPG lie: beside the registry, in a directory or on a web server, which the files in `registries.d` name
//! (containers-registries.d(5)).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::images::{Error, Reference, Result, pull::blocking, registry::Session};

/// Where they lie if nothing else is said: what podman and skopeo use as root.
const DEFAULT: &str = "file:///var/lib/containers/sigstore";
/// Signatures of one manifest that are looked at, and bytes of one.
const MAX_SIGNATURES: usize = 32;
const MAX_SIZE: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    default_docker: Option<Place>,
    #[serde(default)]
    docker: BTreeMap<String, Place>,
}

/// Where those of a scope lie. Where they are written to is of no interest here.
#[derive(Deserialize)]
struct Place {
    lookaside: Option<String>,
    /// The same, as older files have it.
    sigstore: Option<String>,
}

/// The address below which the signatures of `image` lie, by the `*.yaml` in `directory`. Blocking.
///
/// # Errors
/// A sentence about a file.
fn base(directory: &Path, image: &Reference) -> std::result::Result<String, String> {
    let (mut default, mut scopes) = (None, BTreeMap::new());
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DEFAULT.to_owned()),
        Err(error) => return Err(format!("list {}: {error}", directory.display())),
    };
    let mut files: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    for path in files {
        let shown = path.display();
        let text = fs::read_to_string(&path).map_err(|error| format!("read {shown}: {error}"))?;
        let file: File = serde_saphyr::from_str(&text).map_err(|error| format!("{shown}: {error}"))?;
        if let Some(place) = file.default_docker
            && default.replace(place).is_some()
        {
            return Err(format!("{shown}: default-docker stands in another file, too"));
        }
        for (scope, place) in file.docker {
            if scopes.insert(scope.clone(), place).is_some() {
                return Err(format!("{shown}: {scope:?} stands in another file, too"));
            }
        }
    }
    let name = image.name();
    // The repository, the paths above it, the registry.
    let mut scope = name.as_str();
    let found = loop {
        if let Some(place) = scopes.remove(scope) {
            break Some(place);
        }
        match scope.rsplit_once('/') {
            Some((above, _)) => scope = above,
            None => break default,
        }
    };
    let found = found.and_then(|place| place.lookaside.or(place.sigstore));
    Ok(found.unwrap_or_else(|| DEFAULT.to_owned()))
}

/// What lies beside the registry for the manifest `digest` of `image`.
///
/// # Errors
/// When a file of `registries_d` can't be used, or the place can't be asked.
pub(super) async fn gather(
    session: &Session,
    registries_d: &Path,
    image: &Reference,
    digest: &str,
) -> Result<Vec<Vec<u8>>> {
    let (directory, name) = (registries_d.to_owned(), image.clone());
    let refused = |reason: String| Error::Untrusted {
        what: image.to_string(),
        reason,
    };
    let base = blocking(move || Ok(base(&directory, &name))).await?.map_err(refused)?;
    let below = format!("{}@{}", image.repository, digest.replacen(':', "=", 1));
    let mut found = Vec::new();
    for number in 1..=MAX_SIGNATURES {
        let address = format!("{}/{below}/signature-{number}", base.trim_end_matches('/'));
        let bytes = match address.strip_prefix("file://") {
            Some(path) => file(path.into()).await?,
            None => session.elsewhere(&address, MAX_SIZE).await?,
        };
        let Some(bytes) = bytes else { break };
        found.push(bytes);
    }
    Ok(found)
}

async fn file(path: PathBuf) -> Result<Option<Vec<u8>>> {
    blocking(move || {
        use io::Read as _;
        let mut bytes = Vec::new();
        match fs::File::open(&path).and_then(|file| file.take(MAX_SIZE as u64).read_to_end(&mut bytes)) {
            Ok(_) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(Error::io("read", path)(error)),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_scope_says_where_signatures_lie() {
        let dir = std::env::temp_dir().join(format!("wharf-lookaside-{}", std::process::id()));
        let at = |image: &str| base(&dir, &Reference::parse(image).unwrap());
        assert_eq!(at("r.example/a").unwrap(), DEFAULT);
        fs::create_dir_all(&dir).unwrap();
        let first =
            "docker:\n  r.example/team:\n    sigstore: https://team\n  r.example:5000:\n    lookaside: file:///port\n";
        fs::write(dir.join("a.yaml"), first).unwrap();
        fs::write(dir.join("b.yaml"), "default-docker:\n  lookaside: https://all\n").unwrap();
        fs::write(dir.join("c.txt"), "nonsense: [").unwrap();
        for (image, place) in [
            ("r.example/team/app", "https://team"),
            ("r.example/team", "https://team"),
            ("r.example/teams/app", "https://all"),
            ("r.example:5000/app", "file:///port"),
            ("busybox", "https://all"),
        ] {
            assert_eq!(at(image).unwrap(), place, "{image}");
        }
        fs::write(dir.join("d.yaml"), "default-docker:\n  lookaside: https://more\n").unwrap();
        assert!(at("x/y").unwrap_err().contains("d.yaml"));
        fs::write(dir.join("d.yaml"), "docker: 7\n").unwrap();
        assert!(at("x/y").unwrap_err().contains("d.yaml"));
        fs::remove_dir_all(dir).unwrap();
    }
}
