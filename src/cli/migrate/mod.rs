//! `wharf migrate`: images of another runtime on this machine, without a download.
//!
//! The other runtime's directories are only read, whether it runs or not. Each image is put into an archive while it is sent to
//! the daemon, which checks every digest as it does for any archive.

mod bolt;
mod containerd;
mod layout;
mod storage;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use wharf_proto::api;

use super::{
    client::{Client, Owner},
    cp::exec::Pieces,
    error::{Error, Outcome, Result},
    output,
};

/// Where the runtimes have what they have.
const CONTAINERD: &str = "/var/lib/containerd";
const STORAGE: &str = "/var/lib/containers/storage";

/// Arguments of `wharf migrate`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Names of images [default: all]
    images: Vec<String>,
    /// containerd's directory [default: /var/lib/containerd, if it is there]
    #[arg(long, value_name = "DIR")]
    containerd: Option<PathBuf>,
    /// containerd's namespace
    #[arg(long, default_value = "k8s.io")]
    namespace: String,
    /// The directory of CRI-O's or podman's storage [default: /var/lib/containers/storage, if it is there]
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,
    /// Only say which images there are
    #[arg(long)]
    dry_run: bool,
}

/// An image of another runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Of its manifest or index.
    pub digest: String,
    /// May be empty.
    pub names: Vec<String>,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Containerd(containerd::Target),
    Storage(storage::Stored),
}

impl Found {
    fn name(&self) -> &str {
        self.names.first().map_or(&self.digest, String::as_str)
    }

    fn write(&self, out: impl Write) -> io::Result<()> {
        match &self.source {
            Source::Containerd(target) => target.write(self, out),
            Source::Storage(stored) => stored.write(self, out),
        }
    }
}

/// Migrates; one image that can't be does not keep others from it.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let found = find(arguments).await?;
    let wanted: Vec<&Found> = found
        .iter()
        .filter(|image| arguments.images.is_empty() || arguments.images.iter().any(|name| fits(image, name)))
        .collect();
    for name in &arguments.images {
        if !found.iter().any(|image| fits(image, name)) {
            return Err(Error::new(format!("there is no image {name:?} to migrate"))
                .hint("`wharf migrate --dry-run` shows those that are there."));
        }
    }
    let mut code = 0;
    for image in wanted {
        if arguments.dry_run {
            output::line(&format!("{} {}", image.digest, image.names.join(" ")))?;
            continue;
        }
        match send(client, image).await {
            Ok(loaded) => {
                for one in loaded.images {
                    let names = match one.names.is_empty() {
                        true => one.image_id,
                        false => one.names.join(" "),
                    };
                    output::line(&format!("Migrated image: {names}"))?;
                }
            }
            Err(error) => {
                output::note(error);
                code = 1;
            }
        }
    }
    Ok(code)
}

/// By any name, also shortened, or by digest.
fn fits(image: &Found, name: &str) -> bool {
    let full = crate::images::Reference::parse(name).map(|reference| reference.to_string());
    image.digest == name
        || image
            .names
            .iter()
            .any(|known| known == name || full.as_ref().is_ok_and(|full| known == full))
}

/// All images of the runtimes that were named, or that are there.
async fn find(arguments: &Arguments) -> Result<Vec<Found>> {
    let named = arguments.containerd.is_some() || arguments.storage.is_some();
    let or_default = |given: &Option<PathBuf>, default: &str| {
        given
            .clone()
            .or_else(|| Some(PathBuf::from(default)).filter(|path| !named && path.exists()))
    };
    let containerd = or_default(&arguments.containerd, CONTAINERD);
    let storage = or_default(&arguments.storage, STORAGE);
    if containerd.is_none() && storage.is_none() {
        return Err(Error::new(format!("there is neither {CONTAINERD} nor {STORAGE}"))
            .hint("Say with --containerd or --storage where the images are."));
    }
    let namespace = arguments.namespace.clone();
    let list = move || -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        if let Some(root) = containerd {
            all.extend(containerd::list(&root, &namespace)?);
        }
        if let Some(root) = storage {
            all.extend(storage::list(existing(&root)?)?);
        }
        Ok(all)
    };
    let listed = tokio::task::spawn_blocking(list).await;
    let listed = listed.map_err(|error| Error::new(format!("list images: {error}")))?;
    listed.map_err(|error| Error::new(format!("list images: {error}")))
}

fn existing(root: &Path) -> io::Result<&Path> {
    match root.is_dir() {
        true => Ok(root),
        false => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is no directory", root.display()),
        )),
    }
}

async fn send(client: &Client, image: &Found) -> Result<api::LoadImagesResponse> {
    let attempt = format!("migrate {}", image.name());
    let (sender, pieces) = mpsc::channel(4);
    let source = image.clone();
    let reader = tokio::task::spawn_blocking(move || source.write(Pieces(sender)));
    let chunks = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let chunks = futures_util::StreamExt::map(chunks, |data: Bytes| api::Chunk { data: data.to_vec() });
    let answer = client.wharf().migrate_images(client.patient(chunks, Owner::All)).await;
    let read = reader
        .await
        .map_err(|error| Error::new(format!("{attempt}: {error}")))?;
    match read {
        // The daemon has stopped reading and says why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::new(format!("{attempt}: {error}"))),
        _ => answer
            .map(tonic::Response::into_inner)
            .map_err(|status| client.error(&attempt, &status)),
    }
}
