//! Rules of the contract between kubelet and a runtime, by number: images, node status, and what a process finds.

use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;
use wharf_e2e::specs;
use wharf_e2e::{Daemon, container, eventually, logs};
use wharf_proto::cri as pb;

#[tokio::test]
async fn rule_24_an_image_is_visible_after_pull_and_invisible_after_remove() {
    let daemon = Daemon::start().await;
    let cri = &daemon.cri;
    let reference = wharf_e2e::registry::reference("busybox:latest");
    let other = wharf_e2e::registry::reference("busybox:other-tag");
    let id = cri.pull(&reference).await.unwrap();
    assert_eq!(cri.pull(&other).await.unwrap(), id, "one image, two tags");
    let image = cri.image(&reference).await.unwrap().expect("it was just pulled");
    assert_eq!(image.id, id);
    assert_eq!(cri.image(&id).await.unwrap().expect("by id").id, id);
    let listed = cri.image_list().await.unwrap();
    assert_eq!(listed.len(), 1);
    let mut tags = listed[0].repo_tags.clone();
    tags.sort();
    assert_eq!(tags, [reference.clone(), other.clone()]);
    let (one, two) = tokio::join!(cri.remove_image(&reference), cri.remove_image(&reference));
    one.unwrap();
    two.unwrap();
    assert_eq!(cri.image(&other).await.unwrap(), None, "all tags go");
    assert!(cri.image_list().await.unwrap().is_empty());
    daemon.finish().await;
}

