//! `wharf inspect`: all that the runtime tells about a container, a pod or an image.

use std::collections::HashMap;

use clap::ValueEnum;
use serde_json::{Map, Value};

use super::client::Client;
use super::error::{Error, Outcome, Result};
use super::output::{self, Format};
use super::resolve::{self, Object};
use super::units::rfc3339;

/// Arguments of `wharf inspect`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Names, ids, or beginnings of ids; image references
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// What the names stand for; without this containers are looked for first, then pods, then images
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value = "json")]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Container,
    Pod,
    Image,
}

/// Prints one object, or a list when several are asked for.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut values = Vec::new();
    for name in &arguments.names {
        values.push(inspect(client, name, arguments.kind).await?);
    }
    let value = if values.len() == 1 {
        values.remove(0)
    } else {
        Value::Array(values)
    };
    output::value(arguments.output, &value)?;
    Ok(0)
}

async fn inspect(client: &Client, name: &str, kind: Option<Kind>) -> Result<Value> {
    let wants = |this: Kind| kind.is_none_or(|kind| kind == this);
    if wants(Kind::Container) || wants(Kind::Pod) {
        let object = match kind {
            Some(Kind::Container) => Some(Object::Container(Box::new(resolve::container(client, name).await?))),
            Some(Kind::Pod) => resolve::pod(client, name).await?.map(|pod| Object::Pod(Box::new(pod))),
            _ => resolve::object(client, name).await?,
        };
        match object {
            Some(Object::Container(container)) => {
                let answer = client.container_status(&container.id, true).await?;
                let status = answer.status.unwrap_or_default();
                let whole = compose("runtime.v1.ContainerStatus", &status, answer.info)?;
                return with_operations(client, &container.id, whole).await;
            }
            Some(Object::Pod(pod)) => {
                let answer = client.pod_status(&pod.id, true).await?;
                let status = answer.status.unwrap_or_default();
                let whole = compose("runtime.v1.PodSandboxStatus", &status, answer.info)?;
                return with_operations(client, &pod.id, whole).await;
            }
            None => {}
        }
    }
    if wants(Kind::Image)
        && let Some(answer) = resolve::image(client, name, true).await?
    {
        return compose("runtime.v1.Image", &answer.image.unwrap_or_default(), answer.info);
    }
    // One that is being made or pulled is in no list yet.
    let operations = client.operations().await;
    if let Some(one) = operations.iter().find(|one| one.name == name || one.id == name) {
        return Ok(serde_json::json!({ "info": { "operations": [output::to_json("wharf.v1.Operation", one)?] } }));
    }
    Err(Error::new(format!("there is no container, pod or image \"{name}\""))
        .hint("`wharf ps -a`, `wharf pods` and `wharf images` list what there is."))
}

/// Adds what the daemon is doing with the object, if it is doing something.
async fn with_operations(client: &Client, id: &str, mut whole: Value) -> Result<Value> {
    let operations = client.operations().await;
    let own = operations.iter().filter(|one| one.id == id);
    let own: Vec<Value> = own
        .map(|one| output::to_json("wharf.v1.Operation", one))
        .collect::<Result<_>>()?;
    if !own.is_empty() {
        whole["info"]["operations"] = own.into();
    }
    Ok(whole)
}

/// crictl's shape: the status, and the runtime's own words beside it, with times that people can read.
fn compose<M: prost::Message>(name: &str, status: &M, info: HashMap<String, String>) -> Result<Value> {
    let mut status = output::to_json(name, status)?;
    for key in ["createdAt", "startedAt", "finishedAt"] {
        if let Some(value) = status.get_mut(key)
            && let Some(nanos) = value.as_str().and_then(|text| text.parse::<i64>().ok())
        {
            *value = Value::String(rfc3339(nanos));
        }
    }
    let mut whole = Map::new();
    whole.insert("status".to_owned(), status);
    whole.insert("info".to_owned(), verbose(info));
    Ok(Value::Object(whole))
}

/// Verbose information is text in CRI and mostly JSON in fact: `info` is spread out, other keys stand by themselves.
pub fn verbose(info: HashMap<String, String>) -> Value {
    let mut whole = Map::new();
    for (key, text) in info {
        match serde_json::from_str::<Value>(&text) {
            Ok(Value::Object(fields)) if key == "info" => whole.extend(fields),
            Ok(value) => {
                whole.insert(key, value);
            }
            Err(_) => {
                whole.insert(key, Value::String(text));
            }
        }
    }
    Value::Object(whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wharf_proto::cri;

    #[test]
    fn times_and_verbose_information_are_readable() {
        let status = cri::ContainerStatus {
            id: "a".into(),
            created_at: 1_700_000_000_000_000_000,
            ..Default::default()
        };
        let info = HashMap::from([
            ("info".to_owned(), r#"{"pid": 7}"#.to_owned()),
            ("note".to_owned(), "no JSON".to_owned()),
        ]);
        let value = compose("runtime.v1.ContainerStatus", &status, info).unwrap();
        assert_eq!(value["status"]["createdAt"], "2023-11-14T22:13:20Z");
        assert_eq!(value["status"]["finishedAt"], "");
        assert_eq!(value["info"]["pid"], 7);
        assert_eq!(value["info"]["note"], "no JSON");
    }
}
