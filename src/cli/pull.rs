//! `wharf pull`: fetches an image, with a bar for each layer.

mod progress;

use std::io::{self, BufRead as _, IsTerminal as _};

use tonic::Code;
use wharf_proto::{api, cri};

use super::client::{Client, Owner, image_spec};
use super::dockerconfig::DockerConfig;
use super::error::{Error, Outcome, Result};
use super::output;
use super::units::{percent, short_id};
use crate::images::Reference;
use progress::Progress;

/// Arguments of `wharf pull`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print the image's id only
    #[arg(short, long)]
    quiet: bool,
    /// End as soon as containers can start, where the image has tables of contents (eStargz, zstd:chunked); the rest comes meanwhile
    #[arg(long, conflicts_with = "whole")]
    lazy: bool,
    /// End when all of the image is here, whatever the daemon's configuration says
    #[arg(long)]
    whole: bool,
    /// User and password for the registry; without ":PASSWORD" it is read from stdin
    #[arg(long, value_name = "USER[:PASSWORD]")]
    creds: Option<String>,
    /// Reference, for example busybox, docker.io/library/busybox:1.36 or host/name@sha256:...
    image: String,
}

/// Pulls and prints what came.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let auth = arguments.creds.as_deref().map(credentials).transpose()?;
    let until = match (arguments.lazy, arguments.whole) {
        (true, _) => Some(api::PullUntil::PullUsable),
        (_, true) => Some(api::PullUntil::PullComplete),
        _ => None,
    };
    let done = pull_until(client, &arguments.image, auth, arguments.quiet, until).await?;
    if arguments.quiet {
        output::line(&done.image_id)?;
        return Ok(0);
    }
    let id = short_id(&done.image_id);
    let reference = if done.reference.is_empty() {
        &arguments.image
    } else {
        &done.reference
    };
    let word = if done.up_to_date { "Up to date:" } else { "Pulled" };
    let rest = done.incomplete.map_or_else(String::new, |rest| {
        format!(", {} of it is here, the rest comes", percent(rest.current, rest.total))
    });
    output::line(&format!("{word} {reference} ({id}){rest}"))?;
    Ok(0)
}

/// What a pull brought.
pub struct Pulled {
    /// Id of the image.
    pub image_id: String,
    /// Full reference; empty when the runtime doesn't tell.
    pub reference: String,
    /// Nothing had to be fetched.
    pub up_to_date: bool,
    /// How much of it is here, if it is not all.
    incomplete: Option<api::IncompleteImage>,
}

/// Pulls an image, showing progress on stderr unless `quiet`.
pub async fn pull(client: &Client, image: &str, auth: Option<cri::AuthConfig>, quiet: bool) -> Result<Pulled> {
    pull_until(client, image, auth, quiet, None).await
}

/// As [`pull`]; `until` counts more than the daemon's configuration.
async fn pull_until(
    client: &Client,
    image: &str,
    auth: Option<cri::AuthConfig>,
    quiet: bool,
    until: Option<api::PullUntil>,
) -> Result<Pulled> {
    let attempt = format!("pull {image}");
    let auth = match auth {
        Some(auth) => Some(auth),
        None => kept(image).await?,
    };
    let message = api::PullImageRequest {
        image: image.to_owned(),
        auth: auth.clone(),
        until: until.map(i32::from),
    };
    let mut wharf = client.wharf();
    let mut stream = match wharf.pull_image(client.patient(message, Owner::All)).await {
        Ok(stream) => stream.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => return plain(client, image, auth).await,
        Err(status) => return Err(client.error(&attempt, &status)),
    };
    let mut progress = Progress::new(quiet);
    let mut pulled = None;
    let mut reference = String::new();
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => break,
            // Some servers say it only in the stream's trailers.
            Err(status) if status.code() == Code::Unimplemented => return plain(client, image, auth).await,
            Err(status) => return Err(client.error(&attempt, &status)),
        };
        match message.event {
            Some(api::pull_progress::Event::Resolved(resolved)) => {
                progress.resolved(&resolved);
                reference = resolved.reference;
            }
            Some(api::pull_progress::Event::Layer(layer)) => progress.layer(&layer),
            Some(api::pull_progress::Event::Done(done)) => pulled = Some(done),
            None => {}
        }
    }
    progress.finish();
    let done = pulled.ok_or_else(|| Error::new(format!("{attempt}: the daemon ended the pull without a result")))?;
    Ok(Pulled {
        image_id: done.image_id,
        reference,
        up_to_date: done.up_to_date,
        incomplete: done.incomplete,
    })
}

/// The person's credentials for the registry of `image`. The daemon says what is wrong with a reference.
pub(super) async fn kept(image: &str) -> Result<Option<cri::AuthConfig>> {
    match Reference::parse(image) {
        Ok(reference) => {
            DockerConfig::load()?
                .get(&reference.registry, &reference.repository)
                .await
        }
        Err(_) => Ok(None),
    }
}

/// CRI's own pull, which any runtime has and which shows no progress.
async fn plain(client: &Client, image: &str, auth: Option<cri::AuthConfig>) -> Result<Pulled> {
    let attempt = format!("pull {image}");
    let message = cri::PullImageRequest {
        image: Some(image_spec(image)),
        auth,
        sandbox_config: None,
    };
    let answer = client.image().pull_image(client.patient(message, Owner::All)).await;
    let image_ref = answer
        .map_err(|status| client.error(&attempt, &status))?
        .into_inner()
        .image_ref;
    // Some runtimes answer with a digest reference; the id is what people can use.
    let status = client.image_status(&image_ref, false).await?;
    let image_id = status.image.map_or(image_ref, |image| image.id);
    Ok(Pulled {
        image_id,
        reference: String::new(),
        up_to_date: false,
        incomplete: None,
    })
}

pub(super) fn credentials(text: &str) -> Result<cri::AuthConfig> {
    let (username, password) = match text.split_once(':') {
        Some((user, password)) => (user.to_owned(), password.to_owned()),
        None => (text.to_owned(), read_password(text)?),
    };
    if username.is_empty() {
        return Err(Error::new("--creds needs a user: USER[:PASSWORD]"));
    }
    Ok(cri::AuthConfig {
        username,
        password,
        ..Default::default()
    })
}

/// One line of stdin; what is typed is not shown.
pub(super) fn read_password(user: &str) -> Result<String> {
    use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
    let stdin = io::stdin();
    let shown = if stdin.is_terminal() {
        tcgetattr(&stdin).ok()
    } else {
        None
    };
    if let Some(shown) = &shown {
        eprint!("Password of {user}: ");
        let mut hidden = shown.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        let _ = tcsetattr(&stdin, SetArg::TCSANOW, &hidden);
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(shown) = &shown {
        let _ = tcsetattr(&stdin, SetArg::TCSANOW, shown);
        eprintln!();
    }
    read.map_err(|source| Error::new(format!("read the password from stdin: {source}")))?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Error::new("stdin has no password"));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests;
