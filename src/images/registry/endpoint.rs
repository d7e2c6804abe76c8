//! Where a repository is asked for: mirrors first, then the registry itself.
//!
//! The first that says something about a registry counts: its mirrors in `wharf.toml`; its directory in a tree of
//! `hosts.toml`; `registries.conf`; the tree's `_default`.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use super::{
    super::{Reference, reference::DEFAULT_REGISTRY},
    conf::{Conf, Place},
    hosts::{self, Host},
    settings::Settings,
};
use crate::config::Registry;

/// One place that may have a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::images) struct Endpoint {
    /// `host[:port]`, for messages and as key of tokens.
    pub host: String,
    /// `http://host[:port]/v2/path/of/repository`.
    pub base: String,
    /// What every query begins with, for mirrors that serve several registries; may be empty.
    pub query: String,
    /// A mirror: its failures are not final, and the caller's credentials are not for it.
    pub mirror: bool,
    /// Manifests by tag may be asked for.
    pub tags: bool,
    /// Blobs, and manifests by digest, may be asked for.
    pub digests: bool,
    /// Images may be sent to it.
    pub push: bool,
    /// It may be asked what refers to a manifest.
    pub referrers: bool,
    /// It is no registry: `base` is the address of one blob, which a manifest has given. Nothing secret is shown there.
    pub blob_only: bool,
    pub settings: Arc<Settings>,
}

impl Endpoint {
    /// The address of one blob. `None` if it is none by HTTPS.
    pub(super) fn of_blob(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        if uri.scheme_str() != Some("https") {
            return None;
        }
        Some(Self {
            host: super::transport::host_of(&uri),
            base: url.to_owned(),
            query: String::new(),
            mirror: true,
            tags: false,
            digests: true,
            push: false,
            referrers: false,
            blob_only: true,
            settings: Arc::default(),
        })
    }
}

/// What the node says about registries.
pub(super) struct Sources<'a> {
    /// `wharf.toml`.
    pub registries: &'a BTreeMap<String, Registry>,
    /// Trees of `hosts.toml`.
    pub trees: &'a [PathBuf],
    pub conf: &'a Conf,
}

/// The endpoints for `reference`, in the order in which they are asked. Blocking.
///
/// # Errors
/// A sentence about a file that can't be used, or that the registry is blocked.
pub(super) fn endpoints(sources: &Sources<'_>, reference: &Reference) -> Result<Vec<Endpoint>, String> {
    let registry = &reference.registry;
    let own = sources.registries.get(registry);
    if let Some(own) = own.filter(|own| !own.mirrors.is_empty()) {
        let mut found: Vec<Endpoint> = own
            .mirrors
            .iter()
            .map(|mirror| {
                let address = mirror.trim_end_matches('/');
                let (host, path) = address.split_once('/').unwrap_or((address, ""));
                let path = if path.is_empty() {
                    reference.repository.clone()
                } else {
                    format!("{path}/{}", reference.repository)
                };
                sources.named(host, &path, true, Some(registry))
            })
            .map(|endpoint| endpoint.map(|found| found.1))
            .collect::<Result<_, _>>()?;
        found.push(sources.named(registry, &reference.repository, false, None)?.1);
        return Ok(found);
    }
    if own.is_none()
        && let Some(hosts) = hosts::find(sources.trees, registry, false)?
    {
        return sources.hosts(&hosts, reference);
    }
    if let Some(places) = sources.conf.places(&reference.name())? {
        let mut found = Vec::new();
        for place in places {
            sources.place(&place, reference, &mut found)?;
        }
        return Ok(found);
    }
    if own.is_none()
        && let Some(hosts) = hosts::find(sources.trees, registry, true)?
    {
        return sources.hosts(&hosts, reference);
    }
    Ok(vec![sources.named(registry, &reference.repository, false, None)?.1])
}

