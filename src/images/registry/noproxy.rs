//! `NO_PROXY`, as Go's programs read it, which is what nodes are set up for: it also has ports, and `*` for addresses.

use std::net::IpAddr;

use http::Uri;

/// Hosts that are reached directly.
#[derive(Debug, Default)]
pub(super) struct NoProxy(Vec<Entry>);

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    All,
    /// An address, or all whose first bits are the same; of one port if there is one.
    Network(IpAddr, u8, Option<u16>),
    /// The domain and what is below it, or only the latter; of one port if there is one.
    Domain {
        name: String,
        below: bool,
        port: Option<u16>,
    },
}

impl NoProxy {
    pub fn from_env() -> Self {
        let set = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        Self::parse(&set("NO_PROXY").or_else(|| set("no_proxy")).unwrap_or_default())
    }

    pub fn parse(text: &str) -> Self {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        Self(entries.map(|entry| Entry::parse(&entry.to_ascii_lowercase())).collect())
    }

    /// Whether `uri` is reached directly.
    pub fn has(&self, uri: &Uri) -> bool {
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let port = uri.port_u16().or(match uri.scheme_str() {
            Some("http") => Some(80),
            _ => Some(443),
        });
        let address: Option<IpAddr> = host.parse().ok();
        let on = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        self.0.iter().any(|entry| match entry {
            Entry::All => true,
            Entry::Network(network, bits, wanted) => {
                on(wanted) && address.is_some_and(|address| same(address, *network, *bits))
            }
            Entry::Domain {
                name,
                below,
                port: wanted,
            } => {
                let rest = host.strip_suffix(name.as_str());
                on(wanted) && rest.is_some_and(|rest| rest.ends_with('.') || rest.is_empty() && !below)
            }
        })
    }
}

impl Entry {
    fn parse(text: &str) -> Self {
        if text == "*" {
            return Self::All;
        }
        if let Some((address, bits)) = text.split_once('/')
            && let (Ok(address), Ok(bits)) = (address.parse(), bits.parse())
        {
            return Self::Network(address, bits, None);
        }
        if let Ok(address) = text.parse() {
            return Self::Network(address, u8::MAX, None);
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() => (name, port.parse().ok()),
            _ => (text, None),
        };
        if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse() {
            return Self::Network(address, u8::MAX, port);
        }
        let all = name.strip_prefix('*').unwrap_or(name);
        let name = all.strip_prefix('.').unwrap_or(all);
        Self::Domain {
            below: name.len() != all.len(),
            name: name.to_owned(),
            port,
        }
    }
}

/// Whether two addresses have the same first `bits`.
fn same(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let top = |all: u128, width: u8| all >> width.saturating_sub(bits).min(127) >> u8::from(bits == 0 && width == 128);
    match (one, other) {
        (IpAddr::V4(one), IpAddr::V4(other)) => top(u32::from(one).into(), 32) == top(u32::from(other).into(), 32),
        (IpAddr::V6(one), IpAddr::V6(other)) => top(one.into(), 128) == top(other.into(), 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_entry_means_what_it_means_to_go() {
        let has = |list: &str, address: &str| NoProxy::parse(list).has(&address.parse().unwrap());
        for (list, address, expected) in [
            ("", "https://a.example/", false),
            ("*", "https://a.example/", true),
            ("*", "https://10.0.0.1/", true),
            ("a.example", "https://a.example/", true),
            ("A.Example", "https://a.EXAMPLE./", true),
            ("a.example", "https://sub.a.example/", true),
            ("a.example", "https://nota.example/", false),
            (".a.example", "https://sub.a.example/", true),
            (".a.example", "https://a.example/", false),
            ("*.a.example", "https://sub.a.example:5000/", true),
            ("a.example:5000", "https://a.example:5000/", true),
            ("a.example:5000", "https://a.example/", false),
            ("a.example:443", "https://a.example/", true),
            ("a.example:443", "http://a.example/", false),
            ("10.0.0.0/8, x", "https://10.1.2.3:5000/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("10.0.0.0/8", "https://[::1]/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("::/0", "https://[fd00::1]/", true),
            ("10.0.0.7", "https://10.0.0.7:5000/", true),
            ("10.0.0.7", "https://10.0.0.8/", false),
            ("10.0.0.7:80", "http://10.0.0.7/", true),
            ("fd00::/16", "https://[fd00::1]:5000/", true),
            ("[fd00::1]:5000", "https://[fd00::1]:5000/", true),
            ("[fd00::1]:5000", "https://[fd00::1]/", false),
        ] {
            assert_eq!(has(list, address), expected, "{list:?} and {address}");
        }
    }
}
