//! `wharf save`: images as an archive, or as an OCI layout in a directory.

mod layout;

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use tonic::Streaming;
use wharf_proto::api;

use super::client::{Client, Owner};
use super::cp::exec::Arriving;
use super::error::{Error, Outcome, Result};

/// Arguments of `wharf save`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write to this file; if it is a directory, an OCI layout is written to it [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the archive [default: docker; oci for a directory]
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// References, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// What `docker load`, skopeo and most tools read
    Docker,
    /// An OCI image layout in a tar archive
    Oci,
}

/// Saves.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let directory = arguments.output.as_deref().filter(|path| path.is_dir());
    if directory.is_some() && arguments.format == Some(Form::Docker) {
        return Err(Error::new("the output is a directory, which gets an OCI layout")
            .hint("Name a file, or leave --format out."));
    }
    if arguments.output.is_none() && io::stdout().is_terminal() {
        return Err(Error::new("cowardly refusing to save to a terminal").hint("Use the -o flag or redirect."));
    }
    let oci = directory.is_some() || arguments.format == Some(Form::Oci);
    let format = if oci {
        api::ArchiveFormat::ArchiveOci
    } else {
        api::ArchiveFormat::ArchiveDocker
    };
    let message = api::SaveImagesRequest {
        images: arguments.images.clone(),
        format: format.into(),
    };
    let attempt = format!("save {}", arguments.images.join(" "));
    let answer = client.wharf().save_images(client.patient(message, Owner::All)).await;
    let chunks = answer.map_err(|status| client.error(&attempt, &status))?.into_inner();
    match (directory, &arguments.output) {
        (Some(directory), _) => into_directory(client, &attempt, chunks, directory).await?,
        (None, output) => write(client, &attempt, chunks, output.as_deref()).await?,
    }
    Ok(0)
}

/// Writes what comes to `output`, which appears only whole, or to stdout.
pub(super) async fn write(
    client: &Client,
    attempt: &str,
    mut chunks: Streaming<api::Chunk>,
    output: Option<&Path>,
) -> Result<()> {
    let mut next = async || {
        let message = chunks.message().await;
        message.map_err(|status| client.error(attempt, &status))
    };
    let Some(path) = output else {
        let mut stdout = io::stdout().lock();
        while let Some(chunk) = next().await? {
            stdout.write_all(&chunk.data)?;
        }
        return Ok(stdout.flush()?);
    };
    let failed = |source: io::Error| Error::new(format!("write {}: {source}", path.display()));
    // A pipe or device can't be replaced.
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        let mut file = File::options().write(true).open(path).map_err(failed)?;
        while let Some(chunk) = next().await? {
            file.write_all(&chunk.data).map_err(failed)?;
        }
        return Ok(());
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .map_err(failed)?;
    let mut all = async || -> Result<()> {
        while let Some(chunk) = next().await? {
            file.write_all(&chunk.data).map_err(failed)?;
        }
        std::fs::rename(&temporary, path).map_err(failed)
    };
    let done = all().await;
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

async fn into_directory(
    client: &Client,
    attempt: &str,
    mut chunks: Streaming<api::Chunk>,
    directory: &Path,
) -> Result<()> {
    let (sender, pieces) = mpsc::channel(4);
    let target = directory.to_owned();
    let writer = tokio::task::spawn_blocking(move || layout::write(Arriving::new(pieces), &target));
    let mut failed = None;
    loop {
        match chunks.message().await {
            Ok(Some(chunk)) => {
                if sender.send(chunk.data.into()).await.is_err() {
                    break;
                }
            }
            Ok(None) => break,
            Err(status) => {
                failed = Some(client.error(attempt, &status));
                break;
            }
        }
    }
    drop(sender);
    let written = writer
        .await
        .map_err(|error| Error::new(format!("write the layout: {error}")))?;
    match failed {
        Some(error) => Err(error),
        None => written.map_err(|source| Error::new(format!("write {}: {source}", directory.display()))),
    }
}
