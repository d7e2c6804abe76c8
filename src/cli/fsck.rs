//! `wharf fsck`: whether what the daemon has on disk and in the kernel is whole.

use wharf_proto::api;

use super::Global;
use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::output::{self, Format, Table};
use crate::{config, node};

/// Exit code when all that was wrong is repaired.
const REPAIRED: u8 = 1;
/// Exit code when something is wrong still, or nothing could be said.
const BROKEN: u8 = 2;

/// Arguments of `wharf fsck`. Exit codes: 0 nothing is wrong, 1 all that was wrong is repaired, 2 something is wrong.
#[derive(clap::Args)]
#[command(after_help = "Exit codes: 0 nothing is wrong; 1 what was wrong is repaired; 2 something is wrong still.")]
pub struct Arguments {
    /// Move what is broken to "set-aside" in the state directory, and remove mounts, leases and cgroups of nobody
    #[arg(long)]
    repair: bool,
    /// Look from this process, which a daemon must not be running for
    #[arg(long)]
    offline: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints what is wrong.
pub async fn run(client: &Client, global: &Global, arguments: &Arguments) -> Outcome {
    let asked = if arguments.offline {
        offline(global, arguments.repair).await
    } else {
        ask(client, arguments.repair).await
    };
    let answer = asked.map_err(|error| error.code(BROKEN))?;
    if arguments.output == Format::Table {
        if !answer.findings.is_empty() {
            table(&answer.findings).print()?;
        }
        output::line(&summary(&answer))?;
    } else {
        output::message(arguments.output, "wharf.v1.FsckResponse", &answer)?;
    }
    Ok(code(&answer.findings))
}

async fn ask(client: &Client, repair: bool) -> Result<api::FsckResponse> {
    let request = client.patient(api::FsckRequest { repair }, Owner::All);
    match client.wharf().fsck(request).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => {
            let error = client.error("check the state", &status);
            match error.status() {
                Some(tonic::Code::Unavailable) => {
                    Err(error.hint("When no daemon runs, `wharf fsck --offline` looks at its files."))
                }
                _ => Err(error),
            }
        }
    }
}

async fn offline(global: &Global, repair: bool) -> Result<api::FsckResponse> {
    let config = config::load(global.config.as_deref()).map_err(|problem| Error::new(problem.to_string()))?;
    let looked = tokio::task::spawn_blocking(move || node::fsck::offline(&config, repair)).await;
    let looked = looked.map_err(|problem| Error::new(format!("check the state: {problem}")))?;
    looked.map_err(|problem| Error::new(format!("check the state: {problem}")))
}

fn table(findings: &[api::FsckFinding]) -> Table {
    let mut table = Table::new(&["KIND", "OBJECT", "PROBLEM"]);
    for finding in findings {
        table.row([finding.kind.clone(), finding.object.clone(), finding.problem.clone()]);
        let told = [
            ("repaired", &finding.repaired),
            ("not repaired", &finding.unrepaired),
            ("advice", &finding.advice),
        ];
        for (word, text) in told {
            if !text.is_empty() {
                table.row([String::new(), String::new(), format!("→ {word}: {text}")]);
            }
        }
    }
    table
}

fn is_repaired(finding: &api::FsckFinding) -> bool {
    !finding.repaired.is_empty()
}

fn code(findings: &[api::FsckFinding]) -> u8 {
    match findings {
        [] => 0,
        all if all.iter().all(is_repaired) => REPAIRED,
        _ => BROKEN,
    }
}

fn summary(answer: &api::FsckResponse) -> String {
    let looked = format!(
        "{} pods, {} containers, {} images, {} layers and {} leases were looked at",
        answer.pods, answer.containers, answer.images, answer.layers, answer.leases
    );
    let repaired = answer.findings.iter().filter(|finding| is_repaired(finding)).count();
    match (answer.findings.len(), repaired) {
        (0, _) => format!("Nothing is wrong: {looked}."),
        (all, repaired) => format!("\n{all} wrong, {repaired} of them repaired: {looked}."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_tells_what_is_left() {
        let finding = |repaired: &str| api::FsckFinding {
            repaired: repaired.into(),
            ..Default::default()
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[finding("moved to /x")]), REPAIRED);
        assert_eq!(code(&[finding("moved to /x"), finding("")]), BROKEN);
    }
}
