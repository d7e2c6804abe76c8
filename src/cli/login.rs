//! `wharf login` and `wharf logout`: credentials for registries, kept where Docker keeps them.

use wharf_proto::{api, cri};

use super::client::{Client, Owner};
use super::dockerconfig::DockerConfig;
use super::error::{Error, Outcome};
use super::output;
use super::pull::read_password;

/// Arguments of `wharf login`.
#[derive(clap::Args)]
pub struct Login {
    /// User name
    #[arg(short, long)]
    username: String,
    /// Read the password from stdin (it is read there in any case; a terminal is asked)
    #[arg(long)]
    password_stdin: bool,
    /// Registry, as host or host:port
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// Arguments of `wharf logout`.
#[derive(clap::Args)]
pub struct Logout {
    /// Registry, as host or host:port
    #[arg(default_value = "docker.io")]
    registry: String,
}

/// Lets the daemon show the credentials to the registry, and keeps them if they are accepted.
pub async fn login(client: &Client, arguments: &Login) -> Outcome {
    let registry = &arguments.registry;
    if arguments.username.is_empty() || arguments.username.contains(':') {
        return Err(Error::new("--username must not be empty or have a colon"));
    }
    let password = read_password(&arguments.username)?;
    let message = api::LoginRequest {
        registry: registry.clone(),
        auth: Some(cri::AuthConfig {
            username: arguments.username.clone(),
            password: password.clone(),
            server_address: registry.clone(),
            ..Default::default()
        }),
    };
    let answer = client.wharf().login(client.patient(message, Owner::All)).await;
    answer.map_err(|status| client.error(&format!("log in to {registry}"), &status))?;
    let place = DockerConfig::load()?
        .put(registry, &arguments.username, &password)
        .await?;
    output::line(&format!("Logged in to {registry}; kept in {place}"))?;
    Ok(0)
}

/// Forgets a registry's credentials.
pub async fn logout(arguments: &Logout) -> Outcome {
    let registry = &arguments.registry;
    if DockerConfig::load()?.remove(registry).await? {
        output::line(&format!("Removed the credentials for {registry}"))?;
    } else {
        output::line(&format!("There were no credentials for {registry}"))?;
    }
    Ok(0)
}
