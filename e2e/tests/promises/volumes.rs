//! Volumes that come from images: images as volumes, and volumes that images declare.

use std::path::PathBuf;

use wharf_e2e::{Daemon, container, cri::image_spec, specs::mount};
use wharf_proto::cri as pb;

/// What KEP-4639 calls an image volume.
pub(crate) fn image_mount(image: &str, at: &str, sub_path: &str) -> pb::Mount {
    pb::Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(image_spec(image)),
        image_sub_path: sub_path.into(),
        ..Default::default()
    }
}

fn named(config: &pb::ContainerConfig, name: &str) -> pb::ContainerConfig {
    let mut config = config.clone();
    config.metadata.get_or_insert_default().name = name.into();
    config
}

/// The views of images that the pod has.
fn views(daemon: &Daemon, pod: &str) -> Vec<PathBuf> {
    let dir = daemon.state_dir.join("pods").join(pod).join("image-volumes");
    std::fs::read_dir(dir).map_or_else(|_| Vec::new(), |views| views.map(|view| view.unwrap().path()).collect())
}

async fn mounts_of(daemon: &Daemon, word: &str) -> usize {
    let table = daemon.lab.output("cat", &["/proc/self/mountinfo"]).await.unwrap();
    table.lines().filter(|line| line.contains(word)).count()
}

