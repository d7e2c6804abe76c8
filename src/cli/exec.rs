//! `wharf exec`: runs a command in a running container and brings back what it wrote.

use std::io::{self, Write as _};
use std::time::Duration;

use wharf_proto::cri;

use super::client::{Client, Owner};
use super::error::{Error, Outcome};
use super::resolve;

/// Arguments of `wharf exec`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Keep stdin open (not yet possible)
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal (not yet possible)
    #[arg(short, long)]
    tty: bool,
    /// Name, id, or the beginning of an id
    container: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs the command; its exit code becomes ours.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    if arguments.interactive || arguments.tty {
        return Err(interactive("exec"));
    }
    let container = resolve::container(client, &arguments.container).await?;
    let timeout = client.timeout();
    let message = cri::ExecSyncRequest {
        container_id: container.id,
        cmd: arguments.command.clone(),
        // CRI counts whole seconds and takes 0 as no limit.
        timeout: timeout.map_or(0, |limit| i64::try_from(limit.as_secs().max(1)).unwrap_or(0)),
    };
    // The daemon ends the command at the limit; the call waits a little longer for its word on that.
    let deadline = timeout.map(|limit| limit.saturating_add(Duration::from_secs(5)));
    let answer = client
        .runtime()
        .exec_sync(client.request(message, Owner::All, deadline))
        .await;
    let answer = answer.map_err(|status| {
        let attempt = format!(
            "run command {} in container {}",
            arguments.command[0], arguments.container
        );
        let error = client.error(&attempt, &status);
        let code = error.exec_failure().unwrap_or(1);
        error.code(code)
    })?;
    let answer = answer.into_inner();
    let mut out = io::stdout().lock();
    out.write_all(&answer.stdout)?;
    out.flush()?;
    io::stderr().lock().write_all(&answer.stderr)?;
    Ok(exit_code(answer.exit_code))
}

/// A container's code as that of this process; what a process can't have becomes 1.
pub fn exit_code(code: i32) -> u8 {
    u8::try_from(code).unwrap_or(1)
}

/// Why `-i` and `-t` are refused.
pub fn interactive(command: &str) -> Error {
    Error::new(format!(
        "wharf {command} can't pass a terminal or stdin to a container yet"
    ))
    .hint("Leave out -i and -t for a command that needs no input.")
    .code(super::error::DAEMON_FAILED)
}
