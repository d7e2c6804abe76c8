//! `wharf history`: shows how an image was made.

use wharf_proto::api;

use super::client::Client;
use super::error::Outcome;
use super::output::Table;
use super::units;

/// Arguments of `wharf history`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Reference, id, or beginning of an id
    image: String,
}

/// Prints the steps, newest first.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let message = api::ImageHistoryRequest {
        image: arguments.image.clone(),
    };
    let answer = client.wharf().image_history(client.quick(message)).await;
    let history = answer.map_err(|status| client.error(&format!("history of {}", arguments.image), &status))?;
    let mut table = Table::new(&["LAYER", "CREATED", "SIZE", "MADE BY", "COMMENT"]);
    for step in history.into_inner().steps {
        table.row([
            units::short_id(&step.diff_id).to_owned(),
            step.created,
            if step.diff_id.is_empty() {
                String::new()
            } else {
                units::size(step.size)
            },
            step.created_by.split_whitespace().collect::<Vec<_>>().join(" "),
            step.comment,
        ]);
    }
    table.print()?;
    Ok(0)
}
