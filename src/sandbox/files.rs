//! What the pod's containers see at /etc/hostname, /etc/hosts and /etc/resolv.conf. Pure functions on text.

use std::net::IpAddr;

use wharf_proto::cri::{DnsConfig, NamespaceMode, PodSandboxConfig};

/// The C library reads no more of a resolv.conf; longer host files are cut at a line.
const MAX_RESOLV_CONF: usize = 64 << 10;

/// A value that would add lines of its own to a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?}: contains a line break, a space or a control character")]
pub struct InvalidValue {
    /// Which field of the request.
    pub field: &'static str,
    /// As asked for.
    pub value: String,
}

/// True if the pod uses the host's network, and with it the host's name.
pub(super) fn host_network(config: &PodSandboxConfig) -> bool {
    let options = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref()?.namespace_options.as_ref());
    options.is_some_and(|o| o.network == NamespaceMode::Node as i32)
}

/// The name that the pod's processes see. Empty means the host's: with the host's network, or if none is asked for.
#[must_use]
pub fn hostname(config: &PodSandboxConfig) -> String {
    if host_network(config) {
        String::new()
    } else {
        config.hostname.clone()
    }
}

/// Refuses a hostname that is longer than the kernel takes or would break the files.
pub fn check_hostname(name: &str) -> Result<(), InvalidValue> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '/';
    match name.len() > 64 || name.chars().any(bad) {
        true => Err(InvalidValue {
            field: "hostname",
            value: name.to_owned(),
        }),
        false => Ok(()),
    }
}

/// Contents of /etc/hostname for the name that the pod sees.
#[must_use]
pub fn hostname_file(name: &str) -> String {
    format!("{name}\n")
}

/// Contents of /etc/hosts. With the host's network the host's own file, as peers do it; kubelet mounts its own over it
/// in either case.
#[must_use]
pub fn hosts_file(host_network_hosts: Option<&str>, name: &str) -> String {
    if let Some(hosts) = host_network_hosts {
        return hosts.to_owned();
    }
    let mut out = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
        .to_owned();
    if !name.is_empty() {
        out.push_str(&format!("127.0.1.1\t{name}\n"));
    }
    out
}

/// Contents of /etc/resolv.conf. Without a `dns_config` the host's file; an empty one makes an empty file (row D12).
///
/// # Errors
/// A server, search domain or option that would break out of its line.
pub fn resolv_conf(dns: Option<&DnsConfig>, host_file: &str) -> Result<String, InvalidValue> {
    let Some(dns) = dns else {
        return Ok(cut(host_file).to_owned());
    };
    let mut out = String::new();
    let mut line = |keyword: &str, field: &'static str, values: &[String]| -> Result<(), InvalidValue> {
        if let Some(bad) = values
            .iter()
            .find(|v| v.is_empty() || v.chars().any(|c| c.is_whitespace() || c.is_control()))
        {
            return Err(InvalidValue {
                field,
                value: bad.clone(),
            });
        }
        if !values.is_empty() {
            out.push_str(&format!("{keyword} {}\n", values.join(" ")));
        }
        Ok(())
    };
    line("search", "search domain", &dns.searches)?;
    for server in &dns.servers {
        line("nameserver", "DNS server", std::slice::from_ref(server))?;
    }
    line("options", "DNS option", &dns.options)?;
    Ok(out)
}

/// Contents of /etc/resolv.conf of a pod that asks its network's `resolver`, which asks the servers of `dns` or the node's.
/// Search domains and options are those of `dns` or of the host's file.
///
/// # Errors
/// As [`resolv_conf`].
pub fn resolv_conf_by(resolver: IpAddr, dns: Option<&DnsConfig>, host_file: &str) -> Result<String, InvalidValue> {
    let of_host = |keyword: &str| -> Vec<String> {
        let line = cut(host_file)
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix(keyword));
        let words = line.filter(|rest| rest.starts_with(char::is_whitespace));
        words
            .map(|rest| rest.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let mut asked = dns.cloned().unwrap_or_default();
    if asked.searches.is_empty() {
        asked.searches = of_host("search");
    }
    if asked.options.is_empty() {
        asked.options = of_host("options");
    }
    // The name of a pod has no dot, and is meant before what a search domain makes of it.
    if !asked.options.iter().any(|option| option.starts_with("ndots:")) {
        asked.options.push("ndots:0".to_owned());
    }
    asked.servers = vec![resolver.to_string()];
    resolv_conf(Some(&asked), "")
}

/// The name servers that a resolv.conf(5) names.
pub fn name_servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .filter_map(|rest| rest.split_whitespace().next())
}

