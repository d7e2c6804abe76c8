//! `wharf images`: the images on this node, as a table.

use std::collections::HashMap;

use wharf_proto::{api, cri};

use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::output::{self, Format, Table};
use super::units::{percent, short_id, size};

/// Arguments of `wharf images`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only images of this repository, or with this reference; `*` stands for any text
    #[arg(value_name = "REPOSITORY[:TAG]")]
    reference: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only images for which this holds: dangling=true|false, reference=PATTERN; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<Filter>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A condition on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Dangling(bool),
    Reference(String),
}

/// Prints the list in the order of names.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut answer = client.images().await?;
    let mut filters = arguments.filter.clone();
    filters.extend(arguments.reference.clone().map(Filter::Reference));
    answer
        .images
        .retain(|image| filters.iter().all(|filter| filter.holds(image)));
    answer
        .images
        .sort_by(|a, b| (a.repo_tags.first(), &a.id).cmp(&(b.repo_tags.first(), &b.id)));
    let whole = arguments.no_trunc;
    let cut = |id: &str| if whole { id.to_owned() } else { short_id(id).to_owned() };
    if arguments.quiet {
        output::text(
            &answer
                .images
                .iter()
                .map(|image| cut(&image.id) + "\n")
                .collect::<String>(),
        )?;
        return Ok(0);
    }
    if arguments.output != Format::Table {
        output::message(arguments.output, "runtime.v1.ListImagesResponse", &answer)?;
        return Ok(0);
    }
    table(&answer.images, &incomplete(client).await, arguments.digests, cut).print()?;
    Ok(0)
}

/// How much of which images is here, by id, of those that can be used before it is all; other runtimes tell of none.
async fn incomplete(client: &Client) -> HashMap<String, String> {
    let request = client.quick(api::ListIncompleteRequest {});
    let answer = client.wharf().list_incomplete(request).await;
    let images = answer.map_or_else(|_| Vec::new(), |answer| answer.into_inner().images);
    let state = |image: &api::IncompleteImage| format!("lazy, {}", percent(image.current, image.total));
    images
        .into_iter()
        .map(|image| (image.id.clone(), state(&image)))
        .collect()
}

/// The column of states is there only if an image has one.
fn table(
    images: &[cri::Image],
    states: &HashMap<String, String>,
    digests: bool,
    cut: impl Fn(&str) -> String,
) -> Table {
    let mut head = vec!["IMAGE", "TAG"];
    head.extend(digests.then_some("DIGEST"));
    head.extend(["IMAGE ID", "SIZE"]);
    head.extend((!states.is_empty()).then_some("STATE"));
    let mut table = Table::new(&head);
    for image in images {
        for (repository, tag, digest) in names(image) {
            let mut cells = vec![repository, tag];
            cells.extend(digests.then_some(digest));
            cells.extend([cut(&image.id), size(image.size)]);
            if !states.is_empty() {
                cells.push(states.get(&image.id).cloned().unwrap_or_default());
            }
            table.row(cells);
        }
    }
    table
}

/// Repository, tag and digest, one row per tag; an image without a tag has one row.
fn names(image: &cri::Image) -> Vec<(String, String, String)> {
    let none = || "<none>".to_owned();
    let digest_of = |repository: &str| {
        let fits = |digest: &&String| digest.split_once('@').is_some_and(|(name, _)| name == repository);
        let digest = image
            .repo_digests
            .iter()
            .find(fits)
            .and_then(|digest| digest.split_once('@'));
        digest.map_or_else(none, |(_, digest)| digest.to_owned())
    };
    if image.repo_tags.is_empty() {
        let first = image.repo_digests.first().and_then(|digest| digest.split_once('@'));
        let repository = first.map_or_else(none, |(name, _)| name.to_owned());
        let digest = first.map_or_else(none, |(_, digest)| digest.to_owned());
        return vec![(repository, none(), digest)];
    }
    image
        .repo_tags
        .iter()
        .map(|reference| match split_tag(reference) {
            (repository, Some(tag)) => (repository.to_owned(), tag.to_owned(), digest_of(repository)),
            (repository, None) => (repository.to_owned(), none(), digest_of(repository)),
        })
        .collect()
}

