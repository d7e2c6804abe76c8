//! The flags of `wharf run`, and how their values are read.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use wharf_proto::cri;

use crate::cli::{attach::DETACH_KEYS, stream::Keys};
use crate::config::parse_size;

/// Arguments of `wharf run`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print the container's id and leave it running
    #[arg(short, long)]
    pub detach: bool,
    /// Remove the container when it has ended
    #[arg(long)]
    pub rm: bool,
    /// Name of the container and its pod [default: from the image's name]
    #[arg(long, value_parser = name)]
    pub name: Option<String>,
    /// Environment variable; without a value it is taken from this process; may be repeated
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub env: Vec<String>,
    /// File with environment variables, one a line; may be repeated
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Mount a directory or file of this node; options are ro, rw, rslave, rshared; may be repeated
    #[arg(short, long, value_name = "HOST:CONTAINER[:OPTIONS]", value_parser = volume)]
    pub volume: Vec<cri::Mount>,
    /// Directory in which the command starts
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User (name or number) and group (number) of the command
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = user)]
    pub user: Option<User>,
    /// Network of the pod: default, host, none, or one of `wharf network ls`; those may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Another name of the container on its networks; may be repeated
    #[arg(long, value_name = "NAME")]
    pub network_alias: Vec<String>,
    /// IPv4 address on the first of its networks
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Option<std::net::Ipv4Addr>,
    /// IPv6 address on the first of its networks
    #[arg(long, value_name = "ADDRESS")]
    pub ip6: Option<std::net::Ipv6Addr>,
    /// Name server to ask instead of this node's; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<std::net::IpAddr>,
    /// Search domain for names; may be repeated
    #[arg(long, value_name = "DOMAIN", requires = "dns")]
    pub dns_search: Vec<String>,
    /// Option of resolv.conf(5); may be repeated
    #[arg(long, value_name = "OPTION", requires = "dns")]
    pub dns_option: Vec<String>,
    /// Line for /etc/hosts; the address host-gateway is this node's; may be repeated
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    pub add_host: Vec<(String, String)>,
    /// Forward a port of this node; may be repeated
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]", value_parser = port)]
    pub publish: Vec<cri::PortMapping>,
    /// Host name inside [default: the name]
    #[arg(long)]
    pub hostname: Option<String>,
    /// Run this instead of the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Memory limit, for example 64m
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<i64>,
    /// CPU limit, for example 1.5
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    pub cpus: Option<i64>,
    /// size=SIZE: the most that it may write to its root filesystem and its image's volumes, for example size=1g
    #[arg(long, value_name = "size=SIZE", value_parser = storage)]
    pub storage_opt: Option<u64>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    pub read_only: bool,
    /// Give the container all capabilities and devices
    #[arg(long)]
    pub privileged: bool,
    /// Add a capability; may be repeated
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<String>,
    /// Drop a capability; may be repeated
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<String>,
    /// Runtime handler [default: the daemon's]
    #[arg(long, value_name = "HANDLER")]
    pub runtime: Option<String>,
    /// Label; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = label)]
    pub label: Vec<(String, String)>,
    /// Directory for the log, which is kept when the container is removed [default: one below /var/log/wharf]
    #[arg(long, value_name = "DIR")]
    pub log_dir: Option<PathBuf>,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t)]
    pub pull: PullPolicy,
    /// Don't show the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Send stdin to the container; with -d keep its stdin open
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Pass signals such as Ctrl-C on to the container, unless it has a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    /// Keys that leave the container running, in a terminal
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = Keys::parse)]
    pub detach_keys: Keys,
    /// Reference or id of the image
    pub image: String,
    /// The command and its arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// When `run` pulls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// If the image isn't on this node.
    #[default]
    Missing,
    /// Each time.
    Always,
    /// Not at all.
    Never,
}

/// Who runs the command, in CRI's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Number, or
    pub uid: Option<i64>,
    /// name of the user.
    pub name: String,
    /// Number of the group.
    pub gid: Option<i64>,
}

/// Reads `KEY=VALUE` or `KEY`.
///
/// # Errors
/// When there is no key.
pub fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("", _) => Err("a label has the form KEY=VALUE".to_owned()),
        (key, value) => Ok((key.to_owned(), value.to_owned())),
    }
}

fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if text.len() <= 63 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 63 letters, digits, \"_\", \".\" and \"-\", and begins with a letter or digit".to_owned())
}

