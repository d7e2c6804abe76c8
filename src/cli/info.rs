//! `wharf info`: the state of the daemon.

use serde_json::{Map, Value};
use wharf_proto::cri;

use super::client::Client;
use super::error::{Outcome, Result};
use super::output::{self, Format, Table};
use super::units::size;
use super::{inspect, version};

/// Arguments of `wharf info`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints conditions, handlers and counts; as JSON, all that the daemon tells.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let request = client.quick(cri::StatusRequest { verbose: true });
    let answer = client.runtime().status(request).await;
    let answer = answer
        .map_err(|status| client.error("ask for the daemon's state", &status))?
        .into_inner();
    if arguments.output == Format::Table {
        table(client, &answer).await?;
    } else {
        output::value(arguments.output, &whole(&answer)?)?;
    }
    Ok(0)
}

async fn table(client: &Client, answer: &cri::StatusResponse) -> Result<()> {
    let (server, containers, pods, images, disk) = tokio::join!(
        version::server(client),
        client.containers(None),
        client.pods(None),
        client.images(),
        async {
            client
                .image()
                .image_fs_info(client.quick(cri::ImageFsInfoRequest {}))
                .await
                .ok()
        }
    );
    let (containers, pods, images) = (containers?.containers, pods?.items, images?.images);
    let running = containers
        .iter()
        .filter(|c| c.state() == cri::ContainerState::ContainerRunning)
        .count();
    let ready = pods
        .iter()
        .filter(|p| p.state() == cri::PodSandboxState::SandboxReady)
        .count();
    let handlers: Vec<&str> = answer
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    let mut rows = vec![("Endpoint", client.endpoint().to_owned())];
    if let Ok(server) = server {
        rows.push(("Runtime", format!("{} {}", server.runtime_name, server.runtime_version)));
    }
    rows.push(("Pods", format!("{} ({ready} ready)", pods.len())));
    rows.push(("Containers", format!("{} ({running} running)", containers.len())));
    rows.push(("Images", images.len().to_string()));
    for usage in disk.iter().flat_map(|disk| &disk.get_ref().image_filesystems) {
        let bytes = usage.used_bytes.as_ref().map_or(0, |used| used.value);
        let place = usage.fs_id.as_ref().map_or("", |id| id.mountpoint.as_str());
        rows.push(("Image storage", format!("{} in {place}", size(bytes))));
    }
    let handlers: Vec<&str> = handlers.into_iter().filter(|name| !name.is_empty()).collect();
    if !handlers.is_empty() {
        rows.push(("Handlers", handlers.join(", ")));
    }
    if let Some(state) = lazy_images(answer) {
        rows.push(("Lazy images", state));
    }
    let mut text = String::new();
    for (key, value) in rows {
        text.push_str(&format!("{key:<15} {value}\n"));
    }
    output::text(&(text + "\n"))?;
    let mut table = Table::new(&["CONDITION", "STATUS", "REASON", "MESSAGE"]);
    for condition in answer.status.iter().flat_map(|status| &status.conditions) {
        let status = if condition.status { "true" } else { "false" };
        let cells = [&condition.r#type, status, &condition.reason, &condition.message];
        table.row(cells.map(str::to_owned));
    }
    table.print()
}

/// Whether containers can start before their images are complete, as the daemon says.
fn lazy_images(answer: &cri::StatusResponse) -> Option<String> {
    let daemon: Value = serde_json::from_str(answer.info.get("daemon")?).ok()?;
    daemon.get("lazyImages")?.as_str().map(str::to_owned)
}

/// crictl's shape: the message's fields, with the verbose information spread out beside them.
fn whole(answer: &cri::StatusResponse) -> Result<Value> {
    let mut whole = Map::new();
    if let Value::Object(mut fields) = output::to_json("runtime.v1.StatusResponse", answer)? {
        fields.remove("info");
        whole.extend(fields);
    }
    if let Value::Object(fields) = inspect::verbose(answer.info.clone()) {
        whole.extend(fields);
    }
    Ok(Value::Object(whole))
}
