//! `wharf tag`: gives an image another name.

use wharf_proto::api;

use super::client::{Client, Owner};
use super::error::Outcome;
use super::output;

/// Arguments of `wharf tag`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Reference, id, or beginning of an id of an image that is here
    image: String,
    /// The name to give, for example host/team/app:v1; another image that has it loses it
    name: String,
}

/// Gives the name.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let message = api::TagImageRequest {
        image: arguments.image.clone(),
        name: arguments.name.clone(),
    };
    let answer = client.wharf().tag_image(client.patient(message, Owner::All)).await;
    let tagged = answer.map_err(|status| client.error(&format!("tag {}", arguments.image), &status))?;
    output::line(&format!("Tagged {}", tagged.into_inner().name))?;
    Ok(0)
}