/// Splits at the tag's colon, which is after the last slash; an earlier colon belongs to a port.
fn split_tag(reference: &str) -> (&str, Option<&str>) {
    match reference.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (reference, None),
    }
}

fn filter(text: &str) -> Result<Filter, String> {
    match text.split_once('=') {
        Some(("dangling", "true" | "1")) => Ok(Filter::Dangling(true)),
        Some(("dangling", "false" | "0")) => Ok(Filter::Dangling(false)),
        Some(("reference", pattern)) => Ok(Filter::Reference(pattern.to_owned())),
        _ => Err(Error::new("filters are dangling=true, dangling=false and reference=PATTERN").to_string()),
    }
}

impl Filter {
    fn holds(&self, image: &cri::Image) -> bool {
        match self {
            Self::Dangling(wanted) => image.repo_tags.is_empty() == *wanted,
            Self::Reference(pattern) => image.repo_tags.iter().chain(&image.repo_digests).any(|reference| {
                let short = reference
                    .trim_start_matches("docker.io/")
                    .trim_start_matches("library/");
                let repository = split_tag(reference).0;
                let short_repository = split_tag(short).0;
                [reference, short, repository, short_repository]
                    .iter()
                    .any(|name| matches(pattern, name))
            }),
        }
    }
}

/// Whether `text` has the form of `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    rest.is_empty() || text.char_indices().any(|(at, _)| matches(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str]) -> cri::Image {
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        cri::Image {
            id: "sha256:0123456789abcdef".into(),
            repo_tags: own(tags),
            repo_digests: own(digests),
            size: 4_270_000,
            ..Default::default()
        }
    }

    #[test]
    fn an_image_has_a_row_for_each_tag() {
        let images = [
            image(
                &["localhost:5000/a:1", "docker.io/library/b:2"],
                &["localhost:5000/a@sha256:aa"],
            ),
            image(&[], &[]),
        ];
        assert_eq!(
            table(&images, &HashMap::new(), true, |id| short_id(id).to_owned()).render(),
            "IMAGE                 TAG      DIGEST      IMAGE ID        SIZE\n\
             localhost:5000/a      1        sha256:aa   0123456789abc   4.27MB\n\
             docker.io/library/b   2        <none>      0123456789abc   4.27MB\n\
             <none>                <none>   <none>      0123456789abc   4.27MB\n"
        );
    }

    #[test]
    fn what_is_not_all_here_says_how_much_is() {
        let states = HashMap::from([("sha256:0123456789abcdef".to_owned(), "lazy, 43 %".to_owned())]);
        let mut other = image(&["b:2"], &[]);
        other.id = "sha256:fedcba9876543210".into();
        let images = [image(&["a:1"], &[]), other];
        let text = table(&images, &states, false, |id| short_id(id).to_owned()).render();
        assert_eq!(
            text.lines().map(str::trim_end).collect::<Vec<_>>(),
            [
                "IMAGE   TAG   IMAGE ID        SIZE     STATE",
                "a       1     0123456789abc   4.27MB   lazy, 43 %",
                "b       2     fedcba9876543   4.27MB",
            ]
        );
    }

    #[test]
    fn filters_know_short_names_and_stars() {
        let image = image(&["docker.io/library/busybox:1.36"], &[]);
        for pattern in [
            "busybox",
            "busybox:1.36",
            "docker.io/library/busybox",
            "busy*",
            "*:1.*",
            "library*",
            "*",
        ] {
            let holds = Filter::Reference(pattern.into()).holds(&image);
            assert_eq!(holds, pattern != "library*", "{pattern}");
        }
        assert!(!Filter::Reference("busybox:1".into()).holds(&image));
        assert_eq!(filter("dangling=true"), Ok(Filter::Dangling(true)));
        assert!(!Filter::Dangling(true).holds(&image));
        assert!(filter("label=x").is_err());
    }
}
