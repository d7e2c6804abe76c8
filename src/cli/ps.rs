//! `wharf ps`: the containers, as a table.

use std::collections::{HashMap, HashSet};

use futures_util::StreamExt as _;
use wharf_proto::{
    api,
    cri::{self, ContainerState},
};

use super::client::{Client, at_work};
use super::error::{Outcome, Result};
use super::output::{self, Format, Table};
use super::resolve::{container_name, pod_name};
use super::units::{age, short_id};

/// Calls in flight while exit codes are looked up.
const PARALLEL: usize = 16;

/// Arguments of `wharf ps`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Show containers that don't run as well
    #[arg(short, long)]
    all: bool,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only containers of this pod (id)
    #[arg(long, value_name = "ID")]
    pod: Option<String>,
    /// Only containers with this label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = super::run::label)]
    label: Vec<(String, String)>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints the list, newest first.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut answer = client.containers(Some(filter(arguments))).await?;
    answer
        .containers
        .sort_by_key(|container| std::cmp::Reverse(container.created_at));
    if arguments.quiet {
        let ids = answer
            .containers
            .iter()
            .map(|c| if arguments.no_trunc { &c.id } else { short_id(&c.id) });
        output::text(&ids.map(|id| format!("{id}\n")).collect::<String>())?;
        return Ok(0);
    }
    if arguments.output != Format::Table {
        output::message(arguments.output, "runtime.v1.ListContainersResponse", &answer)?;
        return Ok(0);
    }
    table(client, &answer.containers, arguments.no_trunc, arguments.all)
        .await?
        .print()?;
    Ok(0)
}

fn filter(arguments: &Arguments) -> cri::ContainerFilter {
    let running = cri::ContainerStateValue {
        state: ContainerState::ContainerRunning.into(),
    };
    cri::ContainerFilter {
        state: (!arguments.all).then_some(running),
        pod_sandbox_id: arguments.pod.clone().unwrap_or_default(),
        label_selector: arguments.label.iter().cloned().collect(),
        ..Default::default()
    }
}

async fn table(client: &Client, containers: &[cri::Container], whole: bool, all: bool) -> Result<Table> {
    let (pods, images, exits, paused, operations) = tokio::join!(
        pods(client),
        images(client, containers),
        exits(client, containers),
        paused(client),
        client.operations()
    );
    let at_work = |id: &str| operations.iter().find(|one| one.id == id).map(at_work);
    let cut = |id: &str| if whole { id.to_owned() } else { short_id(id).to_owned() };
    let mut table = Table::new(&[
        "CONTAINER",
        "IMAGE",
        "CREATED",
        "STATE",
        "NAME",
        "ATTEMPT",
        "POD ID",
        "POD",
    ]);
    for container in containers {
        let label = container.labels.get("io.kubernetes.pod.name").cloned();
        table.row([
            cut(&container.id),
            image_name(container, &images, whole),
            age(container.created_at),
            {
                let state = match paused.contains(&container.id) {
                    true => "Paused".to_owned(),
                    false => state(container.state(), exits.get(&container.id)),
                };
                match at_work(&container.id) {
                    Some(work) => format!("{state} ({work})"),
                    None => state,
                }
            },
            container_name(container).to_owned(),
            container
                .metadata
                .as_ref()
                .map_or(0, |metadata| metadata.attempt)
                .to_string(),
            cut(&container.pod_sandbox_id),
            pods.get(&container.pod_sandbox_id)
                .cloned()
                .or(label)
                .unwrap_or_default(),
        ]);
    }
    // What is not whole yet is in no list of CRI's.
    for one in operations.iter().filter(|one| all && one.call == "CreateContainer") {
        let cells = [
            cut(&one.id),
            String::new(),
            String::new(),
            at_work(&one.id).unwrap_or_default(),
            one.name.clone(),
        ];
        table.row(cells);
    }
    Ok(table)
}

/// Names of pods by id. A table without them is better than none.
async fn pods(client: &Client) -> HashMap<String, String> {
    let answer = client.pods(None).await.unwrap_or_default();
    answer
        .items
        .into_iter()
        .map(|pod| (pod.id.clone(), pod_name(&pod).to_owned()))
        .collect()
}