/// Whether a resolv.conf(5) names servers, all of them at the machine's own localhost.
#[must_use]
pub fn asks_localhost_alone(text: &str) -> bool {
    let local = |server: &str| server.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    name_servers(text).next().is_some() && name_servers(text).all(local)
}

fn cut(text: &str) -> &str {
    match text.len() > MAX_RESOLV_CONF {
        false => text,
        true => {
            let end = text.as_bytes()[..MAX_RESOLV_CONF]
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            &text[..end]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let owned = |v: &[&str]| v.iter().map(|s| (*s).to_owned()).collect();
        DnsConfig {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        }
    }

    #[test]
    fn no_dns_config_copies_and_an_empty_one_empties() {
        assert_eq!(
            resolv_conf(None, "nameserver 9.9.9.9\n").unwrap(),
            "nameserver 9.9.9.9\n"
        );
        assert_eq!(
            resolv_conf(Some(&DnsConfig::default()), "nameserver 9.9.9.9\n").unwrap(),
            ""
        );
    }

    #[test]
    fn a_dns_config_becomes_lines() {
        let config = dns(&["10.96.0.10", "fd00::a"], &["a.svc", "svc"], &["ndots:5"]);
        let want = "search a.svc svc\nnameserver 10.96.0.10\nnameserver fd00::a\noptions ndots:5\n";
        assert_eq!(resolv_conf(Some(&config), "").unwrap(), want);
    }

    #[test]
    fn a_resolver_is_asked_with_the_hosts_search_domains_and_options() {
        let resolver: IpAddr = "10.1.0.1".parse().unwrap();
        let host = "search a.example\nnameserver 9.9.9.9\noptions timeout:1\nsearch b.example\n";
        assert_eq!(
            resolv_conf_by(resolver, None, host).unwrap(),
            "search b.example\nnameserver 10.1.0.1\noptions timeout:1 ndots:0\n"
        );
        let asked = dns(&["1.1.1.1"], &["c.example"], &["ndots:3"]);
        assert_eq!(
            resolv_conf_by(resolver, Some(&asked), host).unwrap(),
            "search c.example\nnameserver 10.1.0.1\noptions ndots:3\n"
        );
    }

    #[test]
    fn a_file_that_names_localhost_alone_is_known() {
        for (text, alone) in [
            ("nameserver 127.0.0.53\noptions edns0\n", true),
            ("nameserver 127.0.0.1\nnameserver\t::1\n", true),
            ("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", false),
            ("# nameserver 127.0.0.53\nsearch a\n", false),
            ("nameserver fe80::1%eth0\n", false),
        ] {
            assert_eq!(asks_localhost_alone(text), alone, "{text}");
        }
    }

    #[test]
    fn values_cannot_add_lines() {
        assert!(resolv_conf(Some(&dns(&["1.1.1.1\nnameserver 6.6.6.6"], &[], &[])), "").is_err());
        assert!(resolv_conf(Some(&dns(&[], &["a b"], &[])), "").is_err());
        assert!(check_hostname("a\nb").is_err() && check_hostname(&"x".repeat(65)).is_err());
        assert!(check_hostname("pod-1").is_ok());
    }

    #[test]
    fn hosts_name_the_pod_unless_the_network_is_the_hosts() {
        assert!(hosts_file(None, "web").ends_with("127.0.1.1\tweb\n"));
        assert_eq!(hosts_file(Some("1.2.3.4 x\n"), "web"), "1.2.3.4 x\n");
    }
}