/// Reads a variable: `KEY=VALUE`, or `KEY` whose value `lookup` finds; `None` if it is not set there.
///
/// # Errors
/// When there is no key.
pub fn env(text: &str, lookup: impl Fn(&str) -> Option<Vec<u8>>) -> Result<Option<cri::KeyValue>, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.as_bytes().to_vec())),
        None => (text, lookup(text)),
    };
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(format!("\"{text}\" is no variable of the form KEY=VALUE"));
    }
    Ok(value.map(|value| cri::KeyValue {
        key: key.to_owned(),
        value,
    }))
}

/// Lines of an environment file that are neither empty nor comments.
pub fn env_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.trim_start()));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn volume(text: &str) -> Result<cri::Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, options) = match parts.as_slice() {
        [host, container] => (host, container, ""),
        [host, container, options] => (host, container, *options),
        _ => return Err("a volume has the form HOST:CONTAINER[:OPTIONS]".to_owned()),
    };
    if !host.starts_with(['/', '.']) {
        return Err(format!(
            "\"{host}\" is no path; named volumes don't exist here, give a directory or file"
        ));
    }
    if !container.starts_with('/') {
        return Err(format!(
            "the path \"{container}\" inside the container must be absolute"
        ));
    }
    let host_path = std::path::absolute(Path::new(host)).map_err(|error| format!("\"{host}\": {error}"))?;
    let mut mount = cri::Mount {
        host_path: host_path.to_string_lossy().into_owned(),
        container_path: (*container).to_owned(),
        ..Default::default()
    };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => mount.readonly = true,
            "rw" => mount.readonly = false,
            "rslave" | "slave" => mount.set_propagation(cri::MountPropagation::PropagationHostToContainer),
            "rshared" | "shared" => mount.set_propagation(cri::MountPropagation::PropagationBidirectional),
            "rprivate" | "private" => mount.set_propagation(cri::MountPropagation::PropagationPrivate),
            "z" | "Z" => mount.selinux_relabel = true,
            _ => {
                return Err(format!(
                    "\"{option}\" is no option of a volume; there are ro, rw, rslave, rshared"
                ));
            }
        }
    }
    Ok(mount)
}

/// Reads `NAME:ADDRESS` or `NAME=ADDRESS`, as Docker does.
fn host(text: &str) -> Result<(String, String), String> {
    let wrong = || format!("\"{text}\" has not the form NAME:ADDRESS");
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .ok_or_else(wrong)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let known = address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok();
    match known && !name.is_empty() {
        true => Ok((name.to_owned(), address.to_owned())),
        false => Err(wrong()),
    }
}

fn user(text: &str) -> Result<User, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    if user.is_empty() {
        return Err("a user has the form USER[:GROUP]".to_owned());
    }
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let gid = match group {
        Some(group) => Some(number(group).ok_or_else(|| format!("the group \"{group}\" must be a number in CRI"))?),
        None => None,
    };
    let uid = number(user);
    Ok(User {
        uid,
        name: if uid.is_some() { String::new() } else { user.to_owned() },
        gid,
    })
}

fn port(text: &str) -> Result<cri::PortMapping, String> {
    let wrong = || format!("\"{text}\" has not the form [IP:]HOST:CONTAINER[/PROTOCOL], for example 8080:80");
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => cri::Protocol::Tcp,
        "udp" => cri::Protocol::Udp,
        "sctp" => cri::Protocol::Sctp,
        other => return Err(format!("\"{other}\" is no protocol; there are tcp, udp and sctp")),
    };
    let (rest, container) = ports.rsplit_once(':').ok_or_else(wrong)?;
    let (ip, host) = match rest.rsplit_once(':') {
        Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), host),
        None => ("", rest),
    };
    if !ip.is_empty() && ip.parse::<std::net::IpAddr>().is_err() {
        return Err(wrong());
    }
    let number = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            .map(i32::from)
            .ok_or_else(wrong)
    };
    Ok(cri::PortMapping {
        protocol: protocol.into(),
        container_port: number(container)?,
        host_port: number(host)?,
        host_ip: ip.to_owned(),
    })
}

pub fn memory(text: &str) -> Result<i64, String> {
    let bytes = parse_size(text)
        .filter(|bytes| *bytes > 0)
        .and_then(|bytes| i64::try_from(bytes).ok());
    bytes.ok_or_else(|| format!("\"{text}\" is no size such as 64m or 1g"))
}

/// Reads `size=SIZE`, Docker's one option that is about a container.
fn storage(text: &str) -> Result<u64, String> {
    let (name, size) = text.split_once('=').unwrap_or((text, ""));
    if name.trim() != "size" {
        return Err(format!("\"{name}\" is no option of storage; there is size=SIZE"));
    }
    let bytes = parse_size(size).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| format!("\"{size}\" is no size such as 512m or 10g"))
}

