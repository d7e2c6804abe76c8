//! `wharf doctor`: what the machine lacks, and what to do.

use tonic::Code;
use wharf_proto::api::{self, Severity};

use super::Global;
use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::output::{self, Format, Table};
use crate::{config, node};

/// Arguments of `wharf doctor`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Look at the machine from this process even if a daemon answers
    #[arg(long)]
    local: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the findings; the exit code is 1 if pods can't run.
pub async fn run(client: &Client, global: &Global, arguments: &Arguments) -> Outcome {
    let asked = if arguments.local { None } else { ask(client).await? };
    let (answer, source) = match asked {
        Some(answer) => (
            answer,
            format!("as the daemon at {} sees this machine", client.endpoint()),
        ),
        None => (
            local(global).await?,
            "as this process sees this machine; no daemon was asked".to_owned(),
        ),
    };
    if arguments.output == Format::Table {
        table(&answer.findings).print()?;
        output::line(&summary(&answer.findings, &source))?;
    } else {
        output::message(arguments.output, "wharf.v1.DoctorResponse", &answer)?;
    }
    let failed = answer
        .findings
        .iter()
        .any(|finding| finding.severity() == Severity::Failure);
    Ok(u8::from(failed))
}

/// The daemon's findings; `None` if there is no daemon, or it is another runtime.
async fn ask(client: &Client) -> Result<Option<api::DoctorResponse>> {
    match client.wharf().doctor(client.quick(api::DoctorRequest {})).await {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) => {
            let error = client.error("ask the daemon for its findings", &status);
            match error.status() {
                Some(Code::Unimplemented | Code::Unavailable) => Ok(None),
                _ => Err(error),
            }
        }
    }
}

async fn local(global: &Global) -> Result<api::DoctorResponse> {
    let config = config::load(global.config.as_deref()).map_err(|problem| Error::new(problem.to_string()))?;
    let findings = tokio::task::spawn_blocking(move || node::doctor::findings(&config)).await;
    let findings = findings.map_err(|problem| Error::new(format!("look at the machine: {problem}")))?;
    Ok(api::DoctorResponse { findings })
}

fn table(findings: &[api::Finding]) -> Table {
    let mut table = Table::new(&["CHECK", "RESULT", "FOUND"]);
    for finding in findings {
        let result = match finding.severity() {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Failure => "FAILURE",
        };
        table.row([finding.check.clone(), result.to_owned(), finding.found.clone()]);
        if !finding.advice.is_empty() {
            table.row([String::new(), String::new(), format!("→ {}", finding.advice)]);
        }
    }
    table
}

fn summary(findings: &[api::Finding], source: &str) -> String {
    let count = |severity| findings.iter().filter(|finding| finding.severity() == severity).count();
    let text = match (count(Severity::Failure), count(Severity::Warning)) {
        (0, 0) => "Pods can run".to_owned(),
        (0, warnings) => format!("Pods can run; warnings: {warnings}"),
        (failures, warnings) => format!("Pods can't run; failures: {failures}, warnings: {warnings}"),
    };
    format!("\n{text} ({source}).")
}
