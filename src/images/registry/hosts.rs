//! Trees of `hosts.toml` files, as containerd reads them, and of bare certificates, as Docker does.
//!
//! A tree has a directory for each registry (`host`, `host:port` or `host_port_`), and `_default` for all others. A
//! directory with a `hosts.toml` lists the places to ask; one without may hold `*.crt` (authorities) and `*.cert` with
//! `*.key` (the client's).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use serde::{Deserialize, Deserializer};

use super::settings::Settings;

/// Directory of a tree for registries that have none of their own.
const DEFAULT: &str = "_default";

/// A place to ask, from one table of a `hosts.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// `scheme://host[:port]`; `None` is the registry itself under its own address.
    pub address: Option<String>,
    /// With the leading slash: `/v2`, unless the file says otherwise.
    pub path: String,
    /// Blobs and manifests by digest may be fetched.
    pub pull: bool,
    /// Tags may be resolved.
    pub resolve: bool,
    /// Images may be sent.
    pub push: bool,
    /// It may be asked what refers to a manifest.
    pub referrers: bool,
    pub settings: Settings,
}

/// What the trees below `roots` say about `registry` in a directory of its own (or, if `default`, in `_default`); the
/// registry itself comes last. `None` if they say nothing.
///
/// # Errors
/// A sentence about a file that can't be used.
pub(super) fn find(roots: &[PathBuf], registry: &str, default: bool) -> Result<Option<Vec<Host>>, String> {
    let names = if default {
        vec![DEFAULT.to_owned()]
    } else {
        let mut names = vec![registry.to_owned()];
        if let Some((host, port)) = registry.rsplit_once(':') {
            names.insert(0, format!("{host}_{port}_"));
        }
        names
    };
    for root in roots {
        for name in &names {
            if let Some(hosts) = read(&root.join(name))? {
                return Ok(Some(hosts));
            }
        }
    }
    Ok(None)
}

fn read(directory: &Path) -> Result<Option<Vec<Host>>, String> {
    let file = directory.join("hosts.toml");
    match fs::read_to_string(&file) {
        Ok(text) => parse(&text, directory)
            .map(Some)
            .map_err(|reason| format!("{}: {reason}", file.display())),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            certificates(directory)
        }
        Err(error) => Err(format!("read {}: {error}", file.display())),
    }
}

/// A directory of certificates.
fn certificates(directory: &Path) -> Result<Option<Vec<Host>>, String> {
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(format!("list {}: {error}", directory.display())),
    };
    let mut settings = Settings::default();
    let mut files: Vec<PathBuf> = listed.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => settings.authorities.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                if !key.exists() {
                    return Err(format!("{} has no {} beside it", file.display(), key.display()));
                }
                settings.clients.push((file, Some(key)));
            }
            _ => {}
        }
    }
    Ok(settings.has_tls().then(|| vec![Host::own(settings)]))
}

impl Host {
    fn own(settings: Settings) -> Self {
        Self {
            address: None,
            path: "/v2".into(),
            pull: true,
            resolve: true,
            push: true,
            referrers: true,
            settings,
        }
    }
}

pub(super) fn parse(text: &str, directory: &Path) -> Result<Vec<Host>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let mut hosts = Vec::new();
    for (address, table) in file.host.0 {
        hosts.push(host(&address, table, directory).map_err(|reason| format!("host {address:?}: {reason}"))?);
    }
    let own = Table {
        capabilities: file.capabilities,
        ca: file.ca,
        client: file.client,
        skip_verify: file.skip_verify,
        header: file.header,
        override_path: file.override_path,
        dial_timeout: file.dial_timeout,
    };
    hosts.push(host(&file.server, own, directory).map_err(|reason| format!("server: {reason}"))?);
    Ok(hosts)
}

