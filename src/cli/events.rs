//! `wharf events`: what happens to pods, containers and images, as lines.

use wharf_proto::api::{self, EventKind, events_message::Message};

use super::client::{Client, Owner};
use super::error::{Error, Outcome, Result};
use super::output::{self, Format};
use super::units::{parse_since, rfc3339, short_id};

/// Arguments of `wharf events`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Begin with events of this time on, for example 10m or 2026-01-31T12:00:00Z [default: from now on]
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<jiff::Timestamp>,
    /// End with events of this time, for example 0s or 2026-01-31T12:00:00Z [default: go on]
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    until: Option<jiff::Timestamp>,
    /// Begin behind the event with this cursor, which -o json shows
    #[arg(long, conflicts_with = "since")]
    cursor: Option<String>,
    /// Only events for which this holds: type, action, id, name, pod, container, image, namespace or label; may be repeated,
    /// values of one key are alternatives
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = filter)]
    filter: Vec<api::EventFilter>,
    /// Form of the output: lines, or one JSON object or YAML document for each event
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints events as they come.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let request = api::EventsRequest {
        cursor: arguments.cursor.clone().unwrap_or_default(),
        since: arguments.since.map_or(0, nanos),
        until: arguments.until.map_or(0, nanos),
        filters: arguments.filter.clone(),
    };
    let failed = |status: tonic::Status| client.error("listen to events", &status);
    let answer = client.wharf().events(client.patient(request, Owner::All)).await;
    let mut events = answer.map_err(failed)?.into_inner();
    let mut cursor = String::new();
    loop {
        let message = match events.message().await {
            Ok(Some(message)) => message.message,
            Ok(None) => return Ok(0),
            Err(status) if cursor.is_empty() => return Err(failed(status)),
            Err(status) => return Err(failed(status).hint(format!("What was seen ends at --cursor {cursor}"))),
        };
        match message {
            Some(Message::Begin(begin)) => {
                let asked = arguments.since.map(nanos);
                if asked.is_some_and(|since| since < begin.kept_since) {
                    let kept = rfc3339(begin.kept_since);
                    output::note(format_args!("Events before {kept} are not kept any more."));
                }
                cursor = begin.cursor;
            }
            Some(Message::Event(event)) => {
                print(arguments.output, &event)?;
                cursor = event.cursor;
            }
            None => {}
        }
    }
}

fn nanos(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

fn filter(text: &str) -> Result<api::EventFilter, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| Error::new(format!("\"{text}\" is no filter such as type=container")).to_string())?;
    Ok(api::EventFilter {
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

fn print(format: Format, event: &api::Event) -> Result<()> {
    match format {
        Format::Table => output::line(&line(event)),
        Format::Json => output::line(&output::to_json("wharf.v1.Event", event)?.to_string()),
        Format::Yaml => {
            output::line("---")?;
            output::message(format, "wharf.v1.Event", event)
        }
    }
}

/// As `docker events` has it: time, type, action, id, and the rest in parentheses.
fn line(event: &api::Event) -> String {
    let kind = match event.kind() {
        EventKind::Pod => "pod",
        EventKind::Container => "container",
        EventKind::Image => "image",
    };
    let exit_code = event.exit_code.map(|code| code.to_string()).unwrap_or_default();
    let details = [
        ("name", &event.name),
        ("namespace", &event.namespace),
        ("pod", &event.pod),
        ("image", &event.image),
        ("exitCode", &exit_code),
        ("reason", &event.reason),
    ];
    let details: Vec<String> = details
        .iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(key, text)| format!("{key}={}", output::printable((*text).clone())))
        .collect();
    format!(
        "{} {kind} {} {} ({})",
        rfc3339(event.time),
        event.action,
        short_id(&event.id),
        details.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_happened_to_what() {
        let event = api::Event {
            time: 1_700_000_000_000_000_000,
            kind: EventKind::Container.into(),
            action: "stop".into(),
            id: "0123456789abcdef".into(),
            name: "web\x1b".into(),
            pod: "p".into(),
            exit_code: Some(0),
            ..Default::default()
        };
        assert_eq!(
            line(&event),
            "2023-11-14T22:13:20Z container stop 0123456789abc (name=web\\u{1b}, pod=p, exitCode=0)"
        );
        assert!(filter("type").is_err());
    }
}
