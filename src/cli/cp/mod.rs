//! `wharf cp`: files and directories into a container and out of it, as a tar stream of an exec.
//!
//! The container needs a `tar`. What comes out of it is hostile: it is extracted, as an image's layer is, into an empty
//! directory of our own, and only then moved to where it was wanted.

pub(super) mod archive;
pub(super) mod exec;
mod place;

use std::path::{Path, PathBuf};

use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::resolve;
use exec::Exec;

/// Arguments of `wharf cp`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to copy: a path here, or CONTAINER:PATH
    source: String,
    /// Where to: a path here, or CONTAINER:PATH
    destination: String,
}

/// One side of a copy.
enum Side {
    Here(PathBuf),
    There { container: String, path: String },
}

fn side(text: &str) -> Side {
    match text.split_once(':') {
        // A path with a colon is written ./a:b, as for docker.
        Some((container, path)) if !container.is_empty() && !container.contains('/') => Side::There {
            container: container.to_owned(),
            path: if path.is_empty() {
                "/".to_owned()
            } else {
                path.to_owned()
            },
        },
        _ => Side::Here(PathBuf::from(text)),
    }
}

/// Copies one way.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    match (side(&arguments.source), side(&arguments.destination)) {
        (Side::Here(from), Side::There { container, path }) => into(client, &from, &container, &path).await?,
        (Side::There { container, path }, Side::Here(to)) => out_of(client, &container, &path, &to).await?,
        (Side::Here(_), Side::Here(_)) => {
            return Err(Error::new("neither side is in a container").hint("Write CONTAINER:PATH for one of them."));
        }
        (Side::There { .. }, Side::There { .. }) => {
            return Err(Error::new(
                "both sides are in containers, which is not possible in one step",
            ));
        }
    }
    Ok(0)
}

async fn into(client: &Client, from: &Path, container: &str, path: &str) -> Result<()> {
    let id = resolve::container(client, container).await?.id;
    let contents = from.to_string_lossy().ends_with("/.");
    let from =
        std::fs::canonicalize(from).map_err(|source| Error::new(format!("copy {}: {source}", from.display())))?;
    let name = || {
        from.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let is_directory = path.ends_with('/') || Exec::new(client, &id, &["test", "-d", path]).succeeds().await?;
    let (directory, name) = match (is_directory, contents) {
        (true, true) => (path.to_owned(), ".".to_owned()),
        (true, false) => (path.to_owned(), name()),
        (false, _) => {
            let (parent, last) = path.rsplit_once('/').unwrap_or((".", path));
            (
                if parent.is_empty() {
                    "/".to_owned()
                } else {
                    parent.to_owned()
                },
                last.to_owned(),
            )
        }
    };
    let command = ["tar", "-x", "-f", "-", "-C", &directory];
    let (sender, pieces) = tokio::sync::mpsc::channel(4);
    let writer = tokio::task::spawn_blocking(move || archive::write(&from, &name, exec::Pieces(sender)));
    let said = Exec::new(client, &id, &command).feed(pieces).await;
    let written = writer
        .await
        .map_err(|error| Error::new(format!("read what to copy: {error}")))?;
    said?;
    written.map_err(|source| Error::new(format!("read what to copy: {source}")))
}

async fn out_of(client: &Client, container: &str, path: &str, to: &Path) -> Result<()> {
    let id = resolve::container(client, container).await?.id;
    let contents = path.ends_with("/.");
    let trimmed = path.trim_end_matches("/.").trim_end_matches('/');
    let (parent, base) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
    let parent = if parent.is_empty() { "/" } else { parent };
    let base = if base.is_empty() { "." } else { base };
    let place =
        place::Place::beside(to).map_err(|source| Error::new(format!("write to {}: {source}", to.display())))?;
    let (sender, pieces) = tokio::sync::mpsc::channel(4);
    let dir = place.dir().to_owned();
    let extract = tokio::task::spawn_blocking(move || {
        let options = crate::images::unpack::Options {
            layer: "of the container's files".into(),
            plain: true,
            hollow: false,
        };
        crate::images::unpack::unpack_tar(exec::Arriving::new(pieces), &dir, &options)
    });
    let command = ["tar", "-c", "-f", "-", "-C", parent, "--", base];
    let said = Exec::new(client, &id, &command).collect(sender).await;
    let extracted = extract.await.map_err(|error| Error::new(format!("extract: {error}")))?;
    said?;
    extracted.map_err(|error| Error::new(error.to_string()))?;
    place
        .settle(base, to, contents || base == ".")
        .map_err(|source| Error::new(format!("write to {}: {source}", to.display())))
}