fn host(address: &str, table: Table, directory: &Path) -> Result<Host, String> {
    let mut host = Host::own(Settings {
        skip_verify: table.skip_verify,
        authorities: table.ca.0.iter().map(|file| directory.join(file)).collect(),
        ..Settings::default()
    });
    if !address.is_empty() {
        let full = if address.starts_with("http://") || address.starts_with("https://") {
            address.to_owned()
        } else {
            format!("https://{address}")
        };
        let uri: Uri = full.parse().map_err(|_| "it is not an address")?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err("it is not an address".into());
        };
        if authority.host().is_empty() {
            return Err("it is not an address".into());
        }
        if authority.as_str().contains('@') {
            return Err("a user in the address is not supported; use a header".into());
        }
        host.address = Some(format!("{scheme}://{authority}"));
        let path = uri.path().trim_end_matches('/');
        host.path = if table.override_path || path.ends_with("/v2") {
            path.to_owned()
        } else {
            format!("{path}/v2")
        };
    }
    if let Some(capabilities) = table.capabilities.filter(|all| !all.is_empty()) {
        (host.pull, host.resolve, host.push, host.referrers) = (false, false, false, false);
        for capability in capabilities {
            match capability.as_str() {
                "pull" => host.pull = true,
                "resolve" => host.resolve = true,
                "push" => host.push = true,
                "referrers" => host.referrers = true,
                other => return Err(format!("there is no capability {other:?}")),
            }
        }
    }
    for client in table.client.0 {
        // The key's name may be left empty: then it is in the certificate's file.
        let mut files = client.0.into_iter();
        match (files.next(), files.next(), files.next()) {
            (Some(certificate), key, None) if !certificate.is_empty() => {
                let key = key.filter(|key| !key.is_empty()).map(|key| directory.join(key));
                host.settings.clients.push((directory.join(certificate), key));
            }
            _ => return Err("client is a file, or pairs of a certificate and a key".into()),
        }
    }
    for (name, values) in table.header.0 {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no header"))?;
        for value in values.0 {
            let mut value =
                HeaderValue::from_str(&value).map_err(|_| format!("header {name} has a value that can't be sent"))?;
            value.set_sensitive(true);
            host.settings.headers.push((name.clone(), value));
        }
    }
    if let Some(text) = table.dial_timeout.filter(|text| !text.is_empty()) {
        let limit = duration(&text).ok_or_else(|| format!("dial_timeout {text:?} is no time such as \"5s\""))?;
        host.settings.dial_timeout = Some(limit);
    }
    Ok(host)
}

/// `1m30s`, `500ms`, `1.5h`, as Go writes durations.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
    }
    (total > Duration::ZERO).then_some(total)
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: Ordered<Table>,
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Many,
    #[serde(default)]
    client: Clients,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: Ordered<Many>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
struct Table {
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    ca: Many,
    #[serde(default)]
    client: Clients,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: Ordered<Many>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

/// A text or a list of texts.
#[derive(Default)]
struct Many(Vec<String>);

/// One file, or a list of files and of pairs of files.
#[derive(Default)]
struct Clients(Vec<Many>);

impl<'de> Deserialize<'de> for Many {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a text or a list of texts")]
        enum Either {
            One(String),
            More(Vec<String>),
        }
        Ok(Self(match Either::deserialize(value)? {
            Either::One(one) => vec![one],
            Either::More(more) => more,
        }))
    }
}

impl<'de> Deserialize<'de> for Clients {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a file or a list of files and pairs of files")]
        enum Either {
            One(String),
            More(Vec<Many>),
        }
        Ok(Self(match Either::deserialize(value)? {
            Either::One(one) => vec![Many(vec![one])],
            Either::More(more) => more,
        }))
    }
}

