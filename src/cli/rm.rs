//! `wharf rm`: removes containers, or pods with all their containers.

use std::path::Path;

use wharf_proto::cri::{self, ContainerState, PodSandboxState};

use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::output;
use super::resolve::{self, Object, RUN_LABEL};
use crate::node::KEEP_LOG;

/// Arguments of `wharf rm`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Remove what runs as well; don't complain about what isn't there
    #[arg(short, long)]
    force: bool,
    /// Names, ids, or beginnings of ids of containers or pods
    #[arg(required = true, value_name = "CONTAINER|POD")]
    objects: Vec<String>,
}

/// Removes each; one that fails doesn't keep the others.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut code = 0;
    for text in &arguments.objects {
        match remove(client, text, arguments.force).await {
            Ok(()) => output::line(text)?,
            Err(problem) => {
                problem.report();
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn remove(client: &Client, text: &str, force: bool) -> Result<()> {
    let running = |kind: &str| {
        Error::new(format!("{kind} {text} is running")).hint(format!("`wharf stop {text}` first, or use -f."))
    };
    match resolve::object(client, text).await? {
        Some(Object::Container(container)) => {
            if container.state() == ContainerState::ContainerRunning && !force {
                return Err(running("container"));
            }
            if container.labels.contains_key(RUN_LABEL) {
                return run_made(client, &container, text).await;
            }
            client.remove_container(&container.id, text).await
        }
        Some(Object::Pod(pod)) => {
            if pod.state() == PodSandboxState::SandboxReady && !force {
                return Err(running("pod"));
            }
            client.stop_pod(&pod.id, text).await?;
            client.remove_pod(&pod.id, text).await
        }
        None if force => Ok(()),
        None => Err(resolve::absent("container or pod", text, "wharf ps -a")),
    }
}

/// Removes a container that `wharf run` made, with the pod and the log that were made for it.
pub async fn run_made(client: &Client, container: &cri::Container, name: &str) -> Result<()> {
    let log = client
        .container_status(&container.id, false)
        .await
        .ok()
        .and_then(|answer| answer.status);
    let pod = &container.pod_sandbox_id;
    client.stop_pod(pod, name).await?;
    client.remove_pod(pod, name).await?;
    if let Some(log) = log.filter(|status| !status.annotations.contains_key(KEEP_LOG)) {
        remove_log(Path::new(&log.log_path));
    }
    Ok(())
}

/// Removes a log that this command's `run` had asked for. CRI leaves logs to whoever asked for them.
fn remove_log(path: &Path) {
    if path.is_absolute() && std::fs::remove_file(path).is_ok() {
        // Fails when something else lies there, which is then not ours.
        let _ = path.parent().map(std::fs::remove_dir);
    }
}
