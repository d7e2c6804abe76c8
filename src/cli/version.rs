//! `wharf version`: versions of this command and of the daemon.

use wharf_proto::cri;

use super::client::Client;
use super::error::{Outcome, Result};
use super::output::{self, Format};

/// This command's version.
const CLIENT: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `wharf version`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Prints both versions; fails when no daemon answers, after its own version.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let server = server(client).await;
    if arguments.output != Format::Table {
        let server = server
            .as_ref()
            .map(|server| output::to_json("runtime.v1.VersionResponse", server));
        let server = server.unwrap_or(Ok(serde_json::Value::Null))?;
        let versions = serde_json::json!({ "client": { "version": CLIENT }, "server": server });
        output::value(arguments.output, &versions)?;
    } else {
        output::line(&format!("Client:  wharf {CLIENT}"))?;
    }
    let server = server?;
    if arguments.output == Format::Table {
        let api = format!("CRI {}", server.runtime_api_version);
        output::line(&format!(
            "Server:  {} {} ({api})",
            server.runtime_name, server.runtime_version
        ))?;
    }
    Ok(0)
}

/// The daemon's answer.
pub async fn server(client: &Client) -> Result<cri::VersionResponse> {
    let request = client.quick(cri::VersionRequest {
        version: "v1".to_owned(),
    });
    let answer = client.runtime().version(request).await;
    Ok(answer
        .map_err(|status| client.error("ask for the daemon's version", &status))?
        .into_inner())
}
