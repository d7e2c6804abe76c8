//! `wharf pause` and `wharf unpause`: containers that stand still for a while.

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::{Error, Outcome};
use super::{output, resolve};

/// Arguments of both.
#[derive(clap::Args)]
pub struct Arguments {
    /// Names, ids, or beginnings of ids of containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

/// What to do with them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Stop all processes where they stand.
    Pause,
    /// Let them go on.
    Unpause,
}

/// Does it with each; one that fails doesn't keep the others.
pub async fn run(client: &Client, arguments: &Arguments, act: Act) -> Outcome {
    let mut code = 0;
    for text in &arguments.containers {
        match one(client, text, act).await {
            Ok(()) => output::line(text)?,
            Err(problem) => {
                problem.report();
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn one(client: &Client, text: &str, act: Act) -> Result<(), Error> {
    let container_id = resolve::container(client, text).await?.id;
    let mut wharf = client.wharf();
    let (attempt, done) = match act {
        Act::Pause => {
            let request = client.patient(api::PauseContainerRequest { container_id }, Owner::All);
            ("pause", wharf.pause_container(request).await.map(drop))
        }
        Act::Unpause => {
            let request = client.patient(api::UnpauseContainerRequest { container_id }, Owner::All);
            ("unpause", wharf.unpause_container(request).await.map(drop))
        }
    };
    done.map_err(|status| client.error(&format!("{attempt} {text}"), &status))
}
