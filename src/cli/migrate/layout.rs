//! An OCI image layout as an archive, made while it is sent.

use std::{
    collections::BTreeSet,
    io::{self, BufWriter, Read, Write},
};

use serde_json::{Value, json};

use crate::images::tarball::Tarball;

/// An archive under way.
pub struct Layout<W: Write> {
    tar: Tarball<BufWriter<W>>,
    written: BTreeSet<String>,
}

/// What the index lists.
pub struct Top<'a> {
    pub digest: &'a str,
    pub media_type: &'a str,
    pub size: u64,
    pub names: &'a [String],
}

impl<W: Write> Layout<W> {
    /// Begins an archive of the image that `top` describes.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn begin(out: W, top: &Top<'_>) -> io::Result<Self> {
        let mut layout = Self {
            tar: Tarball::new(BufWriter::with_capacity(256 << 10, out)),
            written: BTreeSet::new(),
        };
        let descriptor = json!({ "mediaType": top.media_type, "digest": top.digest, "size": top.size });
        let named = |name: &String| {
            let mut descriptor = descriptor.clone();
            descriptor["annotations"] = json!({ "io.containerd.image.name": name });
            descriptor
        };
        let mut manifests: Vec<Value> = top.names.iter().map(named).collect();
        if manifests.is_empty() {
            manifests.push(descriptor.clone());
        }
        let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string();
        layout.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        layout.file("index.json", index.as_bytes())?;
        Ok(layout)
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.tar.file(name, bytes.len() as u64, bytes)
    }

    /// Writes a blob of `size` bytes, unless it was written before.
    ///
    /// # Errors
    /// When `data` can't be read or ends early, or the archive can't be written.
    pub fn blob(&mut self, digest: &str, size: u64, data: impl Read) -> io::Result<()> {
        if !self.written.insert(digest.to_owned()) {
            return Ok(());
        }
        self.tar
            .file(&format!("blobs/{}", digest.replacen(':', "/", 1)), size, data)
    }

    /// Writes the end.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(self) -> io::Result<()> {
        self.tar.finish().map(drop)
    }
}
