//! `wharf pods`: the pods, as a table.

use wharf_proto::cri::{self, PodSandboxState};

use super::client::{Client, at_work};
use super::error::Outcome;
use super::output::{self, Format, Table};
use super::resolve::pod_name;
use super::units::{age, short_id};

/// Arguments of `wharf pods`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only pods in this state
    #[arg(long, value_parser = ["ready", "notready"])]
    state: Option<String>,
    /// Only pods with this label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = super::run::label)]
    label: Vec<(String, String)>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the list, newest first.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let state = arguments.state.as_deref().map(|state| cri::PodSandboxStateValue {
        state: match state {
            "ready" => PodSandboxState::SandboxReady.into(),
            _ => PodSandboxState::SandboxNotready.into(),
        },
    });
    let label_selector = arguments.label.iter().cloned().collect();
    let filter = cri::PodSandboxFilter {
        state,
        label_selector,
        ..Default::default()
    };
    let mut answer = client.pods(Some(filter)).await?;
    answer.items.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    let cut = |id: &str| {
        if arguments.no_trunc {
            id.to_owned()
        } else {
            short_id(id).to_owned()
        }
    };
    if arguments.quiet {
        output::text(&answer.items.iter().map(|pod| cut(&pod.id) + "\n").collect::<String>())?;
        return Ok(0);
    }
    if arguments.output != Format::Table {
        output::message(arguments.output, "runtime.v1.ListPodSandboxResponse", &answer)?;
        return Ok(0);
    }
    let mut table = Table::new(&["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"]);
    let operations = client.operations().await;
    for pod in &answer.items {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let state = match pod.state() {
            PodSandboxState::SandboxReady => "Ready",
            PodSandboxState::SandboxNotready => "NotReady",
        };
        let state = match operations.iter().find(|one| one.id == pod.id) {
            Some(one) => format!("{state} ({})", at_work(one)),
            None => state.to_owned(),
        };
        let handler = if pod.runtime_handler.is_empty() {
            "(default)"
        } else {
            &pod.runtime_handler
        };
        table.row([
            cut(&pod.id),
            age(pod.created_at),
            state,
            pod_name(pod).to_owned(),
            metadata.namespace,
            metadata.attempt.to_string(),
            handler.to_owned(),
        ]);
    }
    // What is not whole yet is in no list of CRI's.
    let is_wanted = arguments.state.is_none() && arguments.label.is_empty();
    for one in operations.iter().filter(|one| is_wanted && one.call == "RunPodSandbox") {
        table.row([cut(&one.id), String::new(), at_work(one), one.name.clone()]);
    }
    table.print()?;
    Ok(0)
}
