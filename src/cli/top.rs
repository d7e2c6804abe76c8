//! `wharf top`: the processes of a container, as its own `ps` shows them.

use wharf_proto::cri;

use super::client::{Client, Owner};
use super::error::{self, Error, Outcome};
use super::{output, resolve};

/// Arguments of `wharf top`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Name, id, or the beginning of an id
    container: String,
    /// Options for ps [default: -ef]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

/// Runs `ps` in the container. CRI lists no processes, and the node's files are none of a client's business.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let mut command = vec!["ps".to_owned()];
    match arguments.options.as_slice() {
        [] => command.push("-ef".to_owned()),
        options => command.extend_from_slice(options),
    }
    let message = cri::ExecSyncRequest {
        container_id: container.id,
        cmd: command,
        timeout: 10,
    };
    let answer = client
        .runtime()
        .exec_sync(client.request(message, Owner::All, client.timeout()))
        .await;
    let answer = answer.map_err(|status| {
        let error = client.error(
            &format!("list the processes of container {}", arguments.container),
            &status,
        );
        match error.exec_failure() {
            Some(error::NOT_FOUND) => error.hint("The image has no ps, with which a container lists its processes."),
            _ => error,
        }
    })?;
    let answer = answer.into_inner();
    if answer.exit_code != 0 {
        let said = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
        return Err(Error::new(format!(
            "ps in container {} ended with code {}: {said}",
            arguments.container, answer.exit_code
        )));
    }
    output::text(&String::from_utf8_lossy(&answer.stdout))?;
    Ok(0)
}
