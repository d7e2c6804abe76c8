//! `wharf stop`: ends containers, or pods with all their containers.

use std::time::Duration;

use super::client::Client;
use super::error::{Error, Outcome};
use super::resolve::{self, Object, RUN_LABEL};
use super::{output, units};

/// How long a container may take to end by itself, as Docker has it.
pub const GRACE: Duration = Duration::from_secs(10);

/// Arguments of `wharf stop`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long a container may take before it is killed; 0 kills at once
    #[arg(short, long = "time", value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    time: Duration,
    /// Names, ids, or beginnings of ids of containers or pods
    #[arg(required = true, value_name = "CONTAINER|POD")]
    objects: Vec<String>,
}

/// Stops each; one that fails doesn't keep the others.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let stops = arguments.objects.iter().map(|text| stop(client, text, arguments.time));
    let mut code = 0;
    for (text, result) in arguments
        .objects
        .iter()
        .zip(futures_util::future::join_all(stops).await)
    {
        match result {
            Ok(()) => output::line(text)?,
            Err(problem) => {
                problem.report();
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn stop(client: &Client, text: &str, grace: Duration) -> Result<(), Error> {
    match resolve::object(client, text).await? {
        Some(Object::Container(container)) => {
            client.stop_container(&container.id, text, grace).await?;
            // The pod was made for this container alone: its addresses and its monitor are of no more use.
            if container.labels.contains_key(RUN_LABEL) {
                client.stop_pod(&container.pod_sandbox_id, text).await?;
            }
            Ok(())
        }
        Some(Object::Pod(pod)) => client.stop_pod(&pod.id, text).await,
        None => Err(resolve::absent("container or pod", text, "wharf ps")),
    }
}