/// CPUs as a quota in a period of 100 ms.
pub fn cpus(text: &str) -> Result<i64, String> {
    let cpus = text.parse::<f64>().ok().filter(|cpus| (0.01..=4096.0).contains(cpus));
    let cpus = cpus.ok_or_else(|| format!("\"{text}\" is no number of CPUs such as 0.5 or 2"))?;
    Ok((cpus * 100_000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_flag_or_from_here() {
        let lookup = |key: &str| (key == "HOME").then(|| b"/root".to_vec());
        let pair = |text: &str| {
            env(text, lookup)
                .unwrap()
                .map(|kv| (kv.key, String::from_utf8(kv.value).unwrap()))
        };
        let some = |key: &str, value: &str| Some((key.to_owned(), value.to_owned()));
        assert_eq!(pair("A=b=c"), some("A", "b=c"));
        assert_eq!(pair("A="), some("A", ""));
        assert_eq!(pair("HOME"), some("HOME", "/root"));
        assert_eq!(pair("NOT_SET"), None);
        assert!(env("=x", lookup).is_err());
        assert!(env("A B=x", lookup).is_err());
    }

    #[test]
    fn environment_files_have_comments() {
        let lines: Vec<_> = env_lines("A=1\n\n# note\n  B=2 \n").collect();
        assert_eq!(lines, [(1, "A=1"), (4, "B=2 ")]);
    }

    #[test]
    fn storage_has_a_size_and_nothing_else() {
        assert_eq!(storage("size=1g"), Ok(1 << 30));
        for wrong in ["size", "size=", "size=0", "size=x", "dm.basesize=1g", "1g", ""] {
            assert!(storage(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn volumes_have_two_paths_and_options() {
        let mount = volume("/a:/b:ro,rslave").unwrap();
        assert_eq!(
            (mount.host_path.as_str(), mount.container_path.as_str(), mount.readonly),
            ("/a", "/b", true)
        );
        assert_eq!(mount.propagation(), cri::MountPropagation::PropagationHostToContainer);
        assert!(!volume("/a:/b").unwrap().readonly);
        assert!(volume("./x:/b").unwrap().host_path.starts_with('/'));
        for wrong in ["/a", "data:/b", "/a:b", "/a:/b:fast", "/a:/b:ro:x", ""] {
            assert!(volume(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_have_an_address_and_a_protocol_if_need_be() {
        let parts = |text: &str| {
            let p = port(text).unwrap();
            (p.host_ip.clone(), p.host_port, p.container_port, p.protocol())
        };
        assert_eq!(parts("8080:80"), (String::new(), 8080, 80, cri::Protocol::Tcp));
        assert_eq!(
            parts("127.0.0.1:53:5353/udp"),
            ("127.0.0.1".into(), 53, 5353, cri::Protocol::Udp)
        );
        assert_eq!(parts("[::1]:1:2"), ("::1".into(), 1, 2, cri::Protocol::Tcp));
        for wrong in ["80", "0:80", "8080:99999", "x:80", "8080:80/icmp", "nohost:1:2", ""] {
            assert!(port(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn host_entries_have_a_name_and_an_address() {
        let pair = |name: &str, address: &str| Ok((name.to_owned(), address.to_owned()));
        assert_eq!(host("db:192.0.2.7"), pair("db", "192.0.2.7"));
        assert_eq!(host("db:fd00::7"), pair("db", "fd00::7"));
        assert_eq!(host("db=[fd00::7]"), pair("db", "fd00::7"));
        assert_eq!(host("node:host-gateway"), pair("node", "host-gateway"));
        for wrong in ["db", "db:", ":1.2.3.4", "db:name"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!(
            user("1000:100"),
            Ok(User {
                uid: Some(1000),
                name: String::new(),
                gid: Some(100)
            })
        );
        assert_eq!(
            user("www"),
            Ok(User {
                uid: None,
                name: "www".into(),
                gid: None
            })
        );
        assert!(user("www:staff").is_err());
        assert!(user(":1").is_err());
    }

    #[test]
    fn limits_are_read_in_dockers_units() {
        assert_eq!(memory("64m"), Ok(64 << 20));
        assert!(memory("0").is_err());
        assert_eq!(cpus("1.5"), Ok(150_000));
        assert!(cpus("0").is_err());
        assert!(cpus("NaN").is_err());
    }

    #[test]
    fn names_are_safe_in_paths() {
        assert!(name("web-1.x_y").is_ok());
        for wrong in ["", "-a", "../x", "a/b", ".."] {
            assert!(name(wrong).is_err(), "{wrong}");
        }
    }
}
