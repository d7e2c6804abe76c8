//! What wharf.toml decides of containers.

use std::os::unix::fs::FileTypeExt as _;

use tonic::Code;
use wharf_e2e::{Daemon, Options, container, cri::code, specs};
use wharf_proto::cri as pb;

fn with(settings: &str, tables: &str) -> Options {
    Options {
        settings: settings.into(),
        tables: tables.into(),
        ..Default::default()
    }
}

/// A busybox container that runs as this user and group.
async fn as_user(daemon: &Daemon, name: &str, uid: i64, gid: i64) -> pb::ContainerConfig {
    let mut config = container(name, &daemon.busybox().await, "exec sleep 1000");
    let security = specs::security(&mut config);
    security.run_as_user = Some(pb::Int64Value { value: uid });
    security.run_as_group = Some(pb::Int64Value { value: gid });
    config
}

/// Row C19.
#[tokio::test]
async fn who_is_unknown_to_the_image_has_a_name_and_a_home() {
    crate::on_each_handler(async |daemon| {
        let config = daemon.pod("passwd");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = as_user(&daemon, "main", 4321, 8765).await;
        main.envs.push(specs::env("HOME", "/data"));
        let id = daemon.started(&pod, &config, &main).await;
        let line = "grep :4321: /etc/passwd; grep 8765 /etc/group; head -n 1 /etc/passwd | cut -d: -f1; id -un; echo ~";
        let seen = daemon.cri.shell(&id, line).await.unwrap();
        assert_eq!(
            seen,
            "4321:x:4321:8765:container user:/data:/sbin/nologin\n8765:x:8765:\nroot\n4321\n/data\n"
        );
        // The image's own users need none, and its file stays the image's.
        let id = daemon
            .started(
                &pod,
                &config,
                &container("root", &daemon.busybox().await, "exec sleep 1000"),
            )
            .await;
        daemon
            .cri
            .shell(&id, "grep passwd /proc/mounts")
            .await
            .expect_err("no mount");
        // One entry, however cunning the home is.
        let mut cunning = as_user(&daemon, "cunning", 4321, 8765).await;
        cunning.envs.push(specs::env("HOME", "/\nevil:x:0:0::/:/bin/sh"));
        let error = daemon.cri.create(&pod, &cunning, &config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("HOME"), "{error}");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn without_passwd_entries_the_images_files_stay() {
    let daemon = Daemon::with(with("passwd_entries = false", "")).await;
    let config = daemon.pod("passwd");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &as_user(&daemon, "main", 4321, 8765).await)
        .await;
    daemon
        .cri
        .shell(&id, "grep 4321 /etc/passwd")
        .await
        .expect_err("no entry");
    daemon.finish().await;
}

/// Row C20.
#[tokio::test]
async fn devices_belong_to_the_user_of_the_security_context_if_so_configured() {
    for (setting, owner) in [("true", "4321 8765"), ("false", "0 0")] {
        let daemon = Daemon::with(with(&format!("device_ownership_from_security_context = {setting}"), "")).await;
        let config = daemon.pod("devices");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = as_user(&daemon, "main", 4321, 8765).await;
        main.devices = vec![pb::Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/zero".into(),
            permissions: "rw".into(),
        }];
        let id = daemon.started(&pod, &config, &main).await;
        let seen = daemon.cri.shell(&id, "stat -c '%u %g' /dev/mine").await.unwrap();
        assert_eq!(seen.trim_end(), owner);
        daemon.finish().await;
    }
}

/// Row C22.
#[tokio::test]
async fn a_container_may_write_to_its_cgroup_where_its_handler_allows_it() {
    let table = "[runtimes.free]\npath = '/usr/sbin/runc'\ncgroup_writable = true\n[runtimes.builtin]\ncgroup_writable = true\n";
    let daemon = Daemon::with(with("", table)).await;
    let line = "for dir in /sys/fs/cgroup/pids /sys/fs/cgroup; do [ -d $dir ] && exec mkdir $dir/below; done";
    for (handler, writable) in [("builtin", true), ("free", true), ("runc", false)] {
        let config = daemon.pod(handler);
        let pod = daemon.cri.run_pod(&config, handler).await.unwrap();
        let main = container("main", &daemon.busybox().await, "exec sleep 1000");
        let id = daemon.started(&pod, &config, &main).await;
        let made = daemon.cri.shell(&id, line).await;
        assert_eq!(made.is_ok(), writable, "{handler}: {made:?}");
        // What it made goes with it.
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
}

/// Row C14.
#[tokio::test]
async fn privileged_containers_without_the_nodes_devices() {
    // A device that the node has and a container has not by itself.
    let known = ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"];
    let entry = std::fs::read_dir("/dev").unwrap().flatten().find(|entry| {
        entry
            .file_type()
            .is_ok_and(|kind| kind.is_char_device() || kind.is_block_device())
            && !known.contains(&entry.file_name().to_string_lossy().as_ref())
    });
    let name = entry.expect("the node has a device of its own").file_name();
    let name = name.to_string_lossy();
    let runc = "path = '/usr/sbin/runc'\nprivileged_without_host_devices = true\n";
    let own = "privileged_without_host_devices = true\n";
    let all = "privileged_without_host_devices_all_devices_allowed = true\n";
    let tables = format!("[runtimes.builtin]\n{own}[runtimes.own]\n{runc}[runtimes.allowed]\n{runc}{all}");
    let daemon = Daemon::with(with("", &tables)).await;
    for (handler, has, may) in [
        ("builtin", false, false),
        ("own", false, false),
        ("allowed", false, true),
        ("runc", true, true),
    ] {
        let mut config = daemon.pod(handler);
        config
            .linux
            .get_or_insert_default()
            .security_context
            .get_or_insert_default()
            .privileged = true;
        let pod = daemon.cri.run_pod(&config, handler).await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "exec sleep 1000");
        specs::security(&mut main).privileged = true;
        let id = daemon.started(&pod, &config, &main).await;
        let seen = daemon.cri.shell(&id, &format!("test -e /dev/{name}")).await;
        assert_eq!(seen.is_ok(), has, "{handler}: {seen:?}");
        // The kernel's log can be made by whoever may make nodes, and read by whoever the cgroup lets.
        let line = "mknod /tmp-kmsg c 1 11 && head -c 0 /tmp-kmsg";
        let used = daemon.cri.shell(&id, line).await;
        assert_eq!(used.is_ok(), may, "{handler}: {used:?}");
        daemon.gone(&pod).await;
    }
    daemon.finish().await;
}

/// Row C8: nobody runs unconfined who has asked for a profile.
#[tokio::test]
async fn profiles_of_a_security_module_that_is_not_there_are_refused() {
    let enforced =
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    let daemon = Daemon::start().await;
    let config = daemon.pod("apparmor");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    for (kind, refused) in [
        (pb::security_profile::ProfileType::RuntimeDefault, !enforced),
        (pb::security_profile::ProfileType::Localhost, true),
    ] {
        // By a name of its own: the second create of the same container would be answered with the first.
        let name = format!("{kind:?}").to_lowercase();
        let mut main = container(&name, &daemon.busybox().await, "true");
        specs::security(&mut main).apparmor = Some(pb::SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: "no-such-profile".into(),
        });
        let answer = daemon.cri.create(&pod, &main, &config).await;
        match (refused, enforced) {
            (true, false) => assert_eq!(code(answer), Code::InvalidArgument, "{kind:?}"),
            (true, true) => assert_eq!(code(answer), Code::FailedPrecondition, "{kind:?}"),
            (false, _) => drop(answer.expect("the default profile is there")),
        }
    }
    daemon.finish().await;
}

