//! Progress of a pull on stderr: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use wharf_proto::api::{LayerProgress, LayerState, PullResolved};

use crate::cli::output::note;
use crate::cli::units::{short_id, size};

/// What is shown of one pull.
pub struct Progress {
    shows: Shows,
    layers: HashMap<String, Layer>,
}

enum Shows {
    Nothing,
    Lines,
    Bars(MultiProgress),
}

struct Layer {
    bar: Option<ProgressBar>,
    state: LayerState,
}

impl Progress {
    /// Bars if stderr is a terminal, lines if it is not, nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let shows = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Shows::Nothing,
            (false, false) => Shows::Lines,
            (false, true) => Shows::Bars(MultiProgress::new()),
        };
        Self {
            shows,
            layers: HashMap::new(),
        }
    }

    /// The manifest is known: shows its reference and all layers.
    pub fn resolved(&mut self, resolved: &PullResolved) {
        let text = format!("Pulling {} ({} layers)", resolved.reference, resolved.layers.len());
        match &self.shows {
            Shows::Nothing => {}
            Shows::Lines => note(text),
            Shows::Bars(bars) => {
                let _ = bars.println(text);
            }
        }
        for layer in &resolved.layers {
            self.layer(layer);
        }
    }

    /// A layer went on.
    pub fn layer(&mut self, now: &LayerProgress) {
        let state = now.state();
        let shows = &self.shows;
        let layer = self.layers.entry(now.digest.clone()).or_insert_with(|| {
            let bar = match shows {
                Shows::Bars(bars) => {
                    Some(bars.add(ProgressBar::new(now.total).with_prefix(short_id(&now.digest).to_owned())))
                }
                _ => None,
            };
            let layer = Layer { bar, state };
            layer.entered(now);
            if matches!(shows, Shows::Lines) {
                line(now);
            }
            layer
        });
        if layer.state != state {
            layer.state = state;
            layer.entered(now);
            if matches!(self.shows, Shows::Lines) {
                line(now);
            }
        }
        if let Some(bar) = &layer.bar {
            if now.total > 0 {
                bar.set_length(now.total);
            }
            if !matches!(state, LayerState::LayerDone | LayerState::LayerExists) {
                bar.set_position(now.current);
            }
        }
    }

    /// The pull has ended; bars stay as they are.
    pub fn finish(&self) {
        for bar in self.layers.values().filter_map(|layer| layer.bar.as_ref()) {
            bar.abandon();
        }
    }
}

impl Layer {
    /// Changes the bar's look at the beginning of a state.
    fn entered(&self, now: &LayerProgress) {
        let Some(bar) = &self.bar else { return };
        let template = match self.state {
            // At most 78 columns: a bar that wraps is drawn wrongly.
            LayerState::LayerDownloading => {
                "{prefix}  {msg:<11} [{bar:14}] {decimal_bytes:>9}/{decimal_total_bytes:<9} {decimal_bytes_per_sec}"
            }
            LayerState::LayerExtracting => "{prefix}  {msg:<11} [{bar:14}]",
            _ => "{prefix}  {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(words(self.state, now.total));
        if matches!(self.state, LayerState::LayerDone | LayerState::LayerExists) {
            bar.abandon();
        }
    }
}

fn words(state: LayerState, total: u64) -> String {
    match state {
        LayerState::LayerWaiting => "Waiting".to_owned(),
        LayerState::LayerDownloading => "Downloading".to_owned(),
        LayerState::LayerExtracting => "Extracting".to_owned(),
        LayerState::LayerDone => format!("Done, {}", size(total)),
        LayerState::LayerExists => "Already here".to_owned(),
    }
}

/// Without a terminal only the end of a layer is worth a line.
fn line(now: &LayerProgress) {
    if matches!(now.state(), LayerState::LayerDone | LayerState::LayerExists) {
        note(format_args!(
            "{}  {}",
            short_id(&now.digest),
            words(now.state(), now.total)
        ));
    }
}