#[tokio::test]
async fn an_image_volume_shows_the_image_and_can_only_be_read() {
    crate::on_each_handler(async |daemon| {
        let image = daemon.pull("volumes:latest").await;
        let id = daemon.cri.image(&image).await.unwrap().unwrap().id;
        let sandbox = daemon.pod("views");
        let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
        let mut config = container("main", &daemon.busybox().await, "sleep 1000");
        config.mounts = vec![
            image_mount(&image, "/whole", ""),
            mount(&daemon.dir().to_string_lossy(), "/host", true),
            image_mount(&id, "/sub", "data"),
            image_mount(&image, "/by-link", "linked"),
            image_mount(&image, "/kept-in", "escape"),
        ];
        config.mounts[2].mount_options = vec!["noexec".into()];
        let main = daemon.started(&pod, &sandbox, &config).await;
        let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
        assert_eq!(
            shell("cat /whole/data/file /by-link/inside").await,
            "from the imagereal"
        );
        assert_eq!(
            shell("stat -c %u:%g:%a /sub /sub/file").await,
            "1002:1003:2750\n1002:5000:640\n"
        );
        // A link that leads out of the image ends at its root.
        assert!(shell("cat /kept-in/passwd").await.contains("app:x:1002"));
        shell("/whole/bin/true").await;
        let refused = daemon
            .cri
            .shell(&main, "touch /whole/new")
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("Read-only file system"), "{refused}");
        let table = shell("cat /proc/self/mountinfo").await;
        let line = table.lines().find(|line| line.contains(" /sub ")).unwrap();
        assert!(line.contains("noexec") && line.contains(" ro"), "{line}");
        let status = daemon.cri.status(&main).await.unwrap();
        for at in [0, 2, 3] {
            let shown = status.mounts[at].image.as_ref().unwrap();
            assert_eq!(shown.image_ref, id);
            assert_eq!(shown.image, id, "by which kubelet sees that it is used");
        }
        assert!(status.mounts[1].image.is_none());

        // One view for all containers of the pod; it goes with the last.
        let mut second = named(&config, "second");
        second.mounts.truncate(1);
        let second = daemon.started(&pod, &sandbox, &second).await;
        assert_eq!(views(&daemon, &pod).len(), 1);
        assert_eq!(mounts_of(&daemon, "image-volumes").await, 1);
        // The image may go while a volume shows it.
        daemon.cri.remove_image(&image).await.unwrap();
        assert!(daemon.cri.image(&image).await.unwrap().is_none());
        daemon.cri.remove(&main).await.unwrap();
        assert_eq!(
            daemon.cri.shell(&second, "cat /whole/data/file").await.unwrap(),
            "from the image"
        );
        daemon.cri.remove(&second).await.unwrap();
        assert_eq!(views(&daemon, &pod), Vec::<PathBuf>::new());
        assert_eq!(mounts_of(&daemon, "image-volumes").await, 0);
        daemon.gone(&pod).await;
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_an_image_volume_is_refused_with_kubelets_word_and_leaves_nothing() {
    let daemon = Daemon::start().await;
    let image = daemon.pull("volumes:latest").await;
    let sandbox = daemon.pod("refused");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let plain = container("main", &daemon.busybox().await, "sleep 1000");
    type Change = fn(&mut pb::Mount);
    let cases: [(&str, Change); 12] = [
        ("does not exist", |m| m.image_sub_path = "not-existing".into()),
        ("does not exist", |m| m.image_sub_path = "process".into()),
        ("not a directory", |m| m.image_sub_path = "plain".into()),
        ("..", |m| m.image_sub_path = "data/../../etc".into()),
        ("relative", |m| m.image_sub_path = "/data".into()),
        ("readonly", |m| m.readonly = false),
        ("host_path", |m| m.host_path = "/etc".into()),
        ("propagation", |m| m.propagation = 1),
        ("mappings", |m| {
            m.uid_mappings = vec![pb::IdMapping {
                host_id: 5,
                container_id: 0,
                length: 5,
            }]
        }),
        ("not on this node", |m| {
            m.image = Some(image_spec("127.0.0.1:5000/absent:latest"))
        }),
        ("not on this node", |m| m.image = Some(image_spec(""))),
        ("suid", |m| m.mount_options = vec!["suid".into()]),
    ];
    for (number, (says, change)) in cases.into_iter().enumerate() {
        let mut config = named(&plain, &format!("case{number}"));
        config.mounts = vec![
            image_mount(&image, "/first", ""),
            image_mount(&image, "/volume", "data"),
        ];
        change(&mut config.mounts[1]);
        let error = daemon.cri.create(&pod, &config, &sandbox).await.unwrap_err();
        assert!(error.message().contains(says), "{says}: {error:?}");
        assert!(error.message().contains("/volume"), "{error:?}");
        assert_ne!(error.code(), tonic::Code::Unimplemented);
        if says != "suid" {
            assert!(error.message().starts_with("ImageVolumeMountFailed: "), "{error:?}");
        }
        assert_eq!(views(&daemon, &pod), Vec::<PathBuf>::new(), "left by {says}");
    }
    assert_eq!(mounts_of(&daemon, "image-volumes").await, 0);
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn image_volumes_outlive_the_daemon_and_end_with_their_pod() {
    let mut daemon = Daemon::start().await;
    let image = daemon.pull("volumes:latest").await;
    let sandbox = daemon.pod("restart");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let mut config = container("main", &daemon.busybox().await, "sleep 1000");
    config.mounts = vec![image_mount(&image, "/volume", "")];
    let main = daemon.started(&pod, &sandbox, &config).await;
    daemon.crash().await;
    // Its layers are known to be in use.
    daemon.cri.remove_image(&image).await.unwrap();
    daemon.pull("volumes:latest").await;
    let second = daemon.started(&pod, &sandbox, &named(&config, "second")).await;
    assert_eq!(views(&daemon, &pod).len(), 1);
    for id in [&main, &second] {
        assert_eq!(
            daemon.cri.shell(id, "cat /volume/data/file").await.unwrap(),
            "from the image"
        );
    }
    // What a daemon that was killed in between could leave: a user that is no container, and a pod that goes anyway.
    let users = views(&daemon, &pod)[0].join("users");
    std::fs::write(users.join("nobody"), "").unwrap();
    daemon.gone(&pod).await;
    assert_eq!(mounts_of(&daemon, "image-volumes").await, 0);

    // The monitor's death ends its containers; what they had mounted goes with them.
    let sandbox = daemon.pod("monitor");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let main = daemon.started(&pod, &sandbox, &config).await;
    let monitors = daemon.lab.processes();
    let (monitor, _) = monitors
        .iter()
        .find(|(_, line)| line.contains("monitor") && line.contains(&pod[..12]))
        .unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*monitor), nix::sys::signal::Signal::SIGKILL).unwrap();
    daemon.cri.exited(&main).await.unwrap();
    wharf_e2e::eventually("the view is unmounted", async || {
        mounts_of(&daemon, "image-volumes").await == 0
    })
    .await;
    daemon.gone(&pod).await;
    daemon.finish().await;
}

const RANGE: pb::IdMapping = pb::IdMapping {
    host_id: 300_000,
    container_id: 0,
    length: 65_536,
};

#[tokio::test]
async fn files_of_both_kinds_belong_to_the_users_of_the_pod() {
    let daemon = Daemon::start().await;
    let image = daemon.pull("volumes:latest").await;
    let mut sandbox = daemon.pod("mapped");
    let users = Some(pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: vec![RANGE],
        gids: vec![RANGE],
    });
    wharf_e2e::specs::namespaces(&mut sandbox)
        .userns_options
        .clone_from(&users);
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let mut config = container("main", &image, "sleep 1000");
    let context = wharf_e2e::specs::security(&mut config);
    context.namespace_options.get_or_insert_default().userns_options = users;
    config.mounts = vec![image_mount(&image, "/view", "data")];
    config.mounts[0].uid_mappings = vec![RANGE];
    config.mounts[0].gid_mappings = vec![RANGE];
    let main = daemon.started(&pod, &sandbox, &config).await;
    let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
    assert_eq!(shell("stat -c %u:%g /view /view/file").await, "1002:1003\n1002:5000\n");
    assert_eq!(
        shell("stat -c %u:%g:%a /data /data/file").await,
        "1002:1003:2750\n1002:5000:640\n"
    );
    assert_eq!(
        shell("stat -c %u:%g /absent; touch /absent/x; stat -c %u /absent/x").await,
        "0:0\n0\n"
    );
    daemon.gone(&pod).await;
    daemon.finish().await;
}

