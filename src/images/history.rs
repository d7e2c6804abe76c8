//! How an image was made, as its configuration tells.

use serde::Deserialize;
use wharf_proto::api::HistoryStep;

use super::{Error, Image, Result, layers::Layers};

#[derive(Deserialize)]
struct File {
    history: Option<Vec<Step>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Step {
    created: Option<String>,
    created_by: Option<String>,
    comment: Option<String>,
    empty_layer: Option<bool>,
}

/// The steps in `config`, newest first. Layers that no step accounts for have a step without a text.
pub(super) fn steps(config: &[u8], image: &Image, layers: &Layers) -> Result<Vec<HistoryStep>> {
    let file: File = serde_json::from_slice(config).map_err(|error| Error::BadContent {
        what: format!("history of image {}", image.id),
        reason: format!("it can't be read: {error}"),
    })?;
    let mut rest = image.layers.iter();
    let made = |diff_id: &str, step: Step| HistoryStep {
        created: step.created.unwrap_or_default(),
        created_by: step.created_by.unwrap_or_default(),
        comment: step.comment.unwrap_or_default(),
        size: layers.bytes(diff_id).unwrap_or_default(),
        diff_id: diff_id.to_owned(),
    };
    let mut steps = Vec::new();
    for step in file.history.unwrap_or_default() {
        let layer = if step.empty_layer == Some(true) {
            None
        } else {
            rest.next()
        };
        steps.push(made(layer.map_or("", |layer| &layer.diff_id), step));
    }
    for layer in rest {
        steps.push(made(&layer.diff_id, Step::default()));
    }
    steps.reverse();
    Ok(steps)
}
