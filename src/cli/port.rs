//! `wharf port`: which ports of this node lead to a container.

use serde_json::Value;

use super::client::Client;
use super::error::{Error, Outcome};
use super::{output, resolve};

/// Arguments of `wharf port`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Name, id, or beginning of an id of a container
    container: String,
    /// Only what leads to this port of it, for example 80 or 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Prints a line for each port, or the node's side of one.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let container = resolve::container(client, &arguments.container).await?;
    let answer = client.pod_status(&container.pod_sandbox_id, true).await?;
    // CRI tells a pod's ports only with the rest of its configuration.
    let info: Value = answer
        .info
        .get("info")
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let lines = lines(&info["config"]);
    let Some(wanted) = &arguments.port else {
        lines
            .iter()
            .try_for_each(|(inside, outside)| output::line(&format!("{inside} -> {outside}")))?;
        return Ok(0);
    };
    let wanted = match wanted.contains('/') {
        true => wanted.clone(),
        false => format!("{wanted}/tcp"),
    };
    let outside: Vec<_> = lines.iter().filter(|(inside, _)| *inside == wanted).collect();
    if outside.is_empty() {
        return Err(Error::new(format!(
            "no port of this node leads to {wanted} of {}",
            arguments.container
        )));
    }
    outside.iter().try_for_each(|(_, outside)| output::line(outside))?;
    Ok(0)
}

/// The container's side and the node's side of each port.
fn lines(config: &Value) -> Vec<(String, String)> {
    let field = |mapping: &Value, snake: &str, camel: &str| {
        mapping
            .get(snake)
            .or_else(|| mapping.get(camel))
            .cloned()
            .unwrap_or_default()
    };
    let mappings = field(config, "port_mappings", "portMappings");
    let one = |mapping: &Value| {
        let number = |snake: &str, camel: &str| field(mapping, snake, camel).as_u64().unwrap_or(0);
        let host = number("host_port", "hostPort");
        let protocol = match field(mapping, "protocol", "protocol") {
            Value::String(name) => name.to_ascii_lowercase(),
            // As a number, or the default.
            other => match other.as_u64() {
                Some(1) => "udp",
                Some(2) => "sctp",
                _ => "tcp",
            }
            .to_owned(),
        };
        let ip = match field(mapping, "host_ip", "hostIp").as_str() {
            None | Some("") => "0.0.0.0".to_owned(),
            Some(ip) if ip.contains(':') => format!("[{ip}]"),
            Some(ip) => ip.to_owned(),
        };
        let inside = format!("{}/{protocol}", number("container_port", "containerPort"));
        (host > 0).then(|| (inside, format!("{ip}:{host}")))
    };
    mappings.as_array().into_iter().flatten().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_read_as_each_runtime_writes_them() {
        let ours = json!({"port_mappings": [{"container_port": 80, "host_port": 8080}, {"container_port": 1}]});
        assert_eq!(lines(&ours), [("80/tcp".to_owned(), "0.0.0.0:8080".to_owned())]);
        let others =
            json!({"portMappings": [{"protocol": "UDP", "containerPort": 53, "hostPort": 5353, "hostIp": "::1"}]});
        assert_eq!(lines(&others), [("53/udp".to_owned(), "[::1]:5353".to_owned())]);
        assert!(lines(&json!({})).is_empty());
    }
}
