//! `wharf image`: lists images, and removes those that nothing needs.

use std::collections::HashSet;
use std::io::{self, BufRead as _, IsTerminal as _};

use wharf_proto::cri;

use super::client::{Client, Owner, image_spec};
use super::error::{Error, Outcome};
use super::output;
use super::units::size;

/// Arguments of `wharf image`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// List images
    Ls(super::images::Arguments),
    /// Remove images without a name that no container uses; pinned ones stay
    Prune(Prune),
}

#[derive(clap::Args)]
struct Prune {
    /// All images that no container uses, with a name too
    #[arg(short, long)]
    all: bool,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
}

/// Does what the subcommand says.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    match &arguments.action {
        Action::Ls(list) => super::images::run(client, list).await,
        Action::Prune(prune) => self::prune(client, prune).await,
    }
}

async fn prune(client: &Client, arguments: &Prune) -> Outcome {
    if !arguments.force && !agreed(arguments.all)? {
        return Ok(0);
    }
    let images = client.images().await?.images;
    let used: HashSet<String> = client
        .containers(None)
        .await?
        .containers
        .into_iter()
        .flat_map(|container| {
            [
                container.image_id,
                container.image_ref,
                container.image.unwrap_or_default().image,
            ]
        })
        .collect();
    let (mut code, mut freed) = (0, 0);
    for image in images.iter().filter(|image| unneeded(image, &used, arguments.all)) {
        let message = cri::RemoveImageRequest {
            image: Some(image_spec(&image.id)),
        };
        match client.image().remove_image(client.patient(message, Owner::All)).await {
            Ok(_) => {
                for name in &image.repo_tags {
                    output::line(&format!("Untagged: {name}"))?;
                }
                output::line(&format!("Deleted: {}", image.id))?;
                freed += image.size;
            }
            Err(status) => {
                client.error(&format!("remove image {}", image.id), &status).report();
                code = 1;
            }
        }
    }
    output::line(&format!("Total reclaimed space: {}", size(freed)))?;
    Ok(code)
}

fn unneeded(image: &cri::Image, used: &HashSet<String>, all: bool) -> bool {
    let mut names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
    !image.pinned && (all || image.repo_tags.is_empty()) && !names.any(|name| used.contains(name))
}

/// Asks the person; without one nothing is agreed to.
fn agreed(all: bool) -> Result<bool, Error> {
    let what = if all {
        "all images without at least one container associated to them"
    } else {
        "all dangling images"
    };
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::new(format!("this will remove {what}")).hint("Say --force when nobody can be asked."));
    }
    output::note(format_args!("WARNING! This will remove {what}."));
    eprint!("Are you sure you want to continue? [y/N] ");
    let mut line = String::new();
    stdin.lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_name_a_pin_or_a_container_stays() {
        let image = |id: &str, tags: &[&str], pinned| cri::Image {
            id: id.into(),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: vec![format!("x@{id}")],
            pinned,
            ..Default::default()
        };
        let used = HashSet::from(["used".to_owned(), "named:1".to_owned(), "x@digest".to_owned()]);
        for (image, dangling, all) in [
            (image("a", &[], false), true, true),
            (image("a", &["t:1"], false), false, true),
            (image("a", &[], true), false, false),
            (image("used", &[], false), false, false),
            (image("a", &["named:1"], false), false, false),
            (image("digest", &[], false), false, false),
        ] {
            assert_eq!(unneeded(&image, &used, false), dangling, "{image:?}");
            assert_eq!(unneeded(&image, &used, true), all, "{image:?}");
        }
    }
}