/// The directory of the container's own volumes.
fn own_volumes(daemon: &Daemon, pod: &str, container: &str) -> PathBuf {
    let containers = daemon.state_dir.join("pods").join(pod).join("containers");
    containers.join(container).join("volumes")
}

#[tokio::test]
async fn a_declared_volume_begins_with_what_the_image_has_there() {
    crate::on_each_handler(async |daemon| {
        let image = daemon.pull("volumes:latest").await;
        let sandbox = daemon.pod("declared");
        let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
        let covered = daemon.dir().join("covered");
        std::fs::create_dir(&covered).unwrap();
        std::fs::write(covered.join("mine"), "mine").unwrap();
        let mut config = container("main", &image, "sleep 1000");
        wharf_e2e::specs::security(&mut config).readonly_rootfs = true;
        let main = daemon.started(&pod, &sandbox, &config).await;
        let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
        assert_eq!(
            shell("cat /data/file /real/inside /plain").await,
            "from the imagerealplain"
        );
        assert_eq!(shell("readlink /data/link").await, "/etc/passwd\n");
        assert_eq!(
            shell("stat -c %u:%g:%a /data /data/file").await,
            "1002:1003:2750\n1002:5000:640\n"
        );
        assert_eq!(shell("stat -c %u:%g:%a /absent").await, "0:0:755\n");
        // They can be written where the root filesystem can't, and the kernel's file systems are as ever.
        shell("echo new > /data/new; echo new > /absent/new; echo new > /linked/new; test -r /proc/self/status").await;
        assert!(daemon.cri.shell(&main, "echo new > /new").await.is_err());
        let own = own_volumes(&daemon, &pod, &main);
        assert_eq!(std::fs::read_dir(&own).unwrap().count(), 3);

        // Another container has its own; a mount takes a volume's place.
        let mut other = named(&config, "other");
        other.mounts = vec![mount(&covered.to_string_lossy(), "/data", false)];
        let other = daemon.started(&pod, &sandbox, &other).await;
        assert_eq!(
            daemon.cri.shell(&other, "ls /data /absent").await.unwrap(),
            "/absent:\n\n/data:\nmine\n"
        );
        assert_eq!(
            std::fs::read_dir(own_volumes(&daemon, &pod, &other)).unwrap().count(),
            2
        );
        daemon.cri.remove(&main).await.unwrap();
        assert!(!own.exists());
        daemon.gone(&pod).await;
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn the_sub_path_of_a_volume_without_an_image_is_in_its_host_path_already() {
    let daemon = Daemon::start().await;
    let image = daemon.pull("volumes:latest").await;
    let below = daemon.dir().join("volume/below");
    std::fs::create_dir_all(&below).unwrap();
    std::fs::write(below.join("file"), "from the node").unwrap();
    let mut main = container("main", &daemon.busybox().await, "sleep 1000");
    main.mounts = vec![
        image_mount(&image, "/of-image", "data"),
        // As kubelet sends it in a pod that has image volumes: the path whole, and its end once more.
        pb::Mount {
            container_path: "/of-node".into(),
            host_path: below.to_string_lossy().into_owned(),
            image_sub_path: "below".into(),
            ..Default::default()
        },
    ];
    let config = daemon.pod("sub-paths");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon.started(&pod, &config, &main).await;
    let seen = daemon.cri.shell(&id, "cat /of-node/file /of-image/file").await.unwrap();
    assert_eq!(seen, "from the nodefrom the image");
    daemon.finish().await;
}
