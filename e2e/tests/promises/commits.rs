//! Images made of containers and of archives of files.

use wharf_e2e::{Daemon, container};

use crate::archives::{refused, tool, wharf};

const CHANGES: &str = "echo new > /data/new; rm /data/kept; rm -rf /opaque; mkdir -m 711 /opaque; echo x > /opaque/x; \
                       ln /data/new /data/linked; ln -s new /data/symlink; mkfifo /data/fifo; chown 7:8 /data/new; \
                       chmod 4755 /data/new; sleep 1000";

const LOOK: &str =
    "ls -A /data /opaque; cat /data/linked; stat -c '%n %a %u:%g %h' /data/new /opaque; readlink /data/symlink";

const SEEN: &str = "/data:\nfifo\nlinked\nnew\nreplaced\nsymlink\n\n/opaque:\nx\nnew\n/data/new 4755 7:8 2\n\
                    /opaque 711 0:0 2\nnew\n";

struct Pod {
    id: String,
    config: wharf_proto::cri::PodSandboxConfig,
}

/// A running container that has changed its files.
async fn changed(daemon: &Daemon) -> (Pod, String) {
    let image = daemon.pull("layers:latest").await;
    let config = daemon.pod("changed");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon.started(&pod, &config, &container("main", &image, CHANGES)).await;
    wharf_e2e::eventually("the changes are made", async || {
        daemon.cri.shell(&id, LOOK).await.is_ok_and(|seen| seen == SEEN)
    })
    .await;
    (Pod { id: pod, config }, id)
}

/// What a container of `image` sees.
async fn look(daemon: &Daemon, pod: &Pod, name: &str, image: &str) -> String {
    let config = container(name, image, "sleep 1000");
    let id = daemon.started(&pod.id, &pod.config, &config).await;
    daemon.cri.shell(&id, LOOK).await.unwrap()
}

fn path(daemon: &Daemon, name: &str) -> String {
    daemon.dir().join(name).to_string_lossy().into_owned()
}

#[tokio::test]
async fn a_commit_is_the_containers_image_with_its_changes_while_it_runs_and_after() {
    let daemon = Daemon::start().await;
    let (pod, id) = changed(&daemon).await;
    let args = [
        "commit",
        "-a",
        "Ann",
        "-m",
        "note",
        "-c",
        "ENV A=b",
        "-c",
        "CMD [\"sh\"]",
        &id,
        "made:1",
    ];
    let made = wharf(&daemon, &args).await;
    assert_eq!(look(&daemon, &pod, "committed", "made:1").await, SEEN);
    let image = daemon.cri.image("made:1").await.unwrap().unwrap();
    assert_eq!(image.id, made.trim());
    assert!(image.pinned);
    assert_eq!(daemon.cri.shell(&id, "echo it goes on").await.unwrap(), "it goes on\n");
    let history = wharf(&daemon, &["history", "made:1"]).await;
    assert!(
        history.contains("wharf commit") && history.contains("note"),
        "{history}"
    );
    daemon.cri.stop(&id, 0).await.unwrap();
    wharf(&daemon, &["commit", "--pause=false", &id, "made:2"]).await;
    assert_eq!(look(&daemon, &pod, "again", "made:2").await, SEEN);
    // Other tools find the deletions in it.
    let layout = path(&daemon, "layout");
    std::fs::create_dir(&layout).unwrap();
    wharf(&daemon, &["save", "-o", &layout, "made:1"]).await;
    let bundle = path(&daemon, "bundle");
    tool(
        &daemon,
        "umoci",
        &["unpack", "--image", &format!("{layout}:1"), &bundle],
    )
    .await;
    let root = std::path::Path::new(&bundle).join("rootfs");
    assert!(!root.join("data/kept").exists() && !root.join("opaque/above").exists());
    assert_eq!(std::fs::read(root.join("opaque/x")).unwrap(), b"x\n");
    for (args, reason) in [
        (vec!["commit", &id, "UPPER:!"], "not valid"),
        (vec!["commit", "-c", "RUN x", &id], "RUN is not"),
        (vec!["commit", "absent"], "no container"),
    ] {
        let text = refused(&daemon, &args).await;
        assert!(text.contains(reason), "{text}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn an_export_is_imported_as_the_same_files_while_the_container_runs_and_after() {
    let daemon = Daemon::start().await;
    let (pod, id) = changed(&daemon).await;
    let (one, two) = (path(&daemon, "one.tar"), path(&daemon, "two.tar"));
    wharf(&daemon, &["export", "-o", &one, &id]).await;
    daemon.cri.stop(&id, 0).await.unwrap();
    wharf(&daemon, &["export", "-o", &two, &id]).await;
    assert!(
        std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(),
        "the end changes no file"
    );
    let listed = tool(&daemon, "tar", &["-tvf", &one]).await;
    assert!(listed.contains("crw-rw-rw-") && listed.contains("link to"), "{listed}");
    assert!(!listed.contains(" data/kept") && !listed.contains(".wh."), "{listed}");
    let raw = String::from_utf8_lossy(&std::fs::read(&one).unwrap()).into_owned();
    assert!(
        raw.contains("SCHILY.xattr.user.wharf=value"),
        "extended attributes are kept"
    );
    let import = ["import", "-c", "CMD [\"sh\"]", "-m", "from a file", &one, "imported"];
    let made = wharf(&daemon, &import).await;
    assert_eq!(look(&daemon, &pod, "imported", "imported").await, SEEN);
    let packed = path(&daemon, "one.tar.gz");
    tool(&daemon, "sh", &["-c", &format!("gzip -1 < {one} > {packed}")]).await;
    let mut command = daemon.wharf(&["import", "-", "imported:gz"]);
    command.stdin(std::fs::File::open(&packed).unwrap());
    let output = crate::archives::run(command).await;
    assert!(output.status.success() && output.stdout != made.as_bytes());
    let layers = std::fs::read_dir(daemon.state_dir.join("images/layers"))
        .unwrap()
        .count();
    wharf(&daemon, &["import", &two, "imported:two"]).await;
    let after = std::fs::read_dir(daemon.state_dir.join("images/layers"))
        .unwrap()
        .count();
    assert_eq!(layers, after, "equal files are one layer");
    for (args, reason) in [
        (vec!["import", "/nonexistent"], "No such file"),
        (vec!["import", "https://x/y.tar"], "is a URL"),
        (vec!["import", "-c", "ENV", &one], "no instruction"),
        (vec!["import", "/bin/busybox"], "tar"),
        (vec!["export", "absent"], "no container"),
    ] {
        let text = refused(&daemon, &args).await;
        assert!(text.contains(reason), "{args:?}: {text}");
    }
    daemon.finish().await;
}
