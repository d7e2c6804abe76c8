//! `wharf debug`: what the daemon is at, and what it takes.

use wharf_proto::api::{DebugRequest, DebugResponse};

use super::client::Client;
use super::error::{Outcome, Result};
use super::output::{self, Format, Table};
use super::units::{ago, short_id, size};

/// Arguments of `wharf debug`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints operations under way, sizes and threads.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let answer = client.wharf().debug(client.quick(DebugRequest {})).await;
    let answer = answer
        .map_err(|status| client.error("ask what the daemon is at", &status))?
        .into_inner();
    match arguments.output {
        Format::Table => tables(&answer)?,
        format => output::value(format, &output::to_json("wharf.v1.DebugResponse", &answer)?)?,
    }
    Ok(0)
}

fn tables(answer: &DebugResponse) -> Result<()> {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed());
    let mut text = format!(
        "{:<32} {}\n{:<32} {}\n",
        "version",
        answer.version,
        "started",
        ago(now - answer.started_at / 1_000_000_000)
    );
    for figure in &answer.figures {
        let value = match figure.bytes {
            true => size(figure.value),
            false => figure.value.to_string(),
        };
        text.push_str(&format!("{:<32} {value}\n", figure.name));
    }
    output::text(&(text + "\n"))?;
    let mut operations = Table::new(&["OPERATION", "OBJECT", "NAME", "STAGE", "SECONDS", "AT STAGE"]);
    for one in &answer.operations {
        operations.row([
            one.call.clone(),
            short_id(&one.id).to_owned(),
            one.name.clone(),
            one.stage.clone(),
            format!("{:.1}", one.seconds),
            format!("{:.1}", one.stage_seconds),
        ]);
    }
    operations.print()?;
    output::text("\n")?;
    let mut threads = Table::new(&["THREAD", "NAME", "STATE", "WAITS IN"]);
    for thread in &answer.threads {
        threads.row([
            thread.id.to_string(),
            thread.name.clone(),
            thread.state.clone(),
            thread.waits_in.clone(),
        ]);
    }
    threads.print()
}
