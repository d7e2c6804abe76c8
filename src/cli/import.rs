//! `wharf import`: an image out of an archive of files.

use std::io::{self, IsTerminal as _};
use std::path::Path;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use wharf_proto::api::{self, import_image_request::Part};

use super::client::{Client, Owner};
use super::error::{Error, Outcome};
use super::{load, output};

/// Arguments of `wharf import`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Change the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR as in
    /// a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Text for the image's history
    #[arg(short, long, default_value = "")]
    message: String,
    /// tar archive (also compressed with gzip or zstd), a directory, or - for stdin
    file: String,
    /// The image's name, for example team/app:v1
    #[arg(default_value = "")]
    name: String,
}

/// Imports.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let input = (arguments.file != "-").then(|| Path::new(&arguments.file));
    if input.is_none() && io::stdin().is_terminal() {
        return Err(Error::new("requested import from stdin, but stdin is a terminal"));
    }
    if arguments.file.contains("://") {
        return Err(
            Error::new(format!("{} is a URL, which import does not fetch", arguments.file))
                .hint("Fetch it with another program, and import from its output: ... | wharf import -"),
        );
    }
    let attempt = format!("import {}", arguments.file);
    let (sender, pieces) = mpsc::channel(4);
    let reader = load::read(input, &attempt, sender)?;
    let options = api::ImportOptions {
        name: arguments.name.clone(),
        changes: arguments.change.clone(),
        message: arguments.message.clone(),
    };
    let part = |part| api::ImportImageRequest { part: Some(part) };
    let data = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let data = data.map(move |data: Bytes| part(Part::Data(data.to_vec())));
    let parts = futures_util::stream::iter([part(Part::Options(options))]).chain(data);
    let answer = client.wharf().import_image(client.patient(parts, Owner::All)).await;
    if reader.is_finished() || answer.is_ok() {
        let read = reader
            .await
            .map_err(|error| Error::new(format!("{attempt}: {error}")))?;
        read.map_err(|source| Error::new(format!("{attempt}: {source}")))?;
    }
    let answer = answer.map_err(|status| client.error(&attempt, &status))?;
    output::line(&answer.into_inner().image_id)?;
    Ok(0)
}
