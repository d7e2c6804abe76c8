//! `wharf attach`: connects this terminal, or stdin, stdout and stderr, to a running container.

use tonic::Code;
use wharf_proto::cri::{self, ContainerState};

use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::exec::{PROTOCOLS, exit_code};
use super::logfile::{Show, start_of_last};
use super::stream::{self, End, Ended, Keys, Proxy, Relay, Signals};
use super::{logs, output, resolve, wait};

/// Keys that leave a container alone unless `--detach-keys` says otherwise, as Docker has them.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// How long a runtime's word is awaited that the client is attached; not all say it.
const ESTABLISHED: std::time::Duration = std::time::Duration::from_secs(1);

/// Arguments of `wharf attach`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Don't send stdin to the container
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals such as Ctrl-C on to the container, unless it has a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container alone, in a terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = Keys::parse)]
    detach_keys: Keys,
    /// Show the last lines of the log first
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
    /// Name, id, or the beginning of an id
    container: String,
}

/// Which streams of a container are joined with ours.
#[derive(Clone)]
pub struct Wanted {
    pub stdin: bool,
    pub tty: bool,
    pub keys: Option<Keys>,
}

/// Attaches until the container ends, whose exit code becomes ours, or until the person leaves.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let name = &arguments.container;
    let status = client.container_status(&container.id, true).await?;
    if container.state() != ContainerState::ContainerRunning {
        return Err(Error::new(format!("container {name} is not running")));
    }
    let (stdin, tty) = streams(&status);
    let wanted = Wanted {
        stdin: stdin && !arguments.no_stdin,
        tty,
        keys: Some(arguments.detach_keys.clone()),
    };
    let mut signals = Signals::new()?;
    let mut relay = open(client, &container.id, name, &wanted).await?;
    if let Some(count) = arguments.tail {
        // What is written meanwhile comes by both ways rather than by none.
        let _ = tokio::time::timeout(ESTABLISHED, relay.established()).await;
        let mut log = logs::open(&status.status.unwrap_or_default(), |file| start_of_last(file, count))?;
        logs::drain(&mut log, &mut logs::printer(Show::default()))?;
    }
    let proxy = Proxy {
        client,
        id: &container.id,
        name,
    };
    let end = if arguments.sig_proxy && !tty {
        proxy.during(relay.run(), &mut signals).await
    } else {
        tokio::select! {
            end = relay.run() => Ok(end),
            number = signals.next() => Err(number),
        }
    };
    match end {
        Err(number) => Ok(exit_code(128 + number)),
        Ok(end) => match end? {
            End::Detached => {
                output::note(format_args!("\r\nwharf: left container {name} running"));
                Ok(0)
            }
            End::Over(Ended::Failed(message)) => Err(Error::new(format!("attach to container {name}: {message}"))),
            End::Lost(why) => Err(Error::new(format!("the connection to container {name} broke: {why}"))),
            End::Over(Ended::Code(0)) => ended(client, &container.id).await,
            // It may have been removed with its end.
            End::Over(Ended::Code(code)) => Ok(exit_code(code)),
        },
    }
}

/// The exit code of a container that has ended; 0 for one that goes on without us.
async fn ended(client: &Client, id: &str) -> Outcome {
    // What it wrote last comes a moment before its end is known.
    let moment = std::time::Duration::from_secs(1);
    match tokio::time::timeout(moment, wait::exited(client, id)).await {
        Ok(status) => Ok(status?.map_or(0, |status| exit_code(status.exit_code))),
        Err(_) => Ok(0),
    }
}

/// Opens the streams of a container. One that a person made on Wharf can be attached to before it is started.
pub async fn open(client: &Client, id: &str, name: &str, wanted: &Wanted) -> Result<Relay> {
    let message = cri::AttachRequest {
        container_id: id.to_owned(),
        stdin: wanted.stdin,
        tty: wanted.tty,
        stdout: true,
        stderr: !wanted.tty,
    };
    let answer = client.runtime().attach(client.patient(message, Owner::All)).await;
    let answer = answer.map_err(|status| client.error(&format!("attach to container {name}"), &status))?;
    let socket = stream::connect(&answer.into_inner().url, PROTOCOLS).await?;
    Ok(Relay::new(socket, wanted.stdin, wanted.tty, wanted.keys.clone()))
}

/// Whether a failed [`open`] means that the container must be started first.
pub fn must_run_first(problem: &Error) -> bool {
    !matches!(problem.status(), None | Some(Code::Unimplemented | Code::Unavailable))
}

/// Whether a container has stdin and a terminal, as its verbose status says in containerd's and CRI-O's words.
fn streams(status: &cri::ContainerStatusResponse) -> (bool, bool) {
    let info = status.info.get("info").map_or("", String::as_str);
    let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
    let tty = info["config"]["tty"] == true || info["runtimeSpec"]["process"]["terminal"] == true;
    // Unknown: it does no harm to send what nobody reads.
    let stdin = info["config"]["stdin"].as_bool().unwrap_or(info["config"].is_null());
    (stdin || tty, tty)
}
