//! `wharf logs`: what a container has written, from the log file that CRI names.

use std::io::{self, BufWriter, Stderr, Stdout};
use std::path::Path;

use jiff::Timestamp;
use wharf_proto::cri::{self, ContainerState};

use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::logfile::{Follower, Printer, Show, start_of_last};
use super::{resolve, units, wait};

/// Arguments of `wharf logs`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// Show only the last lines; "all" for all
    #[arg(short = 'n', long, value_name = "N", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Leave out what is older: a time such as 2026-01-31T12:00:00Z, or a duration such as 10m
    #[arg(long, value_name = "TIME", value_parser = units::parse_since)]
    since: Option<Timestamp>,
    /// Begin each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Name, id, or the beginning of an id
    container: String,
}

/// How many lines from the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    All,
    Last(usize),
}

/// Prints the log, stdout to stdout and stderr to stderr.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let status = client
        .container_status(&container.id, false)
        .await?
        .status
        .unwrap_or_default();
    let tail = arguments.tail;
    let mut log = open(&status, |file| match tail {
        Tail::All => Ok(0),
        Tail::Last(count) => start_of_last(file, count),
    })?;
    let mut printer = printer(Show {
        timestamps: arguments.timestamps,
        since: arguments.since,
    });
    if arguments.follow && status.state() != ContainerState::ContainerExited {
        follow(client, &container.id, &mut log, &mut printer).await?;
    } else {
        drain(&mut log, &mut printer)?;
    }
    Ok(0)
}

/// Opens the log that a container's status names.
pub fn open(status: &cri::ContainerStatus, offset: impl FnOnce(&std::fs::File) -> io::Result<u64>) -> Result<Follower> {
    let path = Path::new(&status.log_path);
    if status.log_path.is_empty() {
        return Err(Error::new("the container has no log: whoever made it asked for none"));
    }
    Follower::open(path, offset).map_err(|source| {
        let error = Error::new(format!("open log {}: {source}", path.display()));
        match source.kind() {
            io::ErrorKind::PermissionDenied => error.hint("Log files are read directly; run the command as root."),
            io::ErrorKind::NotFound => error.hint("It was removed, or the container has not been started."),
            _ => error,
        }
    })
}

/// A printer to this process's outputs.
pub fn printer(show: Show) -> Printer<BufWriter<Stdout>, BufWriter<Stderr>> {
    Printer::new(show, BufWriter::new(io::stdout()), BufWriter::new(io::stderr()))
}

/// Prints what is there.
pub fn drain<O: io::Write, E: io::Write>(log: &mut Follower, printer: &mut Printer<O, E>) -> Result<()> {
    log.read(|line| printer.line(line))?;
    printer.flush()?;
    Ok(())
}

/// Prints what comes, until the container has ended and all it wrote is printed; its last status.
pub async fn follow<O: io::Write, E: io::Write>(
    client: &Client,
    id: &str,
    log: &mut Follower,
    printer: &mut Printer<O, E>,
) -> Result<Option<cri::ContainerStatus>> {
    log.watch()
        .map_err(|source| Error::new(format!("watch the log: {source}")))?;
    let mut exit = std::pin::pin!(wait::exited(client, id));
    loop {
        drain(log, printer)?;
        tokio::select! {
            status = &mut exit => {
                drain(log, printer)?;
                return status;
            }
            changed = log.changed() => changed?,
        }
    }
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" | "-1" => Ok(Tail::All),
        _ => text
            .parse()
            .map(Tail::Last)
            .map_err(|_| format!("\"{text}\" is neither a number nor \"all\"")),
    }
}
