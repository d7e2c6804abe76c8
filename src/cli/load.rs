//! `wharf load`: images out of an archive, a layout in a directory, or stdin.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;
use wharf_proto::api;

use super::client::{Client, Owner};
use super::cp::{archive, exec::Pieces};
use super::error::{Error, Outcome, Result};
use super::output;

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Arguments of `wharf load`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Archive of `docker save` or of an OCI layout (also compressed with gzip or zstd), or a directory with an OCI
    /// layout [default: stdin]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print the images' ids only
    #[arg(short, long)]
    quiet: bool,
}

/// Loads.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let input = arguments.input.as_deref().filter(|path| *path != Path::new("-"));
    if input.is_none() && io::stdin().is_terminal() {
        return Err(
            Error::new("requested load from stdin, but stdin is a terminal").hint("Use the -i flag or redirect.")
        );
    }
    let attempt = match input {
        Some(path) => format!("load {}", path.display()),
        None => "load images from stdin".to_owned(),
    };
    let (sender, pieces) = mpsc::channel(4);
    let reader = read(input, &attempt, sender)?;
    let chunks = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let chunks = futures_util::StreamExt::map(chunks, |data: Bytes| api::Chunk { data: data.to_vec() });
    let answer = client.wharf().load_images(client.patient(chunks, Owner::All)).await;
    // Who reads has ended too, unless it waits for stdin: the daemon's word counts then.
    if reader.is_finished() || answer.is_ok() {
        let read = reader
            .await
            .map_err(|error| Error::new(format!("{attempt}: {error}")))?;
        read.map_err(|source| Error::new(format!("{attempt}: {source}")))?;
    }
    let answer = answer.map_err(|status| client.error(&attempt, &status))?;
    for image in answer.into_inner().images {
        if arguments.quiet {
            output::line(&image.image_id)?;
            continue;
        }
        for name in &image.names {
            output::line(&format!("Loaded image: {name}"))?;
        }
        if image.names.is_empty() {
            output::line(&format!("Loaded image ID: {}", image.image_id))?;
        }
    }
    Ok(0)
}

/// Reads a file, a directory as an archive, or stdin, on another thread.
pub(super) fn read(
    input: Option<&Path>,
    attempt: &str,
    sender: mpsc::Sender<Bytes>,
) -> Result<tokio::task::JoinHandle<io::Result<()>>> {
    let failed = |source: io::Error| Error::new(format!("{attempt}: {source}"));
    if let Some(directory) = input.filter(|path| path.is_dir()) {
        let directory = directory.to_owned();
        return Ok(tokio::task::spawn_blocking(move || {
            unless_gone(archive::write(&directory, ".", Pieces(sender)))
        }));
    }
    let source: Box<dyn Read + Send> = match input {
        Some(path) => Box::new(File::open(path).map_err(failed)?),
        None => Box::new(io::stdin()),
    };
    Ok(tokio::task::spawn_blocking(move || unless_gone(copy(source, &sender))))
}

fn copy(mut source: impl Read, sender: &mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let read = match source.read(&mut piece) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if read == 0 {
            return Ok(());
        }
        piece.truncate(read);
        if sender.blocking_send(piece.into()).is_err() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
}

/// The daemon has stopped reading and says why.
fn unless_gone(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
