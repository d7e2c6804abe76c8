//! What people, registries and images get wrong, by accident or with intent.

use std::path::Path;
use std::time::{Duration, Instant};

use tonic::Code;
use wharf_e2e::cri::code;
use wharf_e2e::fixtures::ESCAPE_TARGET;
use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, Options, container, specs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn an_unknown_image_is_not_found_and_the_error_names_it() {
    let daemon = Daemon::start().await;
    for name in ["no-such-image:latest", "busybox:no-such-tag"] {
        let error = daemon.cri.pull(&reference(name)).await.expect_err("it does not exist");
        assert_eq!(error.code(), Code::NotFound, "{error}");
        assert!(error.message().contains(name.split(':').next().unwrap()), "{error}");
    }
    let config = daemon.pod("absent");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &reference("never-pulled:latest"), "true");
    let error = daemon
        .cri
        .create(&pod, &main, &config)
        .await
        .expect_err("the image is not here");
    assert!(error.message().contains("never-pulled"), "{error}");
    daemon.finish().await;
}

#[tokio::test]
async fn an_unreachable_registry_is_an_error_that_begins_with_registry_unavailable() {
    let daemon = Daemon::start().await;
    let begin = Instant::now();
    let error = daemon
        .cri
        .pull("127.0.0.1:1/busybox:latest")
        .await
        .expect_err("nobody listens");
    assert!(error.message().starts_with("RegistryUnavailable"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(15), "took {:?}", begin.elapsed());
    daemon.finish().await;
}

#[tokio::test]
async fn references_that_are_none_are_refused_as_invalid() {
    let daemon = Daemon::start().await;
    for wrong in [
        "",
        "127.0.0.1:5000/UPPER",
        "UPPERCASE",
        "a b",
        "busybox:",
        "busybox@sha256:123",
        "../../etc/passwd",
        "-x",
    ] {
        let error = daemon.cri.pull(wrong).await.expect_err(wrong);
        assert_eq!(error.code(), Code::InvalidArgument, "{wrong:?}: {error}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_broken_image_is_refused_and_leaves_nothing_visible() {
    let daemon = Daemon::start().await;
    for name in [
        "wrong-digest",
        "truncated",
        "truncated-gzip",
        "wrong-diff-id",
        "missing-diff-ids",
    ] {
        let error = daemon.cri.pull(&reference(name)).await.expect_err(name);
        assert_ne!(error.code(), Code::NotFound, "{name}: {error}");
        assert!(error.message().len() > 10, "{name}: {error}");
        assert!(daemon.cri.image_list().await.unwrap().is_empty(), "{name} is listed");
    }
    // And what they share with honest images still works.
    let (_, id) = daemon.running("after", "sleep 1000").await;
    daemon.cri.shell(&id, "true").await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn a_hostile_layer_writes_nothing_outside_its_directory() {
    let daemon = Daemon::start().await;
    std::fs::create_dir_all(ESCAPE_TARGET).unwrap();
    for name in ["hostile-dotdot", "hostile-dotdot-inside", "hostile-hardlink"] {
        let error = daemon.cri.pull(&reference(name)).await.expect_err(name);
        assert!(!error.message().is_empty());
        assert!(daemon.cri.image_list().await.unwrap().is_empty(), "{name} is listed");
    }
    // A symbolic link that points outside is honest in itself; what is written through it must stay inside.
    for name in ["hostile-symlink", "hostile-symlink-relative", "hostile-whiteout"] {
        if let Err(error) = daemon.cri.pull(&reference(name)).await {
            assert_ne!(error.code(), Code::Unavailable, "{name}: {error}");
        }
    }
    assert!(
        !Path::new(ESCAPE_TARGET).join("pwned").exists(),
        "a layer wrote outside its directory"
    );
    assert!(daemon.state_dir.join("lock").exists() && daemon.state_dir.join("images").exists());
    daemon.finish().await;
}

#[tokio::test]
async fn a_working_directory_that_is_a_file_is_refused_at_once() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("workdir");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "true");
    main.working_dir = "/etc/passwd".into();
    let error = daemon.cri.create(&pod, &main, &config).await.expect_err("it is a file");
    assert!(
        error.message().contains("/etc/passwd") && error.message().contains("not a directory"),
        "{error}"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn an_unknown_user_is_refused_and_named() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("user");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "true");
    specs::security(&mut main).run_as_username = "nobody-knows".into();
    let error = daemon.cri.create(&pod, &main, &config).await.expect_err("no such user");
    assert!(error.message().contains("nobody-knows"), "{error}");
    specs::security(&mut main).run_as_username.clear();
    specs::security(&mut main).run_as_group = Some(pb::Int64Value { value: 7 });
    daemon
        .cri
        .create(&pod, &main, &config)
        .await
        .expect_err("a group without a user");
    assert!(
        daemon.cri.containers(None).await.unwrap().is_empty(),
        "a refused container is listed"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn an_unknown_handler_is_refused_and_named() {
    let daemon = Daemon::start().await;
    let error = daemon
        .cri
        .run_pod(&daemon.pod("handler"), "no-such-handler")
        .await
        .expect_err("no such handler");
    assert!(error.message().contains("no-such-handler"), "{error}");
    assert!(daemon.cri.pods(None).await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn a_pod_without_metadata_is_an_invalid_argument() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("x");
    config.metadata = None;
    assert_eq!(code(daemon.cri.run_pod(&config, "").await), Code::InvalidArgument);
    let request = pb::RunPodSandboxRequest::default();
    assert_eq!(
        code(daemon.cri.runtime.clone().run_pod_sandbox(request).await),
        Code::InvalidArgument
    );
    daemon.finish().await;
}

#[tokio::test]
async fn a_mount_whose_source_is_missing_is_refused_or_made() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("mount");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let missing = daemon.dir().join("missing");
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.mounts = vec![specs::mount(&missing.to_string_lossy(), "/missing", false)];
    match daemon.cri.create(&pod, &main, &config).await {
        Ok(_) => assert!(missing.is_dir()),
        Err(error) => assert!(error.message().contains("missing"), "{error}"),
    }
    daemon.finish().await;
}

#[tokio::test]
async fn sysctls_that_do_not_belong_to_a_pod_are_refused() {
    let daemon = Daemon::start().await;
    let mut config = daemon.pod("sysctl");
    config.linux.as_mut().unwrap().sysctls = specs::map("kernel.panic", "1");
    daemon
        .cri
        .run_pod(&config, "")
        .await
        .expect_err("it belongs to the node");
    config.linux.as_mut().unwrap().sysctls = specs::map("net.ipv4.ip_local_port_range", "2000 2100");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &container("main", &daemon.busybox().await, "sleep 1000"))
        .await;
    let seen = daemon
        .cri
        .shell(&id, "cat /proc/sys/net/ipv4/ip_local_port_range")
        .await
        .unwrap();
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["2000", "2100"]);
    daemon.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_an_error_and_not_an_end() {
    let daemon = Daemon::with(Options {
        state_tmpfs: Some("size=1m"),
        ..Options::default()
    })
    .await;
    let error = daemon
        .cri
        .pull(&reference("busybox:latest"))
        .await
        .expect_err("the disk is full");
    assert!(error.message().to_lowercase().contains("no space"), "{error}");
    assert!(daemon.cri.image_list().await.unwrap().is_empty());
    daemon.cri.pods(None).await.unwrap();
    daemon.finish().await;
}