/// Ids of paused containers; other runtimes tell of none.
async fn paused(client: &Client) -> HashSet<String> {
    let request = client.quick(api::ListPausedRequest {});
    match client.wharf().list_paused(request).await {
        Ok(answer) => answer.into_inner().container_ids.into_iter().collect(),
        Err(_) => HashSet::new(),
    }
}

/// Names of images by id, asked for only if a container was made by image id, as kubelet does.
async fn images(client: &Client, containers: &[cri::Container]) -> HashMap<String, String> {
    if containers.iter().all(|container| typed_name(container).is_some()) {
        return HashMap::new();
    }
    let answer = client.images().await.unwrap_or_default();
    answer
        .images
        .into_iter()
        .filter_map(|image| Some((image.id, image.repo_tags.into_iter().next()?)))
        .collect()
}

fn typed_name(container: &cri::Container) -> Option<&str> {
    let spec = container.image.as_ref()?;
    [&spec.user_specified_image, &spec.image]
        .into_iter()
        .find(|name| !name.is_empty() && !name.starts_with("sha256:"))
        .map(String::as_str)
}

fn image_name(container: &cri::Container, names: &HashMap<String, String>, whole: bool) -> String {
    if let Some(name) = typed_name(container) {
        return match name.split_once("@sha256:") {
            Some((repository, digest)) if !whole => format!("{repository}@{}", short_id(digest)),
            _ => name.to_owned(),
        };
    }
    let spec = container.image.as_ref().map_or("", |spec| spec.image.as_str());
    let id = [container.image_id.as_str(), spec]
        .into_iter()
        .find(|id| !id.is_empty())
        .unwrap_or("");
    names
        .get(id)
        .cloned()
        .unwrap_or_else(|| if whole { id.to_owned() } else { short_id(id).to_owned() })
}

/// Exit codes and times of those that have ended; lists of CRI lack them.
async fn exits(client: &Client, containers: &[cri::Container]) -> HashMap<String, cri::ContainerStatus> {
    let ended = containers
        .iter()
        .filter(|container| container.state() == ContainerState::ContainerExited);
    let statuses = ended.map(|container| async move {
        let answer = client.container_status(&container.id, false).await.ok()?;
        Some((container.id.clone(), answer.status?))
    });
    futures_util::stream::iter(statuses)
        .buffer_unordered(PARALLEL)
        .filter_map(std::future::ready)
        .collect()
        .await
}

fn state(state: ContainerState, exit: Option<&cri::ContainerStatus>) -> String {
    match (state, exit) {
        (ContainerState::ContainerCreated, _) => "Created".to_owned(),
        (ContainerState::ContainerRunning, _) => "Running".to_owned(),
        (ContainerState::ContainerExited, Some(exit)) => {
            format!("Exited ({}) {}", exit.exit_code, age(exit.finished_at))
                .trim_end()
                .to_owned()
        }
        (ContainerState::ContainerExited, None) => "Exited".to_owned(),
        (ContainerState::ContainerUnknown, _) => "Unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str, user: &str) -> cri::Container {
        cri::Container {
            image: Some(cri::ImageSpec {
                image: image.into(),
                user_specified_image: user.into(),
                ..Default::default()
            }),
            image_id: "sha256:0123456789abcdef".into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_image_is_shown_by_the_name_that_was_typed() {
        let names = HashMap::from([("sha256:0123456789abcdef".to_owned(), "docker.io/library/a:1".to_owned())]);
        let none = HashMap::new();
        assert_eq!(image_name(&container("sha256:01", "a:1"), &none, false), "a:1");
        assert_eq!(image_name(&container("b:2", ""), &none, false), "b:2");
        assert_eq!(
            image_name(&container("sha256:0123456789abcdef", ""), &names, false),
            "docker.io/library/a:1"
        );
        assert_eq!(
            image_name(&container("sha256:0123456789abcdef", ""), &none, false),
            "0123456789abc"
        );
        let digest = format!("r/a@sha256:{}", "f".repeat(64));
        assert_eq!(image_name(&container(&digest, ""), &none, false), "r/a@fffffffffffff");
    }
}