/// Row C8 on a kernel that has it, as that of `make vm-test`: the default profile holds for a container and what is run in
/// it, whatever its capabilities. Elsewhere nothing is confined, which is all that can be seen.
#[tokio::test]
async fn apparmor_confines_containers_and_commands_where_the_kernel_has_it() {
    let enforced =
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    crate::on_each_handler(async |daemon| {
        let handler = daemon.handler().to_owned();
        let config = daemon.pod("confined");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let mut main = container("main", &image, "cat /proc/self/attr/current; mkdir /x; exec sleep 1000");
        specs::security(&mut main).capabilities = Some(pb::Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Default::default()
        });
        let id = daemon.started(&pod, &config, &main).await;
        let mut free = main.clone();
        free.metadata.as_mut().unwrap().name = "free".into();
        specs::security(&mut free).apparmor = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::Unconfined.into(),
            ..Default::default()
        });
        let free = daemon.started(&pod, &config, &free).await;
        let said = |id: String| {
            let daemon = &daemon;
            async move {
                let line = "tr '\\0' '\\n' < /proc/1/attr/current; cat /proc/self/attr/current";
                daemon
                    .cri
                    .shell(&id, line)
                    .await
                    .unwrap_or_else(|error| error.to_string())
            }
        };
        let mount = "mount -t tmpfs none /x && umount /x";
        if enforced {
            let lines = said(id.clone()).await;
            let confined = lines
                .lines()
                .filter(|line| line.trim() == "wharf-default (enforce)")
                .count();
            assert_eq!(confined, 2, "{handler}: init and a command: {lines:?}");
            for line in [
                mount,
                "echo x > /proc/sys/kernel/hostname",
                "echo 1 > /proc/sys/vm/drop_caches",
            ] {
                let refused = daemon.cri.shell(&id, line).await.expect_err(line).to_string();
                assert!(refused.contains("ermission denied"), "{handler}: {line}: {refused}");
            }
            // Its own processes hear its own signals.
            daemon
                .cri
                .shell(&id, "sleep 100 & kill $!; wait $!; test $? = 143")
                .await
                .unwrap();
            let lines = said(free.clone()).await;
            assert!(!lines.contains("wharf-default"), "{handler}: {lines:?}");
        }
        daemon.cri.shell(&free, mount).await.unwrap();
        daemon.cri.stop(&id, 10).await.unwrap();
        daemon.finish().await;
    })
    .await;
}
