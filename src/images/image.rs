//! What an image is once it is here, and the part of its configuration that containers need.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Deserializer};
use wharf_proto::record;

use super::{layers::Pin, lazy::LazyImage, reference::Reference};

/// An image on this node.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration, of an artifact that of its manifest: `sha256:` and 64 hex digits.
    pub id: String,
    /// Full names with tag, for example `docker.io/library/busybox:latest`; sorted. May be empty.
    pub tags: Vec<String>,
    /// Full names with the digest of what the name led to (the index, if there was one); sorted. Empty only
    /// for an image that came from a file without a name.
    pub digests: Vec<String>,
    /// Bytes of the compressed layers and the configuration; above zero.
    pub size: u64,
    /// What the image says about its containers.
    pub config: ImageConfig,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// It is no image but files, one in each layer.
    pub artifact: Option<Artifact>,
    /// Kubelet's garbage collection must spare it.
    pub pinned: bool,
    /// By its manifest's annotations it is a container's checkpoint, and no root filesystem.
    pub checkpoint: bool,
    /// When it was pulled first; Unix time, nanoseconds.
    pub pulled_at: i64,
    /// Its layers are not all here yet; then there are no pins.
    pub(super) lazy: Option<Arc<LazyImage>>,
    /// Keep the layers on disk while anyone holds this image; in the order of `layers`.
    pub(super) pins: Vec<Pin>,
}

impl Image {
    /// What people call it: `asked` if that is one of its tags, else one of the same repository, else any; None without
    /// a tag.
    #[must_use]
    pub fn name_like(&self, asked: &str) -> Option<&str> {
        let asked = Reference::parse(asked).ok();
        let same = |tag: &&String| asked.as_ref().is_some_and(|asked| asked.to_string() == **tag);
        let near = |tag: &&String| {
            let tag = Reference::parse(tag).ok();
            tag.zip(asked.as_ref())
                .is_some_and(|(tag, asked)| (&tag.registry, &tag.repository) == (&asked.registry, &asked.repository))
        };
        let tags = || self.tags.iter();
        tags()
            .find(same)
            .or_else(|| tags().find(near))
            .or_else(|| tags().next())
            .map(String::as_str)
    }

    /// Whether all of it is on this node.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lazy.is_none()
    }

    /// Bytes of its layers' blobs that are on this node and of all, of an image that can be used before it is complete.
    #[must_use]
    pub fn come(&self) -> Option<(u64, u64)> {
        self.lazy.as_ref().map(|lazy| lazy.come(&self.layers))
    }

    /// Where the files of its layers are, the uppermost first; there as long as somebody holds the image. None of one that
    /// is not complete.
    #[must_use]
    pub fn layer_directories(&self) -> Vec<PathBuf> {
        self.pins.iter().rev().map(Pin::path).collect()
    }
}

/// What makes an OCI artifact of an [`Image`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Its type, a media type.
    pub kind: String,
    /// Names of the files, in the order of the layers: relative paths.
    pub files: Vec<String>,
}

impl Artifact {
    /// The artifact that a record tells of, if it does.
    pub(super) fn of(record: &record::Image) -> Option<Self> {
        (!record.artifact_type.is_empty()).then(|| Self {
            kind: record.artifact_type.clone(),
            files: record.files.clone(),
        })
    }
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob as it was transferred.
    pub digest: String,
    /// Digest of the uncompressed archive.
    pub diff_id: String,
    /// Bytes of the blob.
    pub size: u64,
}

impl Layer {
    pub(super) fn of(layer: &record::ImageLayer) -> Self {
        Self {
            digest: layer.digest.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.size,
        }
    }

    pub(super) fn to_record(&self) -> record::ImageLayer {
        record::ImageLayer {
            digest: self.digest.clone(),
            diff_id: self.diff_id.clone(),
            size: self.size,
        }
    }
}

/// The configuration of an image, as far as containers need it. Absent and `null` are the same as empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments, or program and arguments if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Absolute, or empty for `/`.
    pub working_dir: String,
    /// Paths that the image wants volumes at; sorted.
    pub volumes: Vec<String>,
    /// Ports that the image says it listens on, `port/protocol`; sorted.
    pub exposed_ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Name or number; empty is SIGTERM.
    pub stop_signal: String,
    /// `linux`.
    pub os: String,
    /// As Go names it: `amd64`, `arm64`, ...
    pub architecture: String,
    /// `v7`, `v8`, ...; mostly empty.
    pub variant: String,
    /// RFC 3339, as the image says; may be empty.
    pub created: String,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<String>,
}

