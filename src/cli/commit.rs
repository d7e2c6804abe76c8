//! `wharf commit`: an image out of what a container has changed.

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::Outcome;
use super::{output, resolve};

/// Arguments of `wharf commit`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Who made it, for example "Ann <ann@example.com>"
    #[arg(short, long, default_value = "")]
    author: String,
    /// Change the image's configuration: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR as in
    /// a Dockerfile
    #[arg(short, long, value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Text for the image's history
    #[arg(short, long, default_value = "")]
    message: String,
    /// Pause the container meanwhile, if it runs; --pause=false does not
    #[arg(
        short,
        long,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pause: bool,
    /// Name, id, or beginning of an id; it may run or have ended
    container: String,
    /// The image's name, for example team/app:v1
    #[arg(default_value = "")]
    name: String,
}

/// Commits.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let message = api::CommitContainerRequest {
        container_id: container.id,
        name: arguments.name.clone(),
        changes: arguments.change.clone(),
        author: arguments.author.clone(),
        message: arguments.message.clone(),
        no_pause: !arguments.pause,
    };
    let answer = client
        .wharf()
        .commit_container(client.patient(message, Owner::All))
        .await;
    let answer = answer.map_err(|status| client.error(&format!("commit {}", arguments.container), &status))?;
    output::line(&answer.into_inner().image_id)?;
    Ok(0)
}
