//! `wharf checkpoint`: writes the state of a running container to a file.

use std::path::PathBuf;
use std::time::Duration;

use super::client::Client;
use super::error::{Error, Outcome};
use super::{output, resolve, units};

/// Arguments of `wharf checkpoint`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long it may take, for example 30s; the container runs on in any case [default: 10m]
    #[arg(long = "limit", value_name = "TIME", value_parser = units::parse_duration)]
    limit: Option<Duration>,
    /// Name, id, or beginning of the id of a running container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// File on the daemon's machine that receives the archive
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Checkpoints the container and prints the file's name.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let file = std::path::absolute(&arguments.file)
        .map_err(|source| Error::new(format!("find the place of {}: {source}", arguments.file.display())))?;
    let location = file
        .to_str()
        .ok_or_else(|| Error::new(format!("the name of {} is not UTF-8, which CRI wants", file.display())))?;
    let limit = arguments.limit.unwrap_or_default();
    client
        .checkpoint_container(&container.id, &arguments.container, location, limit)
        .await?;
    output::line(location)?;
    Ok(0)
}
