use super::*;

fn parse(texts: &[&str]) -> Result<Config> {
    let mut layers = Layers::default();
    for (number, text) in texts.iter().enumerate() {
        layers.push(format!("/etc/wharf/{number}.toml").into(), (*text).to_owned())?;
    }
    resolve(&layers)
}

fn refusal(texts: &[&str]) -> String {
    parse(texts).expect_err("the configuration must be refused").to_string()
}

#[test]
fn nothing_set_runs_alone() {
    let config = parse(&[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.socket, Path::new("/run/wharf/wharf.sock"));
    assert_eq!(config.network, NetworkMode::Builtin);
    assert!(config.runtimes.contains_key(BUILTIN_RUNTIME));
}

#[test]
fn the_socket_follows_the_run_directory() {
    let config = parse(&["run_dir = '/tmp/w'"]).unwrap();
    assert_eq!(config.socket, Path::new("/tmp/w/wharf.sock"));
}

#[test]
fn a_misspelt_key_names_file_line_and_the_key_that_was_meant() {
    assert_eq!(
        refusal(&["state_dir = '/a'\n\n# the network\nnetwrok = 'cni'\n"]),
        "/etc/wharf/0.toml:4: unknown key \"netwrok\", did you mean \"network\"?"
    );
    assert_eq!(
        refusal(&["[log]\nlevel = 'info'\nfromat = 'json'\n"]),
        "/etc/wharf/0.toml:3: unknown key \"fromat\", did you mean \"format\"?"
    );
}

#[test]
fn a_key_like_no_other_lists_what_is_known() {
    assert_eq!(
        refusal(&["[log]\nzzzzzzzz = 1\n"]),
        "/etc/wharf/0.toml:2: unknown key \"zzzzzzzz\", known here are level, format"
    );
}

#[test]
fn a_value_of_another_type_names_its_key() {
    let text = refusal(&["[pull]\nmax_parallel_layers = 'many'\n"]);
    assert!(
        text.starts_with("/etc/wharf/0.toml:2: pull.max_parallel_layers: "),
        "{text}"
    );
    let text = refusal(&["\nnetwork = 'bridge'\n"]);
    assert!(
        text.starts_with("/etc/wharf/0.toml:2: network: unknown variant `bridge`"),
        "{text}"
    );
}

#[test]
fn text_that_is_not_toml_names_the_line() {
    let text = refusal(&["state_dir = '/a'\nrun_dir = \n"]);
    assert!(text.starts_with("/etc/wharf/0.toml:2: "), "{text}");
}

#[test]
fn a_value_out_of_range_names_the_line_that_set_it_last() {
    let text = refusal(&[
        "[pull]\nmax_parallel_layers = 3\n",
        "\n[pull]\nmax_parallel_layers = 900\n",
    ]);
    assert_eq!(
        text,
        "/etc/wharf/1.toml:3: pull.max_parallel_layers: 900 is not between 1 and 32"
    );
    let text = refusal(&["[builtin_network]\nsubnet = '10.0.0.1/16'\n"]);
    assert!(
        text.starts_with("/etc/wharf/0.toml:2: builtin_network.subnet: "),
        "{text}"
    );
    let text = refusal(&["max_log_line = '2m'\n"]);
    assert!(text.starts_with("/etc/wharf/0.toml:1: max_log_line: "), "{text}");
    let text = refusal(&["default_runtime = 'kata'\n[runtimes.runc]\npath = '/usr/sbin/runc'"]);
    assert_eq!(
        text,
        "/etc/wharf/0.toml:1: default_runtime: no runtime is named \"kata\"; there are runc, builtin"
    );
    let text = refusal(&["\n[runtimes.runc]\nroot = '/run/runc'"]);
    assert_eq!(
        text,
        "/etc/wharf/0.toml:2: runtimes.runc.path: is missing: the command of the OCI runtime"
    );
    let text = refusal(&["[registries.'http://localhost']\nplain_http = true"]);
    assert!(text.contains("is not a registry's host"), "{text}");
}

#[test]
fn drop_ins_override_single_keys_and_replace_arrays() {
    let config = parse(&[
        "max_log_line = '8KiB'\n[cni]\nconf_dir = '/a'\nbin_dirs = ['/b', '/c']\n[runtimes.runc]\npath = '/runc'",
        "[cni]\nbin_dirs = ['/d']\n[runtimes.runc]\nroot = '/r'\n",
    ])
    .unwrap();
    assert_eq!(config.max_log_line, 8192);
    assert_eq!(config.cni.conf_dir, Path::new("/a"));
    assert_eq!(config.cni.bin_dirs, [PathBuf::from("/d")]);
    let runc = &config.runtimes["runc"];
    assert_eq!(
        (runc.path.as_path(), runc.root.as_deref()),
        (Path::new("/runc"), Some(Path::new("/r")))
    );
}

#[test]
fn files_are_read_in_the_order_of_their_names() {
    let dir = std::env::temp_dir().join(format!("wharf-config-{}", std::process::id()));
    let file = dir.join("wharf.toml");
    let drop_ins = dir.join("wharf.toml.d");
    std::fs::create_dir_all(&drop_ins).unwrap();
    std::fs::write(&file, "socket_group = 'a'").unwrap();
    std::fs::write(drop_ins.join("20.toml"), "socket_group = 'c'").unwrap();
    std::fs::write(drop_ins.join("10.toml"), "socket_group = 'b'").unwrap();
    std::fs::write(drop_ins.join("90.toml.off"), "socket_group = 'd'").unwrap();
    let config = load(Some(&file));
    let absent = load(Some(&dir.join("absent.toml")));
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(config.unwrap().socket_group.as_deref(), Some("c"));
    assert!(absent.unwrap_err().to_string().contains("absent.toml: No such file"));
}

#[test]
fn sizes_are_powers_of_1024() {
    assert_eq!(parse_size("16384"), Some(16384));
    assert_eq!(parse_size("16KiB"), Some(16384));
    assert_eq!(parse_size("1.5g"), Some(3 << 29));
    assert_eq!(parse_size("64 MB"), Some(64 << 20));
    for wrong in ["", "k", "-1", "1x", "1.2.3", "99999999999999999999"] {
        assert_eq!(parse_size(wrong), None, "{wrong}");
    }
}

#[test]
fn the_example_shows_the_defaults() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/wharf.toml");
    assert_eq!(load(Some(Path::new(example))).unwrap(), Config::default());
}

