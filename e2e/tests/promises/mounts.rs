//! What containers see mounted: host paths, how deep read-only goes, and who hears of later mounts.

use tonic::Code;
use wharf_e2e::{Daemon, container, cri::code, specs::mount};
use wharf_proto::cri as pb;

/// What a handler says of itself in Status.
async fn features(daemon: &Daemon, handler: &str) -> pb::RuntimeHandlerFeatures {
    let request = pb::StatusRequest { verbose: false };
    let status = daemon.cri.runtime.clone().status(request).await.unwrap().into_inner();
    let named = |found: &pb::RuntimeHandler| found.name == handler;
    let found = status.runtime_handlers.into_iter().find(named).expect(handler);
    found.features.unwrap()
}

#[tokio::test]
async fn read_only_is_recursive_on_each_handler() {
    crate::on_each_handler(async |daemon| {
        assert!(features(&daemon, "").await.recursive_read_only_mounts);
        let host = daemon.dir().join("volume");
        let below = host.join("below");
        std::fs::create_dir_all(&below).unwrap();
        let at = below.to_string_lossy().into_owned();
        daemon
            .lab
            .output("mount", &["-t", "tmpfs", "tmpfs", &at])
            .await
            .unwrap();
        let config = daemon.pod("rro");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        main.mounts = vec![mount(&host.to_string_lossy(), "/plain", true)];
        let plain = daemon.started(&pod, &config, &main).await;
        daemon.cri.shell(&plain, "touch /plain/below/x").await.unwrap();
        daemon.cri.shell(&plain, "touch /plain/x").await.unwrap_err();
        let mut sealed = main.clone();
        sealed.metadata.get_or_insert_default().name = "sealed".into();
        sealed.mounts[0].recursive_read_only = true;
        let made = daemon.started(&pod, &config, &sealed).await;
        let said = daemon.cri.shell(&made, "touch /plain/below/y").await.unwrap_err();
        assert!(said.to_string().contains("Read-only"), "{said}");
        assert!(daemon.cri.status(&made).await.unwrap().mounts[0].recursive_read_only);
        // The node's own mount stays as it is.
        std::fs::write(host.join("written"), "x").unwrap();
        daemon.cri.shell(&plain, "touch /plain/below/y").await.unwrap();
        // What can't be on any handler.
        for (name, change) in [
            ("writable", (|m| m.readonly = false) as fn(&mut pb::Mount)),
            ("heard", |m| {
                m.propagation = pb::MountPropagation::PropagationHostToContainer.into()
            }),
        ] {
            sealed.metadata.get_or_insert_default().name = name.into();
            sealed.mounts[0] = mount(&host.to_string_lossy(), "/plain", true);
            sealed.mounts[0].recursive_read_only = true;
            change(&mut sealed.mounts[0]);
            assert_eq!(
                code(daemon.cri.create(&pod, &sealed, &config).await),
                Code::InvalidArgument
            );
        }
        daemon.gone(&pod).await;
        daemon.lab.output("umount", &[&at]).await.unwrap();
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn handlers_are_asked_what_they_can_do() {
    let daemon = Daemon::start().await;
    let own = features(&daemon, "builtin").await;
    assert!(own.recursive_read_only_mounts && own.user_namespaces, "{own:?}");
    // What their programs do not know is done for them.
    for name in ["runc", "crun"] {
        let told = features(&daemon, name).await;
        assert!(
            told.recursive_read_only_mounts && told.user_namespaces,
            "{name}: {told:?}"
        );
    }
    daemon.finish().await;
}

#[tokio::test]
async fn files_links_and_later_mounts_reach_the_container_and_private_ones_are_refused() {
    crate::on_each_handler(async |daemon| {
        let host = daemon.dir().join("host");
        let shared = host.join("shared");
        std::fs::create_dir_all(&shared).unwrap();
        std::fs::write(host.join("message"), "").unwrap();
        std::os::unix::fs::symlink("host", daemon.dir().join("link")).unwrap();
        let at = shared.to_string_lossy().into_owned();
        daemon
            .lab
            .output("mount", &["-t", "tmpfs", "tmpfs", &at])
            .await
            .unwrap();
        daemon.lab.output("mount", &["--make-shared", &at]).await.unwrap();
        let config = daemon.pod("paths");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let path = |name: &str| daemon.dir().join(name).to_string_lossy().into_owned();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        let mut late = mount(&at, "/late", false);
        late.propagation = pb::MountPropagation::PropagationHostToContainer.into();
        main.mounts = vec![
            mount(&path("host/message"), "/dev/termination-log", false),
            mount(&path("link"), "/link", true),
            late,
        ];
        let id = daemon.started(&pod, &config, &main).await;
        let shell = async |line: &str| daemon.cri.shell(&id, line).await.unwrap();
        shell("echo why > /dev/termination-log; test -f /link/message; mkdir /late/below").await;
        assert_eq!(std::fs::read_to_string(host.join("message")).unwrap(), "why\n");
        let below = format!("{at}/below");
        daemon
            .lab
            .output("mount", &["-t", "tmpfs", "tmpfs", &below])
            .await
            .unwrap();
        assert!(shell("cat /proc/self/mountinfo").await.contains(" /late/below "));
        daemon.lab.output("umount", &[&below]).await.unwrap();
        // Nobody else's mounts arrive on a private one.
        let alone = host.join("alone").to_string_lossy().into_owned();
        std::fs::create_dir(&alone).unwrap();
        for args in [vec!["-t", "tmpfs", "tmpfs", &alone], vec!["--make-private", &alone]] {
            daemon.lab.output("mount", &args).await.unwrap();
        }
        for (propagation, says) in [(1, "neither a shared nor a slave mount"), (2, "not on a shared mount")] {
            let mut refused = main.clone();
            refused.metadata.get_or_insert_default().name = format!("refused{propagation}");
            refused.mounts = vec![mount(&alone, "/private", false)];
            refused.mounts[0].propagation = propagation;
            let error = daemon.cri.create(&pod, &refused, &config).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(
                error.message().contains(says) && error.message().contains("/private"),
                "{error:?}"
            );
        }
        daemon.gone(&pod).await;
        daemon.lab.output("umount", &[&at, &alone]).await.unwrap();
        daemon.finish().await;
    })
    .await;
}