/// A table whose order counts.
struct Ordered<T>(Vec<(String, T)>);

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Ordered<T> {
    fn deserialize<D: Deserializer<'de>>(value: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Ordered<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Ordered(all))
            }
        }
        value.deserialize_map(Visitor(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_read_in_its_order() {
        let text = r#"
            server = "https://registry-1.docker.io"
            ca = "own.crt"
            [host."https://z.example:8443/cache"]
            capabilities = ["pull", "resolve"]
            ca = ["a.pem", "/b.pem"]
            client = [["c.cert", "c.key"], "both.pem", ["pair.pem", ""]]
            skip_verify = true
            dial_timeout = "1.5s"
            [host."https://z.example:8443/cache".header]
            x-one = "secret"
            x-two = ["a", "b"]
            [host."http://a.example/x/v2"]
            [host."b.example/plain"]
            override_path = true
            capabilities = ["referrers"]
            dial_timeout = "250us"
        "#;
        let hosts = parse(text, Path::new("/d")).unwrap();
        assert_eq!(hosts.len(), 4);
        assert_eq!(hosts[0].address.as_deref(), Some("https://z.example:8443"));
        assert_eq!(hosts[0].path, "/cache/v2");
        assert!(hosts[0].pull && hosts[0].resolve && !hosts[0].push && hosts[0].settings.skip_verify);
        assert!(!hosts[0].referrers && hosts[1].referrers && !hosts[2].push && hosts[2].referrers);
        assert_eq!(
            hosts[0].settings.authorities,
            [PathBuf::from("/d/a.pem"), "/b.pem".into()]
        );
        assert_eq!(
            hosts[0].settings.clients,
            [
                ("/d/c.cert".into(), Some("/d/c.key".into())),
                (PathBuf::from("/d/both.pem"), None),
                (PathBuf::from("/d/pair.pem"), None)
            ]
        );
        assert_eq!(hosts[0].settings.dial_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(hosts[0].settings.headers.len(), 3);
        assert!(!format!("{hosts:?}").contains("secret"));
        assert_eq!(
            (hosts[1].address.as_deref(), hosts[1].path.as_str()),
            (Some("http://a.example"), "/x/v2")
        );
        assert_eq!(
            (hosts[2].address.as_deref(), hosts[2].path.as_str()),
            (Some("https://b.example"), "/plain")
        );
        assert_eq!(hosts[3].settings.authorities, [PathBuf::from("/d/own.crt")]);
        assert!(hosts[3].push);
    }

    #[test]
    fn what_can_not_be_done_is_refused() {
        for (text, reason) in [
            ("server = 7", "invalid type"),
            ("capabilities = [\"fly\"]", "no capability \"fly\""),
            ("dial_timeout = \"soon\"", "no time"),
            ("client = [[\"a\", \"b\", \"c\"]]", "pairs"),
            ("client = [[\"\", \"b\"]]", "pairs"),
            ("[header]\n\"a b\" = \"c\"", "no header"),
            ("[host.\"https://u:p@h\"]", "a user in the address"),
            ("[host.\"://\"]", "not an address"),
        ] {
            let error = parse(text, Path::new("/d")).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn a_tree_is_searched_by_host_and_port_before_the_default() {
        let root = std::env::temp_dir().join(format!("wharf-hosts-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let make = |name: &str, file: &str, text: &str| {
            fs::create_dir_all(root.join(name)).unwrap();
            fs::write(root.join(name).join(file), text).unwrap();
        };
        make("_default", "hosts.toml", "server = \"https://default\"");
        make("h_5000_", "hosts.toml", "server = \"https://underscore\"");
        make("h:6000", "hosts.toml", "server = \"https://colon\"");
        make("certs", "ca.crt", "");
        make("lonely", "a.cert", "");
        let roots = [root.join("absent"), root.clone()];
        let found = |name: &str, default| find(&roots, name, default).unwrap().map(|hosts| hosts[0].clone());
        assert_eq!(found("h:5000", false).unwrap().address.unwrap(), "https://underscore");
        assert_eq!(found("h:6000", false).unwrap().address.unwrap(), "https://colon");
        assert_eq!(found("h", false), None);
        assert_eq!(found("h", true).unwrap().address.unwrap(), "https://default");
        assert_eq!(found("certs", false).unwrap().settings.authorities.len(), 1);
        assert!(find(&roots, "lonely", false).unwrap_err().contains("a.key"));
        fs::remove_dir_all(&root).unwrap();
    }
}