#[tokio::test]
async fn rule_25_size_and_user_of_an_image_are_told() {
    let daemon = Daemon::start().await;
    for (name, uid, username) in [
        // Who names no user runs as root.
        ("busybox:latest", Some(0), ""),
        ("user-uid:latest", Some(1002), ""),
        ("user-name:latest", None, "app"),
        ("user-pair:latest", Some(1002), ""),
    ] {
        let reference = daemon.pull(name).await;
        let image = daemon.cri.image(&reference).await.unwrap().unwrap();
        assert!(image.size > 0);
        assert_eq!(
            (image.uid.map(|uid| uid.value), image.username.as_str()),
            (uid, username),
            "{name}"
        );
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_26_digests_are_listed_whichever_way_an_image_came() {
    let daemon = Daemon::start().await;
    let reference = daemon.pull("busybox:latest").await;
    let image = daemon.cri.image(&reference).await.unwrap().unwrap();
    let digest = image.repo_digests.first().expect("a digest").clone();
    assert!(digest.starts_with("127.0.0.1:5000/busybox@sha256:"), "{digest}");
    daemon.cri.remove_image(&reference).await.unwrap();
    assert_eq!(daemon.cri.pull(&digest).await.unwrap(), image.id);
    let image = daemon.cri.image(&digest).await.unwrap().unwrap();
    assert_eq!((image.repo_digests, image.repo_tags), (vec![digest.clone()], vec![]));
    // One that another image takes the tag of keeps the name of its digest.
    daemon.pull("busybox:latest").await;
    let other = daemon.pull("layers:latest").await;
    let tag = daemon.wharf(&["tag", &other, &reference]).output().await.unwrap();
    assert!(tag.status.success(), "{tag:?}");
    let image = daemon.cri.image(&digest).await.unwrap().expect("it is still there");
    assert_eq!((image.repo_digests, image.repo_tags), (vec![digest], vec![]));
    daemon.finish().await;
}

#[tokio::test]
async fn rule_28_image_fs_info_names_a_file_system_and_shrinks_after_removal() {
    let daemon = Daemon::start().await;
    let used = async || {
        let answer = daemon
            .cri
            .images
            .clone()
            .image_fs_info(pb::ImageFsInfoRequest {})
            .await
            .unwrap()
            .into_inner();
        let first = answer.image_filesystems.first().expect("one file system").clone();
        assert!(first.timestamp > 0);
        // The one that images are on, and so the one that fills up.
        let mountpoint = first.fs_id.unwrap().mountpoint;
        let device = |path: &std::path::Path| std::fs::metadata(daemon.seen(path)).unwrap().dev();
        assert_eq!(
            device(std::path::Path::new(&mountpoint)),
            device(&daemon.state_dir.join("images"))
        );
        first.used_bytes.unwrap().value
    };
    let before = used().await;
    let reference = daemon.pull("busybox:latest").await;
    let with = used().await;
    assert!(with > before, "{with} with an image, {before} without");
    daemon.cri.remove_image(&reference).await.unwrap();
    eventually("the numbers drop", async || used().await < with).await;
    daemon.finish().await;
}

#[tokio::test]
async fn rule_29_status_has_both_conditions_and_the_default_handler() {
    let daemon = Daemon::start().await;
    let answer = daemon
        .cri
        .runtime
        .clone()
        .status(pb::StatusRequest { verbose: true })
        .await
        .unwrap()
        .into_inner();
    let conditions = answer.status.unwrap().conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions
            .iter()
            .find(|condition| condition.r#type == name)
            .expect(name);
        assert!(condition.status, "{condition:?}");
    }
    let mut names: Vec<_> = answer
        .runtime_handlers
        .iter()
        .map(|handler| handler.name.as_str())
        .collect();
    names.sort();
    assert_eq!(names, ["", "builtin", "crun", "runc"]);
    assert!(!answer.info.is_empty());
    let version = daemon
        .cri
        .runtime
        .clone()
        .version(pb::VersionRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (version.runtime_name.as_str(), version.runtime_api_version.as_str()),
        ("wharf", "v1")
    );
    let config = daemon
        .cri
        .runtime
        .clone()
        .runtime_config(pb::RuntimeConfigRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(config.linux.unwrap().cgroup_driver(), pb::CgroupDriver::Cgroupfs);
    daemon.finish().await;
}

#[tokio::test]
async fn rule_35_and_36_lists_and_status_do_not_wait_for_a_stop() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon
        .running("slow", "trap '' TERM; while :; do sleep 0.1; done")
        .await;
    let cri = &daemon.cri;
    let stop = {
        let (cri, id) = (cri.clone(), id.clone());
        tokio::spawn(async move { cri.stop(&id, 600).await })
    };
    eventually("the stop is under way", async || {
        let status = cri.runtime.clone().status(pb::StatusRequest { verbose: true }).await;
        status.unwrap().into_inner().info["operations"].contains("StopContainer")
    })
    .await;
    for _ in 0..20 {
        cri.containers(None).await.unwrap();
        cri.pods(None).await.unwrap();
        cri.status(&id).await.unwrap();
        cri.runtime
            .clone()
            .status(pb::StatusRequest { verbose: false })
            .await
            .unwrap();
    }
    assert!(!stop.is_finished(), "none of them waited for it");
    cri.stop(&id, 0).await.unwrap();
    stop.await.unwrap().unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn rule_39_pods_outlive_the_daemon_however_it_ends() {
    let mut daemon = Daemon::start().await;
    let (pod, id) = daemon.running("outlive", "sleep 1000").await;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let code = daemon.end(signal).await.unwrap();
        if signal != Signal::SIGKILL {
            assert_eq!(code, Some(0), "{signal}");
        }
        daemon.start_again().await.unwrap();
        assert_eq!(
            daemon.cri.status(&id).await.unwrap().state(),
            pb::ContainerState::ContainerRunning
        );
        assert_eq!(
            daemon.cri.pod_status(&pod).await.unwrap().state(),
            pb::PodSandboxState::SandboxReady
        );
    }
    daemon.finish().await;
}

#[tokio::test]
async fn rule_42_environment_of_image_then_request_with_hostname_and_path() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("envs");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.pull("entrypoint:latest").await;
    let mut main = container("main", &image, "echo $FROM_IMAGE $HOSTNAME $PATH; sleep 1000");
    let first = daemon.started(&pod, &config, &main).await;
    main.metadata.as_mut().unwrap().name = "second".into();
    main.log_path = "second.log".into();
    main.envs = vec![
        specs::env("FROM_IMAGE", "request"),
        specs::env("PATH", "/bin:/of/request"),
    ];
    let second = daemon.started(&pod, &config, &main).await;
    let seen = daemon
        .cri
        .shell(&first, "echo $FROM_IMAGE $HOSTNAME $PATH")
        .await
        .unwrap();
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(seen, format!("image envs {path}\n"));
    assert_eq!(
        daemon.cri.shell(&second, "echo $FROM_IMAGE $PATH").await.unwrap(),
        "request /bin:/of/request\n"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn rule_43_command_and_args_replace_entrypoint_and_cmd() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("command");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.pull("entrypoint:latest").await;
    let run = async |name: &str, command: &[&str], args: &[&str]| {
        let mut main = container(name, &image, "");
        main.command = command.iter().map(|word| (*word).into()).collect();
        main.args = args.iter().map(|word| (*word).into()).collect();
        let id = daemon.started(&pod, &config, &main).await;
        daemon.cri.exited(&id).await.unwrap();
        logs::text(&logs::path(&config, &main), "stdout").unwrap()
    };
    let mark = wharf_e2e::fixtures::ENTRYPOINT_MARK;
    let rest = "in /made/by/runtime with image\n";
    assert_eq!(run("neither", &[], &[]).await, format!("{mark} image-cmd {rest}"));
    assert_eq!(run("args", &[], &["mine"]).await, format!("{mark} mine {rest}"));
    assert_eq!(run("command", &["echo", "x"], &[]).await, "x\n");
    assert_eq!(run("both", &["echo"], &["a", "b"]).await, "a b\n");
    daemon.finish().await;
}

#[tokio::test]
async fn rule_44_the_working_directory_is_made() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("workdir");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.working_dir = "/a/b/c".into();
    let id = daemon.started(&pod, &config, &main).await;
    assert_eq!(
        daemon
            .cri
            .shell(&id, "pwd; stat -c '%a %u %g' /a /a/b/c")
            .await
            .unwrap(),
        "/a/b/c\n755 0 0\n755 0 0\n"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn rule_47_no_privileged_container_in_an_unprivileged_pod() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("unprivileged");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "true");
    specs::security(&mut main).privileged = true;
    daemon
        .cri
        .create(&pod, &main, &config)
        .await
        .expect_err("the pod is not privileged");
    daemon.finish().await;
}
