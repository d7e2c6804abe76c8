//! Image references, read as Docker reads them: `busybox` is `docker.io/library/busybox:latest`.

use std::fmt;

use super::{Error, Result};

/// Longest repository name with registry, as registries enforce it.
const MAX_NAME: usize = 255;

/// The registry of names that give none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// A normalised reference. `Display` gives the full text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// `host[:port]`.
    pub registry: String,
    /// Path in the registry, for example `library/busybox`.
    pub repository: String,
    /// The tag; `latest` if the text had neither tag nor digest.
    pub tag: Option<String>,
    /// `sha256:...`; what counts when both are there.
    pub digest: Option<String>,
}

impl Reference {
    /// Reads `text`.
    ///
    /// # Errors
    /// [`Error::InvalidReference`].
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|reason| Error::InvalidReference {
            reference: text.chars().take(MAX_NAME).collect(),
            reason,
        })
    }

    /// Registry and repository.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name under which the image is listed after a pull: with the tag, unless there is a digest.
    #[must_use]
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// What is asked of the registry: the digest if there is one, else the tag.
    #[must_use]
    pub fn selector(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn parse(text: &str) -> std::result::Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 1024 {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            if !is_digest(digest) {
                return Err("the digest is not sha256: and 64 lower-case hex digits");
            }
            (rest, Some(digest.to_owned()))
        }
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
        _ => (rest, None),
    };
    if let Some(tag) = &tag
        && !is_tag(tag)
    {
        return Err("the tag has a character that tags don't have, or is too long");
    }
    if name.is_empty() {
        return Err("the name is empty");
    }
    if is_hex64(name) {
        return Err("the name could be mistaken for an image id");
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path.to_owned()),
        _ => (DEFAULT_REGISTRY, name.to_owned()),
    };
    // Docker Hub's old names, and its namespace for images without one.
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if !is_host(registry) {
        return Err("the registry is not host[:port]");
    }
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path
    };
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    if !repository.split('/').all(is_component) {
        return Err("the repository has an empty or malformed part");
    }
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name is too long");
    }
    let tag = match (&digest, tag) {
        (None, None) => Some("latest".to_owned()),
        (_, tag) => tag,
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        tag,
        digest,
    })
}

/// The first part of a name is a registry if it has a dot or a port, is `localhost`, or has upper case (which
/// repositories have not).
fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.starts_with('[')
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let host_fits = host.is_none_or(|host| {
        host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
    });
    host_fits && port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them.
fn is_component(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut bytes = part.bytes().peekable();
    if !bytes.peek().copied().is_some_and(alphanumeric) {
        return false;
    }
    let mut separator = String::new();
    for byte in bytes {
        if alphanumeric(byte) {
            if !(separator.bytes().all(|byte| byte == b'-') || matches!(separator.as_str(), "." | "_" | "__")) {
                return false;
            }
            separator.clear();
        } else if matches!(byte, b'.' | b'_' | b'-') {
            separator.push(char::from(byte));
        } else {
            return false;
        }
    }
    separator.is_empty()
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

/// Whether `text` is a SHA-256 digest as registries write it.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_hex64)
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64 && is_hex(text)
}

/// Whether `text` is lower-case hex.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn full(text: &str) -> String {
        Reference::parse(text).unwrap().to_string()
    }

    #[test]
    fn short_names_are_completed_as_docker_does() {
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("[fd00::2]/app", "[fd00::2]/app:latest"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("gcr.io/a__b/c-d--e.f_g", "gcr.io/a__b/c-d--e.f_g:latest"),
            ("REGISTRY/app", "REGISTRY/app:latest"),
        ] {
            assert_eq!(full(text), expected);
        }
    }

    #[test]
    fn a_digest_counts_more_than_a_tag() {
        let reference = Reference::parse(&format!("app:v1@{DIGEST}")).unwrap();
        assert_eq!(reference.selector(), DIGEST);
        assert_eq!(reference.tagged(), None);
        assert_eq!(reference.tag.as_deref(), Some("v1"));
        let reference = Reference::parse(&format!("app@{DIGEST}")).unwrap();
        assert_eq!(reference.tag, None);
        assert_eq!(reference.to_string(), format!("docker.io/library/app@{DIGEST}"));
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for text in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "App",
            "a/App",
            "a:",
            "a:-x",
            "a:b:c",
            "a b",
            "a@sha256:00",
            "-a",
            "a-",
            "a._b",
            "a___b",
            "a@",
            "http://a/b",
            "a.b:port/c",
            "a.b:99999/c",
            "[::1/c",
            "[x]/c",
            ".a.b/c",
            "é",
            "a:é",
            &DIGEST[7..],
            &format!("a@{}", DIGEST.to_uppercase()),
            &"a".repeat(300),
            &format!("a:{}", "t".repeat(129)),
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    /// Any text either is refused or has a full form that reads back as itself.
    #[test]
    fn the_full_form_is_a_fixed_point() {
        let alphabet: Vec<char> = "ab0A.:/-_@[]é ".chars().collect();
        let pieces = [
            "localhost",
            "docker.io",
            "library",
            ":5000",
            "latest",
            DIGEST,
            "sha256:",
        ];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        let mut accepted = 0;
        for _ in 0..50_000 {
            let mut text = String::new();
            for _ in 0..=next(7) {
                if next(4) == 0 {
                    text.push_str(pieces[next(pieces.len())]);
                } else {
                    text.push(alphabet[next(alphabet.len())]);
                }
            }
            if let Ok(reference) = Reference::parse(&text) {
                accepted += 1;
                let once = reference.to_string();
                assert_eq!(Reference::parse(&once).unwrap(), reference, "{text:?} became {once:?}");
            }
        }
        assert!(accepted > 250, "only {accepted} random texts were references");
    }
}
