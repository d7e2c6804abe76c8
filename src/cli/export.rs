//! `wharf export`: a container's root file system as an archive.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::{Error, Outcome};
use super::{resolve, save};

/// Arguments of `wharf export`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Write to this file [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name, id, or beginning of an id; it may run or have ended
    container: String,
}

/// Exports.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    if arguments.output.is_none() && io::stdout().is_terminal() {
        return Err(Error::new("cowardly refusing to save to a terminal").hint("Use the -o flag or redirect."));
    }
    let container = resolve::container(client, &arguments.container).await?;
    let attempt = format!("export {}", arguments.container);
    let message = api::ExportContainerRequest {
        container_id: container.id,
    };
    let answer = client
        .wharf()
        .export_container(client.patient(message, Owner::All))
        .await;
    let chunks = answer.map_err(|status| client.error(&attempt, &status))?.into_inner();
    save::write(client, &attempt, chunks, arguments.output.as_deref()).await?;
    Ok(0)
}
