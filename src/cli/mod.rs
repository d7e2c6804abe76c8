//! The `wharf` command: what people type.
//!
//! This room owns words on the command line, tables, messages and exit codes. It must never touch the daemon's files
//! or the kernel objects of a container: everything it does is a gRPC call, plain CRI wherever CRI has one, so that
//! most commands work with any CRI runtime's socket. What it may read itself are log files, whose paths CRI gives
//! away for that purpose, and the person's own `config.json` of Docker with credentials. `serve`, `doctor` (when no daemon answers) and `fsck --offline`
//! are the commands that call the rooms below in this process.
//!
//! One file per command; what commands share is in `client` (the connection), `resolve` (names to ids), `output`
//! (tables, JSON, YAML), `stream` (what exec and attach are made of), `units` (ages and sizes), `logfile` (the CRI log format) and `error` (messages, exit codes).

mod attach;
mod checkpoint;
mod client;
mod command;
mod commit;
mod completions;
mod cp;
mod debug;
mod dockerconfig;
mod doctor;
mod error;
mod events;
mod exec;
mod export;
mod fsck;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod history;
mod image;
mod images;
mod import;
mod info;
mod inspect;
mod load;
mod logfile;
mod logging;
mod login;
mod logs;
mod migrate;
mod network;
mod output;
mod pause;
mod pods;
mod port;
mod port_forward;
mod ps;
mod pull;
mod push;
mod resolve;
mod rm;
mod rmi;
mod run;
mod save;
mod serve;
mod stats;
mod stop;
mod stream;
mod system;
mod tag;
mod top;
mod units;
mod update;
mod version;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser as _;

use client::Client;
use command::{Cli, Command, Global};
use error::{Error, Outcome};

/// Parses the command line, does what it says, and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(problem) => {
            // Docker's habit: a wrong command line of `run` is 125, so that it isn't taken for the container's code.
            let code = match (problem.use_stderr(), args.iter().any(|arg| arg == "run")) {
                (true, true) => error::DAEMON_FAILED,
                (true, false) => 1,
                (false, _) => 0,
            };
            let _ = problem.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(problem) => problem.report(),
    }
}

fn run(cli: Cli) -> Outcome {
    let global = cli.global;
    match cli.command {
        Command::Serve(arguments) => serve::run(&global, &arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        command => {
            // One thread: a client waits far more than it works, and starts faster so.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|source| Error::new(format!("start the event loop: {source}")))?;
            let outcome = runtime.block_on(call(&global, command));
            // A read of stdin may still be pending on a helper thread; it must not keep the process.
            runtime.shutdown_background();
            outcome
        }
    }
}

async fn call(global: &Global, command: Command) -> Outcome {
    let client = Client::new(global)?;
    match command {
        Command::Run(arguments) => run::run(&client, &arguments).await,
        Command::Ps(arguments) => ps::run(&client, &arguments).await,
        Command::Pods(arguments) => pods::run(&client, &arguments).await,
        Command::Stats(arguments) => stats::run(&client, &arguments).await,
        Command::Top(arguments) => top::run(&client, &arguments).await,
        Command::Logs(arguments) => logs::run(&client, &arguments).await,
        Command::Exec(arguments) => exec::run(&client, &arguments).await,
        Command::Attach(arguments) => attach::run(&client, &arguments).await,
        Command::Cp(arguments) => cp::run(&client, &arguments).await,
        Command::Network(arguments) => network::run(&client, &arguments).await,
        Command::Port(arguments) => port::run(&client, &arguments).await,
        Command::PortForward(arguments) => port_forward::run(&client, &arguments).await,
        Command::Pause(arguments) => pause::run(&client, &arguments, pause::Act::Pause).await,
        Command::Unpause(arguments) => pause::run(&client, &arguments, pause::Act::Unpause).await,
        Command::Stop(arguments) => stop::run(&client, &arguments).await,
        Command::Update(arguments) => update::run(&client, &arguments).await,
        Command::Checkpoint(arguments) => checkpoint::run(&client, &arguments).await,
        Command::Rm(arguments) => rm::run(&client, &arguments).await,
        Command::Pull(arguments) => pull::run(&client, &arguments).await,
        Command::Login(arguments) => login::login(&client, &arguments).await,
        Command::Logout(arguments) => login::logout(&arguments).await,
        Command::Commit(arguments) => commit::run(&client, &arguments).await,
        Command::Export(arguments) => export::run(&client, &arguments).await,
        Command::Image(arguments) => image::run(&client, &arguments).await,
        Command::Import(arguments) => import::run(&client, &arguments).await,
        Command::Load(arguments) => load::run(&client, &arguments).await,
        Command::Migrate(arguments) => migrate::run(&client, &arguments).await,
        Command::Push(arguments) => push::run(&client, &arguments).await,
        Command::Save(arguments) => save::run(&client, &arguments).await,
        Command::Tag(arguments) => tag::run(&client, &arguments).await,
        Command::History(arguments) => history::run(&client, &arguments).await,
        Command::Images(arguments) => images::run(&client, &arguments).await,
        Command::Rmi(arguments) => rmi::run(&client, &arguments).await,
        Command::Inspect(arguments) => inspect::run(&client, &arguments).await,
        Command::Info(arguments) => info::run(&client, &arguments).await,
        Command::Debug(arguments) => debug::run(&client, &arguments).await,
        Command::Version(arguments) => version::run(&client, &arguments).await,
        Command::Doctor(arguments) => doctor::run(&client, global, &arguments).await,
        Command::System(arguments) => system::run(&client, &arguments).await,
        Command::Events(arguments) => events::run(&client, &arguments).await,
        Command::Fsck(arguments) => fsck::run(&client, global, &arguments).await,
        Command::Serve(_) | Command::Completions(_) => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
