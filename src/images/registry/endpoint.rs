//! Where a repository is asked for: mirrors first, then the registry itself.

use std::{collections::BTreeMap, net::IpAddr};

use super::super::{Reference, reference::DEFAULT_REGISTRY};
use crate::config::Registry;

/// One place that may have a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// `host[:port]`, for messages and as key of tokens and TLS settings.
    pub host: String,
    /// `http://host[:port]/v2/path/of/repository`.
    pub base: String,
    /// What every query begins with, for mirrors that serve several registries; may be empty.
    pub query: String,
    /// A mirror: its failures are not final, and the caller's credentials are not for it.
    pub mirror: bool,
}

/// The endpoints for `reference`, in the order in which they are asked.
pub(super) fn endpoints(registries: &BTreeMap<String, Registry>, reference: &Reference) -> Vec<Endpoint> {
    let mirrors = registries
        .get(&reference.registry)
        .map_or(&[][..], |registry| &registry.mirrors);
    let mut found: Vec<Endpoint> = mirrors
        .iter()
        .map(|mirror| {
            let address = mirror.trim_end_matches('/');
            let (host, path) = address.split_once('/').unwrap_or((address, ""));
            let path = if path.is_empty() {
                String::new()
            } else {
                format!("{path}/")
            };
            Endpoint {
                host: host.to_owned(),
                base: format!(
                    "{}://{host}/v2/{path}{}",
                    scheme(registries, host),
                    reference.repository
                ),
                query: format!("?ns={}", reference.registry),
                mirror: true,
            }
        })
        .collect();
    // Docker Hub's registry is not served under the name that references have.
    let host = if reference.registry == DEFAULT_REGISTRY {
        "registry-1.docker.io"
    } else {
        &reference.registry
    };
    found.push(Endpoint {
        host: reference.registry.clone(),
        base: format!(
            "{}://{host}/v2/{}",
            scheme(registries, &reference.registry),
            reference.repository
        ),
        query: String::new(),
        mirror: false,
    });
    found
}

/// TLS, unless the configuration says otherwise or the registry is on this machine and has no TLS settings.
fn scheme(registries: &BTreeMap<String, Registry>, host: &str) -> &'static str {
    let plain = match registries.get(host) {
        Some(registry) if registry.plain_http => true,
        Some(registry) if registry.ca.is_some() || registry.skip_verify => false,
        _ => is_loopback(host),
    };
    if plain { "http" } else { "https" }
}

fn is_loopback(host: &str) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        rest.split(']').next().unwrap_or_default()
    } else {
        host.split(':').next().unwrap_or_default()
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(registries: &[(&str, Registry)], reference: &str) -> Vec<String> {
        let registries = registries
            .iter()
            .map(|(host, registry)| ((*host).to_owned(), registry.clone()))
            .collect();
        endpoints(&registries, &Reference::parse(reference).unwrap())
            .into_iter()
            .map(|endpoint| endpoint.base + &endpoint.query)
            .collect()
    }

    #[test]
    fn loopback_is_plain_and_the_rest_is_not() {
        assert_eq!(bases(&[], "127.0.0.1:5000/a"), ["http://127.0.0.1:5000/v2/a"]);
        assert_eq!(bases(&[], "[::1]:5000/a"), ["http://[::1]:5000/v2/a"]);
        assert_eq!(bases(&[], "localhost/a"), ["http://localhost/v2/a"]);
        assert_eq!(bases(&[], "10.0.0.1:5000/a"), ["https://10.0.0.1:5000/v2/a"]);
        assert_eq!(
            bases(&[], "busybox"),
            ["https://registry-1.docker.io/v2/library/busybox"]
        );
        let ca = Registry {
            ca: Some("/ca.pem".into()),
            ..Registry::default()
        };
        assert_eq!(
            bases(&[("localhost:1", ca)], "localhost:1/a"),
            ["https://localhost:1/v2/a"]
        );
    }

    #[test]
    fn mirrors_come_first_with_their_path_and_the_namespace() {
        let hub = Registry {
            mirrors: vec!["m.example/cache/".into(), "plain.example:80".into()],
            ..Registry::default()
        };
        let plain = Registry {
            plain_http: true,
            ..Registry::default()
        };
        assert_eq!(
            bases(&[("docker.io", hub), ("plain.example:80", plain)], "busybox"),
            [
                "https://m.example/v2/cache/library/busybox?ns=docker.io",
                "http://plain.example:80/v2/library/busybox?ns=docker.io",
                "https://registry-1.docker.io/v2/library/busybox",
            ]
        );
    }
}
