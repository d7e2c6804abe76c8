//! `wharf system df`: what images and containers take on disk.

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::{Outcome, Result};
use super::output::{self, Format, Table};
use super::units::{age, short_id, size};

/// Arguments of `wharf system`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Show what images and containers take on disk
    Df(Df),
}

#[derive(clap::Args)]
struct Df {
    /// Show each image and each container
    #[arg(short, long)]
    verbose: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Does what the subcommand says.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    match &arguments.action {
        Action::Df(df) => self::df(client, df).await,
    }
}

async fn df(client: &Client, arguments: &Df) -> Outcome {
    let usage = usage(client).await?;
    match (arguments.output, arguments.verbose) {
        (Format::Table, false) => summary(&usage).print()?,
        (Format::Table, true) => {
            images(&usage).print()?;
            output::line("")?;
            containers(&usage).print()?;
        }
        (format, _) => output::message(format, "wharf.v1.DiskUsageResponse", &usage)?,
    }
    Ok(0)
}

/// The daemon's figures.
pub async fn usage(client: &Client) -> Result<api::DiskUsageResponse> {
    let request = client.patient(api::DiskUsageRequest {}, Owner::All);
    let answer = client.wharf().disk_usage(request).await;
    Ok(answer
        .map_err(|status| client.error("ask what is used on disk", &status))?
        .into_inner())
}

/// As `docker system df` has it. What can be had back is what a removal of all that nothing uses frees.
fn summary(usage: &api::DiskUsageResponse) -> Table {
    let share = |part: u64, all: u64| match all {
        0 => size(part),
        all => format!("{} ({}%)", size(part), part * 100 / all),
    };
    let active = usage.images.iter().filter(|image| image.containers > 0).count();
    let free = usage.images.iter().filter(|image| image.containers == 0);
    let free: u64 = free.map(|image| image.unique).sum();
    let written: u64 = usage.containers.iter().map(|container| container.bytes).sum();
    let running = usage.containers.iter().filter(|container| container.running).count();
    let ended = usage.containers.iter().filter(|container| !container.running);
    let ended: u64 = ended.map(|container| container.bytes).sum();
    let mut table = Table::new(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    table.row([
        "Images".to_owned(),
        usage.images.len().to_string(),
        active.to_string(),
        size(usage.layers_bytes),
        share(free, usage.layers_bytes),
    ]);
    table.row([
        "Containers".to_owned(),
        usage.containers.len().to_string(),
        running.to_string(),
        size(written),
        share(ended, written),
    ]);
    table
}

/// One row for each image, the largest first.
fn images(usage: &api::DiskUsageResponse) -> Table {
    let mut images: Vec<_> = usage.images.iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.unique + image.shared));
    let mut table = Table::new(&["IMAGE", "IMAGE ID", "PULLED", "SIZE", "SHARED", "UNIQUE", "CONTAINERS"]);
    for image in images {
        table.row([
            image.names.first().cloned().unwrap_or_else(|| "<none>".to_owned()),
            short_id(&image.id).to_owned(),
            age(image.pulled_at),
            size(image.unique + image.shared),
            size(image.shared),
            size(image.unique),
            image.containers.to_string(),
        ]);
    }
    table
}

fn containers(usage: &api::DiskUsageResponse) -> Table {
    let mut table = Table::new(&["CONTAINER", "IMAGE ID", "CREATED", "STATE", "SIZE", "FILES", "NAME"]);
    for container in &usage.containers {
        let state = if container.running { "Running" } else { "Not running" };
        let (bytes, inodes) = match container.measured_at {
            0 => ("unknown".to_owned(), String::new()),
            _ => (size(container.bytes), container.inodes.to_string()),
        };
        table.row([
            short_id(&container.id).to_owned(),
            short_id(&container.image_id).to_owned(),
            age(container.created_at),
            state.to_owned(),
            bytes,
            inodes,
            container.name.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_unused_images_have_can_be_had_back() {
        let image = |unique, shared, containers| api::ImageUsage {
            unique,
            shared,
            containers,
            ..Default::default()
        };
        let usage = api::DiskUsageResponse {
            images: vec![image(1000, 500, 1), image(3000, 500, 0)],
            layers_bytes: 4500,
            ..Default::default()
        };
        let text = summary(&usage).render();
        assert!(
            text.contains("Images       2       1        4.50kB   3.00kB (66%)"),
            "{text}"
        );
    }
}
