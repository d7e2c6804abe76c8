//! `wharf stats`: what containers use, once or live.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use wharf_proto::cri::{self, ContainerState};

use super::client::Client;
use super::error::{Outcome, Result};
use super::output::{self, Format, Table};
use super::resolve::{self, container_name, pod_name};
use super::units::{short_id, size};

/// Between two looks: CPU use is what happened meanwhile.
const INTERVAL: Duration = Duration::from_secs(1);
/// In place of what the runtime does not tell.
const UNKNOWN: &str = "--";

/// Arguments of `wharf stats`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Show containers that don't run as well
    #[arg(short, long)]
    all: bool,
    /// Print the figures once and end
    #[arg(long)]
    no_stream: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Form of the output; JSON and YAML are printed once
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Names, ids, or beginnings of ids; without any, all running containers
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Prints a table, every second a new one unless `--no-stream` is given.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let named = named(client, arguments).await?;
    if arguments.output != Format::Table {
        let look = look(client, arguments, &named).await?;
        let stats = cri::ListContainerStatsResponse {
            stats: look.rows.into_iter().filter_map(|row| row.stats).collect(),
        };
        output::message(arguments.output, "runtime.v1.ListContainerStatsResponse", &stats)?;
        return Ok(0);
    }
    let mut before = look(client, arguments, &named).await?;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = look(client, arguments, &named).await?;
        let text = table(&before, &now, arguments.no_trunc).render();
        // On a terminal each table takes the place of the one before.
        let live = !arguments.no_stream && io::stdout().is_terminal();
        output::text(&if live { format!("\x1b[H\x1b[2J{text}") } else { text })?;
        if arguments.no_stream || (!named.is_empty() && now.rows.is_empty()) {
            return Ok(0);
        }
        before = now;
    }
}

/// Ids of the containers that were named.
async fn named(client: &Client, arguments: &Arguments) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for name in &arguments.names {
        ids.push(resolve::container(client, name).await?.id);
    }
    Ok(ids)
}

/// One container.
struct Row {
    container: cri::Container,
    stats: Option<cri::ContainerStats>,
}

/// What was seen at one time.
#[derive(Default)]
struct Look {
    rows: Vec<Row>,
    /// Pods by id: their names and, where the runtime tells, bytes received and sent.
    pods: HashMap<String, Pod>,
    /// By container id; empty where the runtime has no metrics.
    metrics: HashMap<String, Metrics>,
}

#[derive(Default)]
struct Pod {
    name: String,
    network: Option<(u64, u64)>,
}

/// What CRI has in its metrics only.
#[derive(Default)]
struct Metrics {
    read: u64,
    written: u64,
    threads: Option<u64>,
}

async fn look(client: &Client, arguments: &Arguments, named: &[String]) -> Result<Look> {
    let (containers, stats, pods, metrics) = tokio::join!(
        client.containers(None),
        container_stats(client),
        pods(client, arguments.output),
        metrics(client, arguments.output)
    );
    let mut stats = stats?;
    let mut rows: Vec<Row> = containers?
        .containers
        .into_iter()
        .filter(|container| match named.is_empty() {
            true => arguments.all || container.state() == ContainerState::ContainerRunning,
            false => named.contains(&container.id),
        })
        .map(|container| Row {
            stats: stats.remove(&container.id),
            container,
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.container.created_at));
    Ok(Look {
        rows,
        pods: pods?,
        metrics,
    })
}

async fn container_stats(client: &Client) -> Result<HashMap<String, cri::ContainerStats>> {
    let request = client.quick(cri::ListContainerStatsRequest { filter: None });
    let answer = client.runtime().list_container_stats(request).await;
    let stats = answer.map_err(|status| client.error("ask what containers use", &status))?;
    let id = |stats: &cri::ContainerStats| stats.attributes.as_ref().map(|attributes| attributes.id.clone());
    let all = stats.into_inner().stats.into_iter();
    Ok(all.filter_map(|stats| Some((id(&stats)?, stats))).collect())
}

/// A runtime without stats of pods gives a table without the network.
async fn pods(client: &Client, format: Format) -> Result<HashMap<String, Pod>> {
    if format != Format::Table {
        return Ok(HashMap::new());
    }
    let mut pods: HashMap<String, Pod> = HashMap::new();
    for pod in client.pods(None).await?.items {
        let name = pod_name(&pod).to_owned();
        pods.insert(pod.id, Pod { name, network: None });
    }
    let request = client.quick(cri::ListPodSandboxStatsRequest { filter: None });
    let answer = client.runtime().list_pod_sandbox_stats(request).await;
    for stats in answer.map(|answer| answer.into_inner().stats).unwrap_or_default() {
        let network = stats.linux.and_then(|linux| linux.network?.default_interface);
        let pod = stats.attributes.and_then(|attributes| pods.get_mut(&attributes.id));
        if let (Some(pod), Some(device)) = (pod, network) {
            pod.network = Some((number(device.rx_bytes), number(device.tx_bytes)));
        }
    }
    Ok(pods)
}

/// A runtime without metrics gives a table without what only they tell.
async fn metrics(client: &Client, format: Format) -> HashMap<String, Metrics> {
    if format != Format::Table {
        return HashMap::new();
    }
    let request = client.quick(cri::ListPodSandboxMetricsRequest {});
    let answer = client.runtime().list_pod_sandbox_metrics(request).await;
    let pods = answer.map(|answer| answer.into_inner().pod_metrics).unwrap_or_default();
    let containers = pods.into_iter().flat_map(|pod| pod.container_metrics);
    containers
        .map(|container| {
            let mut found = Metrics::default();
            for metric in container.metrics {
                let value = number(metric.value);
                match metric.name.as_str() {
                    "container_fs_reads_bytes_total" => found.read += value,
                    "container_fs_writes_bytes_total" => found.written += value,
                    "container_threads" => found.threads = Some(value),
                    _ => {}
                }
            }
            (container.container_id, found)
        })
        .collect()
}