impl ImageConfig {
    /// Reads an image configuration (OCI or Docker; they agree on these fields).
    ///
    /// # Errors
    /// When it is not JSON or a field has the wrong type.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let file: File = serde_json::from_slice(json)?;
        Ok(Self {
            user: file.config.user,
            env: file.config.env,
            entrypoint: file.config.entrypoint,
            cmd: file.config.cmd,
            working_dir: file.config.working_dir,
            volumes: file.config.volumes.into_keys().collect(),
            exposed_ports: file.config.exposed_ports.into_keys().collect(),
            labels: file.config.labels,
            stop_signal: file.config.stop_signal,
            os: file.os,
            architecture: file.architecture,
            variant: file.variant,
            created: file.created,
            diff_ids: file.rootfs.diff_ids,
        })
    }

    /// Whether it runs here, as far as it says.
    #[must_use]
    pub fn is_for_linux(&self) -> bool {
        self.os.is_empty() || self.os.eq_ignore_ascii_case("linux")
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    #[serde(deserialize_with = "or_null")]
    config: Inner,
    #[serde(deserialize_with = "or_null")]
    rootfs: RootFs,
    #[serde(deserialize_with = "or_null")]
    os: String,
    #[serde(deserialize_with = "or_null")]
    architecture: String,
    #[serde(deserialize_with = "or_null")]
    variant: String,
    #[serde(deserialize_with = "or_null")]
    created: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RootFs {
    #[serde(deserialize_with = "or_null")]
    diff_ids: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "PascalCase")]
struct Inner {
    #[serde(deserialize_with = "or_null")]
    user: String,
    #[serde(deserialize_with = "or_null")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_one")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_one")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_null")]
    working_dir: String,
    #[serde(deserialize_with = "or_null")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_null")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "or_null")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_null")]
    stop_signal: String,
}

/// A list, or its only element, as images of early versions of Docker have it.
fn or_one<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum Either {
        One(String),
        More(Vec<String>),
    }
    Ok(match Option::deserialize(value)? {
        None => Vec::new(),
        Some(Either::One(one)) => vec![one],
        Some(Either::More(more)) => more,
    })
}

fn or_null<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_docker_configuration_with_nulls_is_read() {
        let json = br#"{"architecture":"amd64","os":"linux","created":null,
            "config":{"User":"1000:1000","Env":["A=b"],"Entrypoint":null,"Cmd":["sh"],"Volumes":{"/data":{}},
                "Labels":null,"Healthcheck":{"Test":["NONE"]},"StopSignal":"SIGINT","ExposedPorts":{"80/tcp":{}}},
            "rootfs":{"type":"layers","diff_ids":["sha256:00"]},"history":[{"created_by":"x"}]}"#;
        let config = ImageConfig::parse(json).unwrap();
        assert_eq!(config.user, "1000:1000");
        assert_eq!(config.cmd, ["sh"]);
        assert!(config.entrypoint.is_empty());
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.stop_signal, "SIGINT");
        assert_eq!(config.diff_ids, ["sha256:00"]);
    }

    #[test]
    fn an_early_configuration_may_have_a_program_as_a_text_and_the_system_in_upper_case() {
        let config = ImageConfig::parse(br#"{"os":"Linux","config":{"Entrypoint":"/run","Cmd":["a","b"]}}"#).unwrap();
        assert_eq!(
            (config.entrypoint, config.cmd),
            (vec!["/run".to_owned()], vec!["a".to_owned(), "b".to_owned()])
        );
        assert!(ImageConfig::parse(br#"{"os":"Linux"}"#).unwrap().is_for_linux());
        assert!(!ImageConfig::parse(br#"{"os":"windows"}"#).unwrap().is_for_linux());
    }

    #[test]
    fn a_configuration_of_the_wrong_shape_is_refused() {
        assert!(ImageConfig::parse(br#"{"config":{"Env":"A=b"}}"#).is_err());
        assert!(ImageConfig::parse(b"7").is_err());
    }
}
