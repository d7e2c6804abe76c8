//! `wharf rmi`: removes images.

use super::client::{Client, Owner, image_spec};
use super::error::{Error, Outcome};
use super::{output, resolve};

/// Arguments of `wharf rmi`.
#[derive(clap::Args)]
pub struct Arguments {
    /// References, ids, or beginnings of ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Don't complain about images that aren't there
    #[arg(short, long)]
    force: bool,
}

/// Removes each image; one that fails doesn't keep the others.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut code = 0;
    for text in &arguments.images {
        match remove(client, text, arguments.force).await {
            Ok(()) => {}
            Err(problem) => {
                problem.report();
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn remove(client: &Client, text: &str, force: bool) -> Result<(), Error> {
    let Some(found) = resolve::image(client, text, false)
        .await?
        .and_then(|status| status.image)
    else {
        return if force {
            Ok(())
        } else {
            Err(resolve::absent("image", text, "wharf images"))
        };
    };
    // By id when an id was typed: a tag that is the same text must not be meant.
    let by_id = found
        .id
        .trim_start_matches("sha256:")
        .starts_with(text.trim_start_matches("sha256:"));
    let image = Some(image_spec(if by_id { &found.id } else { text }));
    let message = wharf_proto::cri::RemoveImageRequest { image };
    let answer = client.image().remove_image(client.patient(message, Owner::All)).await;
    answer.map_err(|status| client.error(&format!("remove image {text}"), &status))?;
    output::line(&format!("Removed {text}"))
}
