//! The daemon's own log: on stderr, for the journal or a collector.

use std::io;

use tracing_subscriber::EnvFilter;

use super::error::Error;
use crate::config::{Log, LogFormat};

/// Changes the level while the daemon runs.
pub type SetLevel = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Sends the records of `tracing` to stderr in the configured form. Call it once, before the first record. What is returned
/// sets another level.
///
/// # Errors
/// When a log was set up already, or the level is not a filter.
pub fn start(log: &Log) -> super::error::Result<SetLevel> {
    let filter = filter_of(&log.level).map_err(Error::new)?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // The journal stamps lines itself and shows no colours.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let terminal = io::IsTerminal::is_terminal(&io::stderr());
    // Each form has a type of its own.
    macro_rules! begin {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder
                .try_init()
                .map_err(|source| Error::new(format!("set up the log: {source}")))?;
            let set: SetLevel =
                Box::new(move |level: &str| handle.reload(filter_of(level)?).map_err(|error| error.to_string()));
            set
        }};
    }
    Ok(match (log.format, journal) {
        (LogFormat::Json, _) => begin!(builder.json().flatten_event(true).with_current_span(false)),
        (LogFormat::Text, true) => begin!(builder.with_ansi(false).without_time()),
        (LogFormat::Text, false) => begin!(builder.with_ansi(terminal)),
    })
}

/// A plain level is about Wharf; below it the transport's own records would drown it.
fn filter_of(level: &str) -> Result<EnvFilter, String> {
    let directives = match level.contains(['=', ',']) {
        true => level.to_owned(),
        false => format!("warn,wharf={level}"),
    };
    let wrong = |source| format!("log.level: \"{level}\" is no level or filter: {source}");
    EnvFilter::try_new(&directives).map_err(wrong)
}
