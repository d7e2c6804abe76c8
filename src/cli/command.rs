//! The command line: global options and the list of commands.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::{
    attach, checkpoint, commit, completions, cp, debug, doctor, events, exec, export, fsck, history, image, images,
    import, info, inspect, load, login, logs, migrate, network, pause, pods, port, port_forward, ps, pull, push, rm,
    rmi, run, save, serve, stats, stop, system, tag, top, units, update, version,
};

/// Runs containers on this node.
#[derive(Parser)]
#[command(
    name = "wharf",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args)]
pub struct Global {
    /// Socket of the daemon, or of any CRI runtime [env: WHARF_ENDPOINT] [default: the configuration's socket]
    #[arg(long, global = true, value_name = "unix:///PATH")]
    pub endpoint: Option<String>,
    /// Configuration file [default: /etc/wharf/wharf.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How long a call may take, for example 90s or 5m [default: 1m for quick calls, no limit for others]
    #[arg(long, global = true, value_name = "TIME", value_parser = units::parse_duration)]
    pub timeout: Option<Duration>,
}

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(serve::Arguments),
    /// Run a command in a new container
    Run(Box<run::Arguments>),
    /// List containers
    Ps(ps::Arguments),
    /// List pods
    Pods(pods::Arguments),
    /// Show what containers use
    Stats(stats::Arguments),
    /// List the processes of a container
    Top(top::Arguments),
    /// Show what a container has written
    Logs(logs::Arguments),
    /// Run a command in a running container
    Exec(exec::Arguments),
    /// Connect to the stdin, stdout and stderr of a running container
    Attach(attach::Arguments),
    /// Copy files between this machine and a container
    Cp(cp::Arguments),
    /// Make, show and remove networks; put containers on them
    Network(network::Arguments),
    /// Show which ports of this node lead to a container
    Port(port::Arguments),
    /// Forward ports of this machine to a pod
    PortForward(port_forward::Arguments),
    /// Stop containers or pods
    Stop(stop::Arguments),
    /// Stop all processes of containers where they stand
    Pause(pause::Arguments),
    /// Let paused containers go on
    Unpause(pause::Arguments),
    /// Change the limits of containers
    Update(update::Arguments),
    /// Write the state of a running container, memory included, to a file
    Checkpoint(checkpoint::Arguments),
    /// Remove containers or pods
    Rm(rm::Arguments),
    /// Fetch an image from a registry
    Pull(pull::Arguments),
    /// Keep credentials for a registry
    Login(login::Login),
    /// Forget the credentials for a registry
    Logout(login::Logout),
    /// List images
    Images(images::Arguments),
    /// Send an image to a registry
    Push(push::Arguments),
    /// Take images out of an archive or an OCI layout
    Load(load::Arguments),
    /// Take over the images of containerd, CRI-O or podman on this machine, without a download
    Migrate(migrate::Arguments),
    /// Write images to an archive or an OCI layout
    Save(save::Arguments),
    /// List images, and remove those that nothing needs
    Image(image::Arguments),
    /// Make an image of an archive of files
    Import(import::Arguments),
    /// Write a container's root file system to an archive
    Export(export::Arguments),
    /// Make an image of what a container has changed
    Commit(commit::Arguments),
    /// Give an image another name
    Tag(tag::Arguments),
    /// Show how an image was made
    History(history::Arguments),
    /// Remove images
    Rmi(rmi::Arguments),
    /// Show all about a container, a pod or an image
    Inspect(inspect::Arguments),
    /// Show what images and containers take on disk
    System(system::Arguments),
    /// Show what happens to pods, containers and images
    Events(events::Arguments),
    /// Show the state of the daemon
    Info(info::Arguments),
    /// Show the versions of this command and of the daemon
    Version(version::Arguments),
    /// Say what the machine lacks for running containers, and what to do
    Doctor(doctor::Arguments),
    /// Show what the daemon is at: operations, sizes, threads
    Debug(debug::Arguments),
    /// Check all that the daemon has on disk and in the kernel
    Fsck(fsck::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
}