#[test]
fn an_empty_handler_is_the_default_one_and_the_builtin_has_no_command() {
    let config = parse(&["default_runtime = 'runc'\n[runtimes.runc]\npath = '/usr/sbin/runc'"]).unwrap();
    assert_eq!(config.handler("").unwrap().path, Path::new("/usr/sbin/runc"));
    assert_eq!(config.handler("builtin"), None);
    assert!(config.has_handler("builtin") && !config.has_handler("kata"));
    assert_eq!(Config::default().handler(""), None);
}

#[test]
fn confinement_is_checked() {
    let config = parse(&["apparmor_profile = 'mine'\n[runtimes.builtin]\ncgroup_writable = true\n"]).unwrap();
    assert!(config.apparmor && !config.selinux && config.handler_settings("").cgroup_writable);
    assert!(config.handler("").is_none(), "the built-in handler has no command");
    for (text, says) in [
        ("apparmor_profile = ''", "apparmor_profile"),
        ("apparmor_profile = 'unconfined'", "apparmor = false"),
        ("selinux_categories = 1", "between 2 and 1024"),
        ("selinux_categories = 2000", "between 2 and 1024"),
        (
            "[runtimes.builtin]\nprivileged_without_host_devices_all_devices_allowed = true",
            "privileged_without_host_devices = true",
        ),
    ] {
        let error = refusal(&[text]);
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn tracing_needs_an_address_and_a_share() {
    for (lines, wanted) in [
        (
            "[tracing]\nendpoint = 'localhost:4317'\n",
            "\"localhost:4317\" is no address",
        ),
        ("[tracing]\nendpoint = 'unix://relative'\n", "is no address"),
        (
            "[tracing]\nsamples_per_million = 1000001\n",
            "1000001 is more than 1000000",
        ),
        ("[tracing]\nservice_name = ''\n", "is empty"),
    ] {
        let error = refusal(&[lines]);
        assert!(error.contains(wanted), "{error}");
    }
    for endpoint in [
        "http://127.0.0.1:4317",
        "https://otel.example:4317",
        "unix:///run/otel.sock",
    ] {
        let config = parse(&[&format!("[tracing]\nendpoint = '{endpoint}'\n")]).unwrap();
        assert_eq!(config.tracing.endpoint.as_deref(), Some(endpoint));
    }
}
