//! Images: all forms in which registries offer them, and what lies in their layers.

use nix::sys::signal::Signal;
use wharf_e2e::registry::{PASSWORD, PRIVATE, USER, reference};
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri as pb;

#[tokio::test]
async fn every_form_of_manifest_gives_the_same_root_filesystem() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("forms");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    for (n, name) in [
        "busybox:latest",
        "index:latest",
        "docker:latest",
        "nested/path/to/image:v1.2",
    ]
    .iter()
    .enumerate()
    {
        let image = daemon.pull(name).await;
        let id = daemon
            .started(&pod, &config, &container(&format!("c{n}"), &image, "sleep 1000"))
            .await;
        assert_eq!(
            daemon.cri.shell(&id, "cat /etc/group | head -1").await.unwrap(),
            "root:x:0:\n",
            "{name}"
        );
    }
    daemon.finish().await;
}

#[tokio::test]
async fn whiteouts_opaque_directories_and_special_files_are_as_packed() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("layers");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.pull("layers:latest").await;
    let id = daemon
        .started(&pod, &config, &container("main", &image, "sleep 1000"))
        .await;
    for (line, expected) in [
        ("ls -A /data", "kept\nreplaced\n"),
        ("cat /data/replaced", "new"),
        ("stat -c %a /data/kept", "600\n"),
        ("ls -A /opaque", "above\n"),
        ("ls -d /gone 2>/dev/null || echo none", "none\n"),
        ("stat -c '%a' /special/suid", "4755\n"),
        ("stat -c '%u:%g %h' /special/owned", "1002:1003 2\n"),
        (
            "readlink /special/inside; readlink /special/absolute",
            "owned\n/data/kept\n",
        ),
        ("cat /special/absolute", "kept"),
        ("stat -c '%F' /special/fifo", "fifo\n"),
        ("stat -c '%t:%T' /special/null", "1:3\n"),
        ("ls /many | wc -l", "20\n"),
        ("stat -c %a /tmp", "1777\n"),
        ("stat -c %u:%g /home/app", "1002:1003\n"),
    ] {
        assert_eq!(daemon.cri.shell(&id, line).await.unwrap(), expected, "{line}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn containers_write_to_their_own_layer_only() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("own");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let image = daemon.busybox().await;
    let one = daemon
        .started(&pod, &config, &container("one", &image, "sleep 1000"))
        .await;
    let two = daemon
        .started(&pod, &config, &container("two", &image, "sleep 1000"))
        .await;
    daemon
        .cri
        .shell(&one, "rm /etc/group; echo mine > /etc/passwd; mkdir /new")
        .await
        .unwrap();
    assert_eq!(
        daemon
            .cri
            .shell(&two, "ls -d /etc/group /new 2>/dev/null; head -c 4 /etc/passwd")
            .await
            .unwrap(),
        "/etc/group\nroot"
    );
    let read_only = {
        let mut config = container("ro", &image, "sleep 1000");
        wharf_e2e::specs::security(&mut config).readonly_rootfs = true;
        config
    };
    let three = daemon.started(&pod, &config, &read_only).await;
    assert!(
        daemon.cri.shell(&three, "echo x > /x").await.is_err(),
        "a read-only root can be written"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn a_password_opens_a_private_registry_and_is_never_logged() {
    let daemon = Daemon::with(Options {
        private_registry: true,
        ..Options::default()
    })
    .await;
    let image = format!("{PRIVATE}/busybox:latest");
    let error = daemon.cri.pull(&image).await.expect_err("no password");
    assert!(!error.message().is_empty());
    let auth = |password: &str| {
        Some(pb::AuthConfig {
            username: USER.into(),
            password: password.into(),
            ..Default::default()
        })
    };
    let error = daemon
        .cri
        .pull_as(&image, auth("wrong-password-x"))
        .await
        .expect_err("a wrong password");
    assert!(!error.message().contains("wrong-password-x"), "{error}");
    daemon.cri.pull_as(&image, auth(PASSWORD)).await.unwrap();
    // base64 of "person:secret", as `auth` carries it.
    let encoded = pb::AuthConfig {
        auth: "cGVyc29uOnNlY3JldA==".into(),
        ..Default::default()
    };
    daemon.cri.remove_image(&image).await.unwrap();
    daemon.cri.pull_as(&image, Some(encoded)).await.unwrap();
    let log = daemon.log();
    for secret in [PASSWORD, "wrong-password-x", "cGVyc29uOnNlY3JldA"] {
        assert!(!log.contains(secret), "the daemon's log contains {secret}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn equal_pulls_at_once_share_the_work() {
    let daemon = Daemon::start().await;
    let image = reference("layers:latest");
    let (a, b, c) = tokio::join!(
        daemon.cri.pull(&image),
        daemon.cri.pull(&image),
        daemon.cri.pull(&image)
    );
    let id = a.unwrap();
    assert_eq!((b.unwrap(), c.unwrap()), (id.clone(), id));
    assert_eq!(daemon.cri.image_list().await.unwrap().len(), 1);
    daemon.finish().await;
}

#[tokio::test]
async fn an_image_survives_a_kill_of_the_daemon_and_a_running_container_survives_its_image() {
    let mut daemon = Daemon::start().await;
    let (_, id) = daemon.running("image", "sleep 1000").await;
    daemon.crash().await;
    let image = reference("busybox:latest");
    let found = daemon.cri.image(&image).await.unwrap().expect("it was pulled before");
    assert_eq!(daemon.cri.status(&id).await.unwrap().image_id, found.id);
    daemon.cri.remove_image(&image).await.unwrap();
    assert_eq!(
        daemon.cri.shell(&id, "cat /etc/group | head -1").await.unwrap(),
        "root:x:0:\n"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn images_outlive_any_number_of_orderly_ends() {
    let mut daemon = Daemon::start().await;
    let names = ["busybox:latest", "layers:latest"];
    for name in names {
        daemon.pull(name).await;
    }
    for round in 0..6 {
        // Something is to be swept when the daemon ends.
        daemon
            .cri
            .remove_image(&daemon.pull("volumes:latest").await)
            .await
            .unwrap();
        assert_eq!(daemon.end(Signal::SIGTERM).await.unwrap(), Some(0));
        daemon.start_again().await.unwrap();
        for name in names {
            let image = daemon.cri.image(&reference(name)).await.unwrap();
            assert!(image.is_some(), "round {round}: {name} is lost");
        }
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_pull_that_is_cut_off_by_a_kill_leaves_nothing_visible_and_works_again() {
    let mut daemon = Daemon::start().await;
    let image = reference("layers:latest");
    let cri = daemon.cri.clone();
    let wanted = image.clone();
    let pull = tokio::spawn(async move { cri.pull(&wanted).await });
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    daemon.crash().await;
    let _ = pull.await;
    let listed = daemon.cri.image_list().await.unwrap();
    assert!(listed.len() <= 1);
    daemon.cri.pull(&image).await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn removed_images_give_their_space_back() {
    let daemon = Daemon::start().await;
    let size = |dir: &std::path::Path| -> u64 {
        let output = std::process::Command::new("du").arg("-sk").arg(dir).output().unwrap();
        String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let dir = daemon.state_dir.join("images");
    let empty = size(&dir);
    let image = daemon.pull("layers:latest").await;
    assert!(size(&dir) > empty + 1000);
    daemon.cri.remove_image(&image).await.unwrap();
    wharf_e2e::eventually("the space is free again", async || size(&dir) < empty + 200).await;
    daemon.finish().await;
}

/// Kubelet asks for containers by their image's id, and shows people the name that the status tells.
#[tokio::test]
async fn a_status_names_the_image_whatever_it_was_asked_for_by() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("names");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let name = daemon.pull("busybox:latest").await;
    let image = daemon.cri.image(&name).await.unwrap().unwrap();
    for (n, asked) in [&image.id, &image.repo_digests[0], &name].iter().enumerate() {
        let main = container(&format!("c{n}"), asked, "true");
        let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
        let status = daemon.cri.status(&id).await.unwrap();
        assert_eq!(status.image.unwrap().image, name, "asked for by {asked}");
        assert_eq!(
            (status.image_id, status.image_ref),
            (image.id.clone(), image.repo_digests[0].clone())
        );
    }
    daemon.finish().await;
}
