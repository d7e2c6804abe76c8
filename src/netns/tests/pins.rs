//! Namespaces without a process.

use super::*;

#[test]
fn namespaces_are_pinned_with_host_name_sysctls_and_loopback() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let dir = node.pins("a");
        let sysctls = [
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
            ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
            ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
            ("fs.mqueue.msg_max".to_owned(), "77".to_owned()),
        ];
        let outside = std::fs::read_to_string("/proc/sys/fs/mqueue/msg_max").unwrap();
        let want = Want {
            net: true,
            ipc: true,
            uts: true,
            users: None,
        };
        networks.create_namespaces(&dir, want, "pod-a", &sysctls).await.unwrap();
        let pins = ["net", "ipc", "uts"].map(|kind| File::open(dir.join(kind)).unwrap());
        let seen = thread::spawn(move || {
            for pin in &pins {
                setns(pin, CloneFlags::empty()).unwrap();
            }
            let read = |name: &str| {
                std::fs::read_to_string(format!("/proc/sys/{name}"))
                    .unwrap()
                    .trim()
                    .to_owned()
            };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            [
                nix::unistd::gethostname().unwrap().into_string().unwrap(),
                read("net/ipv4/ip_unprivileged_port_start"),
                read("net/ipv4/ping_group_range").replace('\t', " "),
                read("kernel/shm_rmid_forced"),
                read("fs/mqueue/msg_max"),
            ]
        })
        .join()
        .unwrap();
        assert_eq!(seen, ["pod-a", "0", "0 2147483647", "1", "77"]);
        assert_eq!(std::fs::read_to_string("/proc/sys/fs/mqueue/msg_max").unwrap(), outside);
        for _ in 0..2 {
            networks.remove_namespaces(&dir).await.unwrap();
            assert!(!dir.exists());
        }
    });
}

#[test]
fn nothing_stays_pinned_after_a_sysctl_that_is_refused() {
    on_a_node(|node| async move {
        let networks = node.networks().await;
        let dir = node.pins("a");
        let want = Want {
            net: true,
            ipc: true,
            uts: true,
            users: None,
        };
        for (name, value) in [
            ("net.ipv4.no_such", "1"),
            ("vm.swappiness", "1"),
            ("net.ipv4.ip_forward", "x"),
        ] {
            let sysctls = [(name.to_owned(), value.to_owned())];
            let error = networks
                .create_namespaces(&dir, want, "h", &sysctls)
                .await
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
            assert!(!dir.exists(), "{name}");
        }
    });
}
