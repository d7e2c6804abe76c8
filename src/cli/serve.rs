//! `wharf serve`: the daemon, in this process.

use std::path::Path;

use super::error::{Error, Outcome};
use super::{Global, logging};
use crate::config;

/// Arguments of `wharf serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Read the configuration, print it with its defaults, and end
    #[arg(long)]
    check: bool,
}

/// Runs the daemon until it is told to end.
pub fn run(global: &Global, arguments: &Arguments) -> Outcome {
    let mut config = config::load(global.config.as_deref()).map_err(|problem| Error::new(problem.to_string()))?;
    if let Some(endpoint) = &global.endpoint {
        let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
        if !path.starts_with('/') {
            return Err(Error::new(format!(
                "the endpoint \"{endpoint}\" is not a socket's address"
            )));
        }
        config.socket = Path::new(path).to_owned();
    }
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
    logging::start(&config.log)?;
    crate::serve::run(config).map_err(|problem| Error::new(problem.to_string()))?;
    Ok(0)
}