fn number(value: Option<cri::UInt64Value>) -> u64 {
    value.map_or(0, |value| value.value)
}

fn table(before: &Look, now: &Look, whole: bool) -> Table {
    let mut table = Table::new(&[
        "CONTAINER",
        "NAME",
        "POD",
        "CPU %",
        "MEM USAGE / LIMIT",
        "MEM %",
        "NET I/O",
        "BLOCK I/O",
        "DISK",
        "PIDS",
    ]);
    let earlier: HashMap<_, _> = before.rows.iter().map(|row| (&row.container.id, &row.stats)).collect();
    for row in &now.rows {
        let container = &row.container;
        let unknown = || UNKNOWN.to_owned();
        let cpu = |stats: &Option<cri::ContainerStats>| stats.as_ref().and_then(|stats| stats.cpu);
        let first = earlier.get(&container.id).and_then(|stats| cpu(stats));
        let memory = row.stats.as_ref().and_then(|stats| stats.memory.as_ref());
        let pod = now.pods.get(&container.pod_sandbox_id);
        let metrics = now.metrics.get(&container.id);
        let layer = row
            .stats
            .as_ref()
            .and_then(|stats| stats.writable_layer.as_ref()?.used_bytes);
        let pair = |a: u64, b: u64| format!("{} / {}", size(a), size(b));
        table.row([
            if whole {
                container.id.clone()
            } else {
                short_id(&container.id).to_owned()
            },
            container_name(container).to_owned(),
            pod.map(|pod| pod.name.clone()).unwrap_or_default(),
            percent(cpu_share(first, cpu(&row.stats))),
            memory.map_or_else(unknown, |memory| match limit(memory) {
                Some(limit) => pair(number(memory.working_set_bytes), limit),
                None => format!("{} / no limit", size(number(memory.working_set_bytes))),
            }),
            percent(memory.and_then(|memory| {
                let limit = limit(memory).filter(|limit| *limit > 0)?;
                Some(number(memory.working_set_bytes) as f64 / limit as f64)
            })),
            pod.and_then(|pod| pod.network)
                .map_or_else(unknown, |(received, sent)| pair(received, sent)),
            metrics.map_or_else(unknown, |metrics| pair(metrics.read, metrics.written)),
            layer.map_or_else(unknown, |bytes| size(bytes.value)),
            metrics
                .and_then(|metrics| metrics.threads)
                .map_or_else(unknown, |threads| threads.to_string()),
        ]);
    }
    table
}

/// Cores in use between two looks; what the runtime computed where there is only one.
fn cpu_share(before: Option<cri::CpuUsage>, now: Option<cri::CpuUsage>) -> Option<f64> {
    let now = now?;
    let told = now.usage_nano_cores.map(|cores| cores.value as f64 / 1e9);
    let Some(before) = before.filter(|before| before.timestamp < now.timestamp) else {
        return told;
    };
    let used = number(now.usage_core_nano_seconds).saturating_sub(number(before.usage_core_nano_seconds));
    Some(used as f64 / (now.timestamp - before.timestamp) as f64)
}

/// What may be used; runtimes leave out what is free, or say zero, where there is no limit.
fn limit(memory: &cri::MemoryUsage) -> Option<u64> {
    let free = number(memory.available_bytes);
    (free > 0).then(|| free + number(memory.working_set_bytes))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| UNKNOWN.to_owned(), |share| format!("{:.2}%", share * 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(timestamp: i64, used: u64, cores: Option<u64>) -> Option<cri::CpuUsage> {
        Some(cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: Some(cri::UInt64Value { value: used }),
            usage_nano_cores: cores.map(|value| cri::UInt64Value { value }),
            psi: None,
        })
    }

    #[test]
    fn cpu_use_is_what_happened_between_two_looks() {
        let second = 1_000_000_000;
        let share = cpu_share(usage(second, 0, None), usage(3 * second, second as u64, None));
        assert_eq!(percent(share), "50.00%");
        assert_eq!(percent(cpu_share(None, usage(second, 7, Some(20_000_000)))), "2.00%");
        assert_eq!(percent(cpu_share(None, usage(second, 7, None))), "--");
        assert_eq!(percent(cpu_share(usage(second, 7, None), None)), "--");
    }

    #[test]
    fn a_container_that_does_not_run_has_a_row_without_figures() {
        let row = Row {
            container: cri::Container {
                id: "0123456789abcdef".into(),
                ..Default::default()
            },
            stats: None,
        };
        let look = Look {
            rows: vec![row],
            ..Look::default()
        };
        let text = table(&look, &look, false).render();
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("0123456789abc "), "{line}");
        assert_eq!(line.matches("--").count(), 7, "{line}");
    }

    #[test]
    fn no_limit_is_said_in_words() {
        let memory = |free: Option<u64>| cri::MemoryUsage {
            working_set_bytes: Some(cri::UInt64Value { value: 10 }),
            available_bytes: free.map(|value| cri::UInt64Value { value }),
            ..Default::default()
        };
        assert_eq!(limit(&memory(Some(90))), Some(100));
        assert_eq!((limit(&memory(None)), limit(&memory(Some(0)))), (None, None));
    }
}
