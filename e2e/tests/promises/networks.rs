//! Networks that people make and name, and what pods notice of a daemon that dies and comes back.

use nix::sys::signal::Signal;
use wharf_e2e::pulse::Datagrams;
use wharf_e2e::{Daemon, eventually};

use crate::cli::{ok, wharf};
use crate::traffic::{at, node_netns};

/// Standard error of a command that must fail.
async fn refused(daemon: &Daemon, args: &[&str]) -> String {
    let output = wharf(daemon, args).await;
    assert!(!output.status.success(), "wharf {args:?} was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Starts a container that sleeps, with more flags.
async fn run(daemon: &Daemon, name: &str, flags: &[&str]) {
    let (image, logs) = (daemon.busybox().await, daemon.logs.to_string_lossy().into_owned());
    let mut args = vec!["run", "-d", "--log-dir", logs.as_str(), "--name", name];
    args.extend(flags);
    args.extend([image.as_str(), "sh", "-c", "nc -ll -p 80 -e hostname & sleep 1000"]);
    ok(daemon, &args).await;
}

/// What a shell line in a container says; both streams, whatever its exit code.
async fn sh(daemon: &Daemon, name: &str, line: &str) -> String {
    let output = wharf(daemon, &["exec", name, "sh", "-c", &format!("{line} 2>&1")]).await;
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A shell line that calls a server by its name. busybox's nc has no resolver of its own where it is linked statically.
fn call(name: &str) -> String {
    format!("nc -w 3 $(nslookup {name} | sed -n 's/^Address[^:]*: *\\([0-9.]*\\)$/\\1/p' | tail -n 1) 80 </dev/null")
}

async fn remove(daemon: &Daemon, containers: &[&str], networks: &[&str]) {
    for name in containers {
        ok(daemon, &["rm", "-f", name]).await;
    }
    for name in networks {
        ok(daemon, &["network", "rm", name]).await;
    }
}

#[tokio::test]
async fn containers_on_a_network_know_each_other_by_name_and_others_do_not_reach_them() {
    let mut daemon = Daemon::start().await;
    ok(&daemon, &["network", "create", "--subnet", "10.200.1.0/24", "front"]).await;
    ok(&daemon, &["network", "create", "--internal", "--label", "a=b", "back"]).await;
    run(
        &daemon,
        "web",
        &["--network", "front", "--network-alias", "www", "--ip", "10.200.1.77"],
    )
    .await;
    run(
        &daemon,
        "client",
        &["--network", "front", "--add-host", "node:host-gateway"],
    )
    .await;
    run(&daemon, "db", &["--network", "back"]).await;

    let seen = sh(&daemon, "client", "nslookup web; nslookup www; nslookup WEB").await;
    assert_eq!(seen.matches("10.200.1.77").count(), 3, "{seen}");
    assert_eq!(sh(&daemon, "client", &call("web")).await, "web\n");
    assert_eq!(sh(&daemon, "client", "nslookup db | grep -c ^Name").await, "0\n");
    assert!(
        sh(&daemon, "client", "cat /etc/hosts")
            .await
            .contains("10.200.1.1\tnode")
    );

    let list = ok(&daemon, &["network", "inspect", "back"]).await;
    let back: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&back["internal"], &back["labels"]["a"]), (&true.into(), &"b".into()));
    let db = back["members"][0]["ips"][0].as_str().unwrap().to_owned();
    let line = format!("nc -w 2 {db} 80 </dev/null; echo $?");
    assert_ne!(
        sh(&daemon, "client", &line).await.lines().last().unwrap(),
        "0",
        "networks are apart"
    );
    assert!(
        !sh(&daemon, "db", "ip route").await.contains("default"),
        "nothing leads out of an internal network"
    );

    // On both, and back.
    ok(&daemon, &["network", "connect", "--alias", "api", "back", "web"]).await;
    assert_eq!(sh(&daemon, "db", &call("api")).await, "web\n");
    assert_eq!(sh(&daemon, "web", &call("db")).await, "db\n");
    refused(&daemon, &["network", "connect", "back", "web"]).await;

    // A daemon that died knows all of it again.
    daemon.crash().await;
    assert_eq!(sh(&daemon, "client", &call("www")).await, "web\n");
    assert_eq!(sh(&daemon, "db", &call("api")).await, "web\n");

    ok(&daemon, &["network", "disconnect", "back", "web"]).await;
    assert_eq!(sh(&daemon, "db", "nslookup api | grep -c ^Name").await, "0\n");
    assert!(sh(&daemon, "web", "ip route").await.contains("default via 10.200.1.1"));
    let error = refused(&daemon, &["network", "rm", "front"]).await;
    assert!(error.contains("in use"), "{error}");
    assert!(!ok(&daemon, &["network", "prune"]).await.contains("front"));
    remove(&daemon, &["web", "client", "db"], &["front"]).await;
    assert_eq!(ok(&daemon, &["network", "prune"]).await, "back\n");
    assert_eq!(ok(&daemon, &["network", "ls", "-q"]).await, "default\n");
    daemon.finish().await;
}

#[tokio::test]
async fn networks_that_can_not_be_are_refused_with_the_reason() {
    let daemon = Daemon::start().await;
    ok(&daemon, &["network", "create", "--subnet", "10.200.1.0/29", "small"]).await;
    for (args, words) in [
        (vec!["network", "create", "small"], "exists"),
        (
            vec!["network", "create", "--subnet", "10.200.0.0/16", "wide"],
            "overlaps with 10.200.1.0/29 of network small",
        ),
        (
            vec!["network", "create", "--subnet", "10.121.7.0/24", "wide"],
            "of the default network",
        ),
        (vec!["network", "create", "host"], "meaning of its own"),
        (vec!["network", "rm", "absent"], "no network"),
        (vec!["network", "rm", "default"], "default network"),
    ] {
        let error = refused(&daemon, &args).await;
        assert!(error.contains(words), "{args:?}: {error}");
    }
    // Somebody else's device.
    daemon
        .lab
        .output("ip", &["link", "add", "wb-taken", "type", "bridge"])
        .await
        .unwrap();
    let error = refused(&daemon, &["network", "create", "taken"]).await;
    assert!(error.contains("wb-taken belongs to somebody else"), "{error}");
    daemon.lab.output("ip", &["link", "delete", "wb-taken"]).await.unwrap();

    let (image, logs) = (daemon.busybox().await, daemon.logs.to_string_lossy().into_owned());
    let run = |flags: &[&'static str]| {
        let mut args = vec!["run", "--rm", "--log-dir", logs.as_str()];
        args.extend(flags);
        args.extend([image.as_str(), "true"]);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    for (flags, words) in [
        (vec!["--network", "absent"], "no network"),
        (vec!["--network", "small", "--ip", "10.200.1.1"], "gateway"),
        (vec!["--network", "small", "--ip", "10.9.9.9"], "no address"),
        (vec!["--ip", "10.200.1.2"], "network of its own"),
    ] {
        let args = run(&flags);
        let error = refused(&daemon, &args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert!(error.contains(words), "{flags:?}: {error}");
    }
    // Five addresses, and the sixth.
    for number in 0..5 {
        self::run(&daemon, &format!("c{number}"), &["--network", "small"]).await;
    }
    let error = refused(
        &daemon,
        &run(&["--network", "small"])
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>(),
    )
    .await;
    assert!(error.contains("no free address in 10.200.1.0/29"), "{error}");
    remove(&daemon, &["c0", "c1", "c2", "c3", "c4"], &["small"]).await;
    daemon.finish().await;
}

#[tokio::test]
async fn ports_are_shown_and_a_second_holder_is_refused_by_name() {
    let daemon = Daemon::start().await;
    ok(&daemon, &["network", "create", "front"]).await;
    run(
        &daemon,
        "web",
        &["--network", "front", "-p", "8080:80", "-p", "127.0.0.1:5353:53/udp"],
    )
    .await;
    let ports = ok(&daemon, &["port", "web"]).await;
    assert!(
        ports.contains("80/tcp -> 0.0.0.0:8080\n") && ports.contains("53/udp -> 127.0.0.1:5353\n"),
        "{ports}"
    );
    assert_eq!(ok(&daemon, &["port", "web", "80"]).await, "0.0.0.0:8080\n");
    eventually("the port leads to the container", async || {
        let answer = daemon
            .lab
            .output("busybox", &["nc", "-w", "2", "127.0.0.1", "8080"])
            .await;
        answer.is_ok_and(|text| text == "web\n")
    })
    .await;
    // On the default network, by the node's address.
    run(&daemon, "other", &[]).await;
    let line = "nc -w 3 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') 8080 </dev/null";
    assert_eq!(sh(&daemon, "other", line).await, "web\n");
    let (image, logs) = (daemon.busybox().await, daemon.logs.to_string_lossy().into_owned());
    let error = refused(
        &daemon,
        &["run", "--rm", "--log-dir", &logs, "-p", "8080:80", &image, "true"],
    )
    .await;
    assert!(error.contains("host port tcp/8080 is held by pod"), "{error}");
    remove(&daemon, &["web", "other"], &["front"]).await;
    daemon.finish().await;
}

/// A container's address on its network, by what it sees itself.
async fn own_address(daemon: &Daemon, name: &str, device: &str) -> String {
    let line = format!("ip -o -4 address show {device} | sed -n 's/.*inet \\([^ ]*\\).*/\\1/p'");
    sh(daemon, name, &line).await
}

#[tokio::test]
async fn networks_addresses_and_rules_outlive_the_daemon_and_the_last_to_leave_takes_them_along() {
    let mut daemon = Daemon::start().await;
    ok(&daemon, &["network", "create", "--ipv6", "front"]).await;
    ok(&daemon, &["network", "create", "--internal", "back"]).await;
    run(
        &daemon,
        "web",
        &["--network", "front", "--network", "back", "-p", "8080:80"],
    )
    .await;
    run(&daemon, "db", &["--network", "back"]).await;
    // A table that is made anew is the last of the list.
    let tables = async |daemon: &Daemon| {
        let list = daemon.lab.output("nft", &["list", "ruleset"]).await.unwrap();
        let mut tables: Vec<_> = list.split("table ").map(str::to_owned).collect();
        tables.sort();
        tables.concat()
    };
    let seen = async |daemon: &Daemon| {
        let inspected = ok(daemon, &["network", "inspect", "front", "back"]).await;
        let own = [
            own_address(daemon, "web", "eth0").await,
            own_address(daemon, "web", "eth1").await,
        ];
        (inspected, own, tables(daemon).await)
    };
    let before = seen(&daemon).await;
    assert!(
        before.2.contains("wharf-wb-front") && before.2.contains("wharf-wb-back"),
        "{}",
        before.2
    );
    daemon.crash().await;
    assert_eq!(seen(&daemon).await, before, "after SIGKILL");
    daemon.end(Signal::SIGTERM).await.unwrap();
    assert_eq!(tables(&daemon).await, before.2, "without a daemon");
    daemon.start_again().await.unwrap();
    assert_eq!(seen(&daemon).await, before, "after SIGTERM");
    let (code, findings) = crate::fsck::fsck(&daemon, &[]).await;
    assert_eq!((code, findings.as_slice()), (0, &[][..]));

    // Somebody flushes everything; the names of the rules' chains come back with all that is in them.
    daemon.lab.output("nft", &["flush", "ruleset"]).await.unwrap();
    eventually("the rules are made anew", async || tables(&daemon).await == before.2).await;
    assert_eq!(
        daemon
            .lab
            .output("busybox", &["nc", "-w", "2", "127.0.0.1", "8080"])
            .await
            .unwrap(),
        "web\n"
    );

    // An address that was given back is not somebody else's at once, and that of a living pod never.
    remove(&daemon, &["db"], &[]).await;
    run(&daemon, "db2", &["--network", "back"]).await;
    let own = own_address(&daemon, "db2", "eth0").await;
    assert_ne!(own, before.1[1]);

    remove(&daemon, &["web"], &["front"]).await;
    assert!(!tables(&daemon).await.contains("wharf-wb-front"));
    remove(&daemon, &["db2"], &["back"]).await;
    daemon.end(Signal::SIGTERM).await.unwrap();
    let left = tables(&daemon).await;
    assert!(!left.contains("wharf"), "the last network has gone: {left}");
    let devices = daemon.lab.links().await.unwrap();
    assert_eq!(devices, ["lo"]);
    daemon.start_again().await.unwrap();
    assert_eq!(ok(&daemon, &["network", "ls", "-q"]).await, "default\n");
    daemon.finish().await;
}

#[tokio::test]
async fn names_are_found_through_every_restart_of_the_daemon() {
    let mut daemon = Daemon::start().await;
    ok(&daemon, &["network", "create", "front"]).await;
    run(&daemon, "web", &["--network", "front", "--network-alias", "www"]).await;
    let web = own_address(&daemon, "web", "eth0").await;
    let web = web.trim().split('/').next().unwrap().to_owned();
    // One question after the other, by a client that asks again when nobody answers.
    let line = format!(
        "while [ ! -e /stop ]; do nslookup -timeout=15 -retry=30 www > /last 2>&1; \
         if grep -q 'Address.*{web}' /last; then echo found; else echo LOST; cat /last; fi; done > /seen; \
         echo done >> /seen; sleep 1000"
    );
    let (image, logs) = (daemon.busybox().await, daemon.logs.to_string_lossy().into_owned());
    let client = [
        "run",
        "-d",
        "--log-dir",
        &logs,
        "--name",
        "client",
        "--network",
        "front",
    ];
    ok(&daemon, &[&client[..], &[&image, "sh", "-c", &line]].concat()).await;
    let seen = async |daemon: &Daemon| sh(daemon, "client", "cat /seen").await;
    let found = async |daemon: &Daemon, more: usize| {
        let before = seen(daemon).await.matches("found").count();
        eventually("names are found", async || {
            seen(daemon).await.matches("found").count() >= before + more
        })
        .await;
    };
    found(&daemon, 5).await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        daemon.end(signal).await.unwrap();
        daemon.start_again().await.unwrap();
        found(&daemon, 5).await;
    }
    sh(&daemon, "client", "touch /stop").await;
    eventually("the last question is answered", async || {
        seen(&daemon).await.contains("done")
    })
    .await;
    let seen = seen(&daemon).await;
    println!("{} names found over three restarts", seen.matches("found").count());
    assert!(!seen.contains("LOST"), "{seen}");
    remove(&daemon, &["web", "client"], &["front"]).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_damaged_definition_costs_its_own_network_and_fsck_sets_it_aside() {
    let mut daemon = Daemon::start().await;
    for name in ["good", "bad"] {
        ok(&daemon, &["network", "create", name]).await;
    }
    daemon.end(Signal::SIGTERM).await.unwrap();
    let file = daemon.state_dir.join("networks/bad");
    std::fs::write(&file, [0xff; 7]).unwrap();
    daemon.start_again().await.unwrap();
    assert_eq!(ok(&daemon, &["network", "ls", "-q"]).await, "default\ngood\n");
    let (code, findings) = crate::fsck::fsck(&daemon, &[]).await;
    assert_eq!((code, findings.len()), (2, 1), "{findings:?}");
    assert_eq!(
        (&findings[0]["kind"], &findings[0]["object"]),
        (&"network".into(), &"bad".into())
    );
    let (code, _) = crate::fsck::fsck(&daemon, &["--repair"]).await;
    assert_eq!(code, 1);
    assert!(!file.exists());
    ok(&daemon, &["network", "create", "bad"]).await;
    remove(&daemon, &[], &["good", "bad"]).await;
    daemon.finish().await;
}

#[tokio::test]
async fn resolv_conf_is_the_nodes_at_the_time_of_the_start_or_what_is_asked_for() {
    let daemon = Daemon::start().await;
    // The lab's own, in the lab's mounts only.
    let file = daemon.dir().join("resolv.conf");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write("search old.example\nnameserver 192.0.2.1\noptions timeout:1\n");
    daemon
        .lab
        .output("mount", &["--bind", &file.to_string_lossy(), "/etc/resolv.conf"])
        .await
        .unwrap();
    let started = async |name: &str, dns: Option<wharf_proto::cri::DnsConfig>| {
        let mut config = daemon.pod(name);
        config.dns_config = dns;
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = wharf_e2e::container("main", &daemon.busybox().await, "sleep 1000");
        daemon.started(&pod, &config, &main).await
    };
    let seen = async |id: &str| daemon.cri.shell(id, "cat /etc/resolv.conf").await.unwrap();
    let early = started("early", None).await;
    let first = "search old.example\nnameserver 192.0.2.1\noptions timeout:1\n";
    assert_eq!(seen(&early).await, first);
    let empty = started("empty", Some(Default::default())).await;
    assert_eq!(seen(&empty).await, "", "asked for, and nothing in it (row D12)");

    write("nameserver 2001:db8::53\nnameserver fe80::1%eth0\n");
    let late = started("late", None).await;
    assert_eq!(seen(&late).await, "nameserver 2001:db8::53\nnameserver fe80::1%eth0\n");
    assert_eq!(seen(&early).await, first, "what runs is left alone");

    // On a named network the resolver is asked, which reads the node's file for each question.
    ok(&daemon, &["network", "create", "front"]).await;
    run(&daemon, "web", &["--network", "front"]).await;
    let gateway = "nameserver 10.122.0.1\n";
    assert_eq!(
        sh(&daemon, "web", "cat /etc/resolv.conf").await,
        format!("{gateway}options ndots:0\n")
    );
    let look_up = async || sh(&daemon, "web", "nslookup -type=a far.example").await;
    assert!(!look_up().await.contains("192.0.2.77"));
    let server = Datagrams::start(&node_netns(&daemon), at("127.0.0.1", 53), |asked| {
        // The question, marked as an answer, and one address for its name.
        let mut answer = asked.to_vec();
        answer[2] |= 0x80;
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 77]);
        answer
    });
    write("nameserver 127.0.0.1\n");
    let answer = look_up().await;
    assert!(answer.contains("192.0.2.77"), "{answer}");
    drop(server);
    remove(&daemon, &["web"], &["front"]).await;
    daemon.finish().await;
}
