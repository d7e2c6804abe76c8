//! `wharf exec`: runs a command in a running container with this process's stdin, stdout and stderr, or its terminal.

use std::io::{self, Write as _};
use std::time::Duration;

use tonic::Code;
use wharf_proto::cri;

use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::resolve;
use super::stream::{self, End, Ended, Relay, Signals};

/// What streams are asked for. In the older one stdin can't be ended.
pub const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

/// Arguments of `wharf exec`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Send stdin to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
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
    need_terminal(arguments.interactive, arguments.tty)?;
    let container = resolve::container(client, &arguments.container).await?;
    // A call has a limit in CRI, a stream has none.
    if client.timeout().is_some() && !arguments.interactive && !arguments.tty {
        return collected(client, arguments, container).await;
    }
    let message = cri::ExecRequest {
        container_id: container.id.clone(),
        cmd: arguments.command.clone(),
        tty: arguments.tty,
        stdin: arguments.interactive,
        stdout: true,
        stderr: !arguments.tty,
    };
    let url = match client.runtime().exec(client.patient(message, Owner::All)).await {
        Ok(answer) => answer.into_inner().url,
        Err(status) if status.code() == Code::Unimplemented && !arguments.interactive && !arguments.tty => {
            return collected(client, arguments, container).await;
        }
        Err(status) => return Err(failed(client.error(&attempt(arguments), &status))),
    };
    let mut signals = Signals::new()?;
    let socket = stream::connect(&url, PROTOCOLS).await?;
    let relay = Relay::new(socket, arguments.interactive, arguments.tty, None);
    let end = tokio::select! {
        end = relay.run() => end?,
        // The command ends with its connection.
        number = signals.next() => return Ok(exit_code(128 + number)),
    };
    match end {
        End::Over(Ended::Code(code)) => Ok(exit_code(code)),
        End::Over(Ended::Failed(message)) => Err(failed(Error::new(format!("{}: {message}", attempt(arguments))))),
        End::Detached => Ok(0),
        End::Lost(why) => Err(Error::new(format!(
            "{}: the connection broke: {why}",
            attempt(arguments)
        ))),
    }
}

fn attempt(arguments: &Arguments) -> String {
    let command = arguments.command.first().map_or("", String::as_str);
    format!("run command {command} in container {}", arguments.container)
}

/// The shell's codes for a command that could not be started.
fn failed(error: Error) -> Error {
    let code = error.exec_failure().unwrap_or(1);
    error.code(code)
}

/// Runs the command by ExecSync, which brings its output at the end.
async fn collected(client: &Client, arguments: &Arguments, container: cri::Container) -> Outcome {
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
    let answer = answer.map_err(|status| failed(client.error(&attempt(arguments), &status)))?;
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

/// Refuses a terminal for the container when there is none here to type into.
pub fn need_terminal(interactive: bool, tty: bool) -> Result<()> {
    if interactive && tty && !stream::stdin_is_terminal() {
        return Err(Error::new("the input device is not a TTY").hint("Leave out -t when stdin is not a terminal."));
    }
    Ok(())
}