impl Sources<'_> {
    /// The places that a `hosts.toml` lists.
    fn hosts(&self, hosts: &[Host], reference: &Reference) -> Result<Vec<Endpoint>, String> {
        hosts
            .iter()
            .enumerate()
            .map(|(at, host)| {
                let last = at + 1 == hosts.len();
                let registry = &reference.registry;
                let Some(address) = &host.address else {
                    let (_, mut own) = self.named(registry, &reference.repository, false, None)?;
                    let tls = host.settings.has_tls();
                    if tls && own.base.starts_with("http://") {
                        own.base = own.base.replacen("http", "https", 1);
                    }
                    own.settings = Arc::new(host.settings.clone());
                    return Ok(Endpoint {
                        tags: host.resolve,
                        digests: host.pull,
                        push: host.push,
                        referrers: host.referrers,
                        ..own
                    });
                };
                let name = address.split_once("://").map_or(address.as_str(), |(_, name)| name);
                // A place under another name must be told whose images are meant.
                let foreign = name != network_name(registry);
                Ok(Endpoint {
                    host: name.to_owned(),
                    base: format!("{address}{}/{}", host.path, reference.repository),
                    query: if foreign {
                        format!("?ns={registry}")
                    } else {
                        String::new()
                    },
                    mirror: !last && foreign,
                    tags: host.resolve,
                    digests: host.pull,
                    push: host.push,
                    referrers: host.referrers,
                    blob_only: false,
                    settings: Arc::new(host.settings.clone()),
                })
            })
            .collect()
    }

    /// A place of `registries.conf`. An insecure one is tried with and without TLS.
    fn place(&self, place: &Place, reference: &Reference, found: &mut Vec<Endpoint>) -> Result<(), String> {
        let (host, path) = place.name.split_once('/').ok_or_else(|| {
            format!(
                "registries.conf makes {:?} of {reference}, which has no path",
                place.name
            )
        })?;
        let (configured, endpoint) = self.named(host, path, place.mirror, None)?;
        let endpoint = Endpoint {
            tags: place.tags,
            digests: place.digests,
            push: !place.mirror,
            ..endpoint
        };
        if !place.insecure || configured {
            found.push(endpoint);
            return Ok(());
        }
        let rest = endpoint.base.split_once("://").map_or("", |(_, rest)| rest).to_owned();
        let tls = Endpoint {
            base: format!("https://{rest}"),
            settings: Arc::new(Settings {
                skip_verify: true,
                ..(*endpoint.settings).clone()
            }),
            ..endpoint.clone()
        };
        let plain = Endpoint {
            base: format!("http://{rest}"),
            ..endpoint
        };
        if is_loopback(host) {
            found.extend([plain, tls]);
        } else {
            found.extend([tls, plain]);
        }
        Ok(())
    }

    /// The endpoint at `host`, with what `wharf.toml` or a directory of certificates says about it; the flag says
    /// whether anything does.
    fn named(&self, host: &str, path: &str, mirror: bool, namespace: Option<&str>) -> Result<(bool, Endpoint), String> {
        let own = self.registries.get(host);
        let mut settings = own.map(Settings::of).unwrap_or_default();
        if own.is_none()
            && let Some(hosts) = hosts::find(self.trees, host, false)?
            && let Some(last) = hosts.last()
        {
            settings = last.settings.clone();
        }
        let plain = match own {
            Some(registry) if registry.plain_http => true,
            _ => !settings.has_tls() && is_loopback(host),
        };
        let scheme = if plain { "http" } else { "https" };
        let configured = own.is_some() || settings != Settings::default();
        let endpoint = Endpoint {
            host: host.to_owned(),
            base: format!("{scheme}://{}/v2/{path}", network_name(host)),
            query: namespace.map_or_else(String::new, |namespace| format!("?ns={namespace}")),
            mirror,
            tags: true,
            digests: true,
            push: !mirror,
            referrers: true,
            blob_only: false,
            settings: Arc::new(settings),
        };
        Ok((configured, endpoint))
    }
}

/// Docker Hub's registry is not served under the name that references have.
fn network_name(host: &str) -> &str {
    if host == DEFAULT_REGISTRY {
        "registry-1.docker.io"
    } else {
        host
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
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
        let sources = Sources {
            registries: &registries,
            trees: &[],
            conf: &Conf::default(),
        };
        endpoints(&sources, &Reference::parse(reference).unwrap())
            .unwrap()
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
