//! `wharf push`: sends an image to a registry.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use wharf_proto::api::{self, PushLayerProgress, PushState, push_progress::Event};

use super::client::{Client, Owner};
use super::error::{Error, Outcome};
use super::output;
use super::pull::{credentials, kept};
use super::units::{short_id, size};

/// Arguments of `wharf push`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print the reference that was pushed only
    #[arg(short, long)]
    quiet: bool,
    /// User and password for the registry; without ":PASSWORD" it is read from stdin
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// Reference, id, or beginning of an id of an image that is here
    image: String,
    /// Where to, for example host/team/app:v1 [default: the image's own reference]
    name: Option<String>,
}

/// Pushes.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let target = arguments.name.as_ref().unwrap_or(&arguments.image);
    let attempt = format!("push {target}");
    let auth = match arguments.creds.as_deref() {
        Some(text) => Some(credentials(text)?),
        None => kept(target).await?,
    };
    let message = api::PushImageRequest {
        image: arguments.image.clone(),
        name: arguments.name.clone().unwrap_or_default(),
        auth,
    };
    let answer = client.wharf().push_image(client.patient(message, Owner::All)).await;
    let mut stream = answer.map_err(|status| client.error(&attempt, &status))?.into_inner();
    let mut shown = Shown::new(arguments.quiet);
    let mut reference = target.clone();
    let mut done = None;
    while let Some(message) = stream
        .message()
        .await
        .map_err(|status| client.error(&attempt, &status))?
    {
        match message.event {
            Some(Event::Resolved(resolved)) => {
                shown.begin(&resolved.reference);
                reference = resolved.reference;
            }
            Some(Event::Layer(layer)) => shown.layer(&layer),
            Some(Event::Done(now)) => done = Some(now),
            None => {}
        }
    }
    shown.end();
    let done = done.ok_or_else(|| Error::new(format!("{attempt}: the daemon ended the push without a result")))?;
    if arguments.quiet {
        output::line(&reference)?;
    } else {
        let tag = reference.rsplit(':').next().unwrap_or_default();
        output::line(&format!("{tag}: digest: {} size: {}", done.digest, done.size))?;
    }
    Ok(0)
}

/// Progress on stderr: bars on a terminal, lines elsewhere.
struct Shown {
    quiet: bool,
    bars: Option<MultiProgress>,
    layers: HashMap<String, Option<ProgressBar>>,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        let terminal = !quiet && io::stderr().is_terminal();
        Self {
            quiet,
            bars: terminal.then(MultiProgress::new),
            layers: HashMap::new(),
        }
    }

    fn begin(&self, reference: &str) {
        let repository = reference.rsplit_once(':').map_or(reference, |(name, _)| name);
        let text = format!("The push refers to repository [{repository}]");
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None if !self.quiet => output::note(text),
            None => {}
        }
    }

    fn layer(&mut self, now: &PushLayerProgress) {
        let id = short_id(&now.diff_id).to_owned();
        let words = match now.state() {
            PushState::PushWaiting => "Waiting".to_owned(),
            PushState::PushCompressing => "Compressing".to_owned(),
            PushState::PushUploading => "Pushing".to_owned(),
            PushState::PushDone => format!("Pushed, {}", size(now.total)),
            PushState::PushExists => "Layer already exists".to_owned(),
            PushState::PushMounted => "Mounted from another repository".to_owned(),
        };
        let over = matches!(
            now.state(),
            PushState::PushDone | PushState::PushExists | PushState::PushMounted
        );
        let bars = &self.bars;
        let bar = self.layers.entry(now.diff_id.clone()).or_insert_with(|| {
            let bar = bars.as_ref()?.add(ProgressBar::new(now.total)).with_prefix(id.clone());
            Some(bar)
        });
        match bar {
            Some(bar) => {
                let template = if over {
                    "{prefix}  {msg}"
                } else {
                    "{prefix}  {msg:<11} [{bar:14}] {decimal_bytes:>9}/{decimal_total_bytes:<9}"
                };
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_length(now.total);
                bar.set_position(now.current);
                bar.set_message(words);
                if over {
                    bar.abandon();
                }
            }
            None if over && !self.quiet => output::note(format_args!("{id}: {words}")),
            None => {}
        }
    }

    fn end(&self) {
        for bar in self.layers.values().flatten() {
            bar.abandon();
        }
    }
}
