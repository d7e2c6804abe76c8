//! `wharf serve`: the daemon, in this process.

use std::path::Path;

use super::error::{Error, Outcome};
use super::{Global, logging};
use crate::config::{self, Config};
use crate::serve::Reloading;

/// Arguments of `wharf serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Read the configuration, print it with its defaults, and end
    #[arg(long)]
    check: bool,
}

/// Runs the daemon until it is told to end.
pub fn run(global: &Global, arguments: &Arguments) -> Outcome {
    let (file, endpoint) = (global.config.clone(), global.endpoint.clone());
    let load = move || load(file.as_deref(), endpoint.as_deref());
    let config = load().map_err(Error::new)?;
    if arguments.check {
        let text = toml::to_string(&config).map_err(|source| Error::new(format!("write configuration: {source}")))?;
        super::output::text(&text)?;
        return Ok(0);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(
            Error::new("the daemon must run as root: it makes namespaces, mounts and cgroups")
                .hint("Try `sudo wharf serve`."),
        );
    }
    let again = Reloading {
        load: Box::new(load),
        set_log_level: logging::start(&config.log)?,
    };
    crate::serve::run(config, again).map_err(|problem| Error::new(problem.to_string()))?;
    Ok(0)
}

/// The configuration, with the socket that the command line names.
fn load(file: Option<&Path>, endpoint: Option<&str>) -> Result<Config, String> {
    let mut config = config::load(file).map_err(|problem| problem.to_string())?;
    if let Some(endpoint) = endpoint {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(format!("the endpoint \"{endpoint}\" is not a socket's address"));
        }
        config.socket = Path::new(path).to_owned();
    }
    Ok(config)
}
