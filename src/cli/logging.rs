//! The daemon's own log: on stderr, for the journal or a collector.

use std::io;

use tracing_subscriber::EnvFilter;

use super::error::{Error, Result};
use crate::config::{Log, LogFormat};

/// Sends the records of `tracing` to stderr in the configured form. Call it once, before the first record.
///
/// # Errors
/// When a log was set up already, or the level is not a filter.
pub fn start(log: &Log) -> Result<()> {
    // A plain level is about Wharf; below it the transport's own records would drown it.
    let directives = if log.level.contains(['=', ',']) {
        log.level.clone()
    } else {
        format!("warn,wharf={}", log.level)
    };
    let filter = EnvFilter::try_new(&directives)
        .map_err(|source| Error::new(format!("log.level: \"{}\" is no level or filter: {source}", log.level)))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // The journal stamps lines itself and shows no colours.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    let result = match (log.format, journal) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).with_current_span(false).try_init(),
        (LogFormat::Text, true) => builder.with_ansi(false).without_time().try_init(),
        (LogFormat::Text, false) => builder.with_ansi(terminal).try_init(),
    };
    result.map_err(|source| Error::new(format!("set up the log: {source}")))
}
