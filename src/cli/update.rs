//! `wharf update`: changes the limits of containers while they run.

use wharf_proto::cri;

use super::client::Client;
use super::error::{Error, Outcome};
use super::run::flags::{cpus, memory};
use super::{output, resolve};

/// Arguments of `wharf update`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Number of CPUs that may be used, for example 0.5
    #[arg(long, value_name = "NUMBER", value_parser = cpus, conflicts_with_all = ["cpu_quota", "cpu_period"])]
    cpus: Option<i64>,
    /// Weight among containers when CPU time is short; 1024 is the default of a container
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(i64).range(2..=262_144))]
    cpu_shares: Option<i64>,
    /// Microseconds of CPU time in a period; -1 is no limit
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of a period in microseconds
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(i64).range(1..))]
    cpu_period: Option<i64>,
    /// CPUs that may be used, for example 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, for example 0
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Most memory, for example 64m; -1 is no limit
    #[arg(short, long, value_name = "SIZE", value_parser = limit, allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Most memory and swap together; -1 is no limit to swap
    #[arg(long, value_name = "SIZE", value_parser = limit, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Names, ids, or beginnings of ids of containers
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

fn limit(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { memory(text) }
}

impl Arguments {
    fn resources(&self) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            cpu_period: self.cpus.map_or(self.cpu_period, |_| Some(100_000)).unwrap_or_default(),
            cpu_quota: self.cpus.or(self.cpu_quota).unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            memory_limit_in_bytes: self.memory.unwrap_or_default(),
            memory_swap_limit_in_bytes: self.memory_swap.unwrap_or_default(),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            ..Default::default()
        }
    }
}

/// Updates each; one that fails doesn't keep the others.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let resources = arguments.resources();
    if resources == cri::LinuxContainerResources::default() {
        return Err(Error::new("there is nothing to update").hint("`wharf update --help` lists the limits."));
    }
    let mut code = 0;
    for text in &arguments.containers {
        let update = async {
            let container = resolve::container(client, text).await?;
            client.update_container(&container.id, text, resources.clone()).await
        };
        match update.await {
            Ok(()) => output::line(text)?,
            Err(problem) => {
                problem.report();
                code = 1;
            }
        }
    }
    Ok(code)
}
