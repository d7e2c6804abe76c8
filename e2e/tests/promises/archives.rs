//! Images out of the node and back in, by way of archives, together with other tools.

use std::path::Path;
use std::process::{Output, Stdio};

use wharf_e2e::registry::{ADDRESS, WRITABLE, reference};
use wharf_e2e::{Daemon, Options, container};

pub(crate) async fn run(mut command: tokio::process::Command) -> Output {
    let output = tokio::time::timeout(wharf_e2e::PATIENCE * 4, command.output());
    output.await.expect("the command ends in time").unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs `wharf` and returns what it printed.
pub(crate) async fn wharf(daemon: &Daemon, args: &[&str]) -> String {
    let output = run(daemon.wharf(args)).await;
    assert!(output.status.success(), "wharf {args:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `wharf`, which must fail, and returns why.
pub(crate) async fn refused(daemon: &Daemon, args: &[&str]) -> String {
    let output = run(daemon.wharf(args)).await;
    assert!(!output.status.success(), "wharf {args:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs another program in the lab.
pub(crate) async fn tool(daemon: &Daemon, program: &str, args: &[&str]) -> String {
    let mut command = daemon.lab.command(program);
    command.args(args).env("HOME", daemon.dir()).stdin(Stdio::null());
    let output = run(command).await;
    assert!(output.status.success(), "{program} {args:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies with skopeo, from and to registries without TLS.
pub(crate) async fn skopeo_copy(daemon: &Daemon, from: &str, to: &str) {
    let plain = [
        "--insecure-policy",
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
    ];
    tool(daemon, "skopeo", &[&plain[..], &[from, to]].concat()).await;
}

async fn id(daemon: &Daemon, name: &str) -> Option<String> {
    daemon.cri.image(name).await.unwrap().map(|image| image.id)
}

async fn writable() -> Daemon {
    Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await
}

fn path(daemon: &Daemon, name: &str) -> String {
    daemon.dir().join(name).to_string_lossy().into_owned()
}

#[tokio::test]
async fn what_is_saved_is_loaded_as_the_same_image_from_each_form() {
    let daemon = Daemon::start().await;
    let image = daemon.pull("layers:latest").await;
    let busybox = daemon.busybox().await;
    let wanted = id(&daemon, &image).await.unwrap();
    let layout = path(&daemon, "layout");
    std::fs::create_dir(&layout).unwrap();
    let (docker, oci) = (path(&daemon, "docker.tar"), path(&daemon, "oci.tar"));
    for args in [
        &["save", "-o", &docker, &image, &busybox][..],
        &["save", "--format", "oci", "-o", &oci, &image],
        &["save", "-o", &layout, &image],
        &["save", "-o", &layout, &busybox],
    ] {
        wharf(&daemon, args).await;
    }
    let packed = path(&daemon, "docker.tar.gz");
    let gzip = format!("gzip -1 < {docker} > {packed}");
    tool(&daemon, "sh", &["-c", &gzip]).await;
    for input in [&docker, &oci, &layout, &packed] {
        daemon.cri.remove_image(&image).await.unwrap();
        let text = wharf(&daemon, &["load", "-i", input]).await;
        assert!(text.contains(&format!("Loaded image: {image}")), "{input}: {text}");
        let loaded = daemon.cri.image(&image).await.unwrap().unwrap();
        assert_eq!(loaded.id, wanted, "{input}");
        assert!(loaded.pinned, "no registry may have it: kubelet must spare it");
    }
    // Nothing of it is here, so that the layers really come out of the archive; and through stdin.
    daemon.cri.remove_image(&image).await.unwrap();
    daemon.cri.remove_image(&busybox).await.unwrap();
    wharf_e2e::eventually("the layers are gone", async || {
        std::fs::read_dir(daemon.state_dir.join("images/layers"))
            .unwrap()
            .count()
            == 0
    })
    .await;
    let mut command = daemon.wharf(&["load"]);
    command.stdin(std::fs::File::open(&docker).unwrap());
    let output = run(command).await;
    let text = said(&output);
    assert!(
        output.status.success() && text.contains(&image) && text.contains(&busybox),
        "{text}"
    );
    assert_eq!(id(&daemon, &image).await, Some(wanted.clone()));
    let config = daemon.pod("loaded");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = daemon
        .started(&pod, &config, &container("main", &image, "sleep 1000"))
        .await;
    for (line, expected) in [
        ("ls -A /data /opaque", "/data:\nkept\nreplaced\n\n/opaque:\nabove\n"),
        ("stat -c '%u:%g %h' /special/owned", "1002:1003 2\n"),
        ("stat -c '%t:%T' /special/null", "1:3\n"),
    ] {
        assert_eq!(daemon.cri.shell(&main, line).await.unwrap(), expected, "{line}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn other_tools_read_what_is_saved_and_what_they_write_is_loaded() {
    let daemon = writable().await;
    let image = daemon.pull("layers:latest").await;
    let wanted = id(&daemon, &image).await.unwrap();
    let layout = path(&daemon, "layout");
    std::fs::create_dir(&layout).unwrap();
    let (docker, oci) = (path(&daemon, "docker.tar"), path(&daemon, "oci.tar"));
    wharf(&daemon, &["save", "-o", &docker, &image]).await;
    wharf(&daemon, &["save", "--format", "oci", "-o", &oci, &image]).await;
    wharf(&daemon, &["save", "-o", &layout, &image]).await;
    let tag = "latest";
    for (n, from) in [
        format!("docker-archive:{docker}:{image}"),
        format!("oci-archive:{oci}:{tag}"),
        format!("oci:{layout}:{tag}"),
    ]
    .iter()
    .enumerate()
    {
        let seen = tool(&daemon, "skopeo", &["--insecure-policy", "inspect", "--config", from]).await;
        assert!(seen.contains("wharf-e2e"), "{from}: {seen}");
        let name = format!("{WRITABLE}/back:{n}");
        skopeo_copy(&daemon, from, &format!("docker://{name}")).await;
        daemon.cri.pull(&name).await.unwrap();
        let image_id = id(&daemon, &name).await.unwrap();
        // skopeo writes the configuration anew when it converts manifests; layers are by their content then.
        if n > 0 {
            assert_eq!(image_id, wanted, "{from}");
        }
    }
    let bundle = path(&daemon, "bundle");
    tool(
        &daemon,
        "umoci",
        &["unpack", "--image", &format!("{layout}:{tag}"), &bundle],
    )
    .await;
    assert_eq!(
        std::fs::read(Path::new(&bundle).join("rootfs/data/replaced")).unwrap(),
        b"new"
    );

    // skopeo makes no docker archive of layers that are compressed with zstd.
    let busybox = id(&daemon, &daemon.busybox().await).await.unwrap();
    for (form, file, image, wanted) in [
        ("docker-archive", "d.tar", "busybox", &busybox),
        ("oci-archive", "o.tar", "layers", &wanted),
        ("oci", "o", "layers", &wanted),
    ] {
        let name = format!("{ADDRESS}/{image}:latest");
        daemon.cri.remove_image(&name).await.unwrap();
        let file = path(&daemon, file);
        let source = format!("docker://{}", reference(image));
        skopeo_copy(&daemon, &source, &format!("{form}:{file}:{name}")).await;
        let text = wharf(&daemon, &["load", "-q", "-i", &file]).await;
        let loaded = text.trim().to_owned();
        assert!(loaded.starts_with("sha256:"), "{form}: {text}");
        assert_eq!(id(&daemon, &name).await, Some(loaded.clone()), "{form}");
        assert_eq!(loaded, *wanted, "{form}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn save_and_load_say_what_is_wrong() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let text = refused(&daemon, &["save", "-o", &path(&daemon, "x"), "absent"]).await;
    assert!(text.contains("no image \"absent\""), "{text}");
    assert!(!daemon.dir().join("x").exists());
    let noise = path(&daemon, "noise");
    std::fs::write(&noise, vec![7; 100_000]).unwrap();
    let text = refused(&daemon, &["load", "-i", &noise]).await;
    assert!(text.contains("the archive"), "{text}");
    let text = refused(&daemon, &["load", "-i", &path(&daemon, "nothing")]).await;
    assert!(text.contains("No such file"), "{text}");
    // A layer that was unpacked before recipes were kept.
    for layer in std::fs::read_dir(daemon.state_dir.join("images/layers")).unwrap() {
        std::fs::remove_file(layer.unwrap().path().join("recipe")).unwrap();
    }
    let text = refused(&daemon, &["save", "-o", &path(&daemon, "x"), &image]).await;
    assert!(text.contains("pull it again"), "{text}");
    daemon.finish().await;
}

#[tokio::test]
async fn what_is_pushed_is_the_same_image_for_everybody() {
    let daemon = writable().await;
    let image = daemon.pull("layers:latest").await;
    let docker = daemon.pull("docker:latest").await;
    let wanted = id(&daemon, &image).await.unwrap();
    let target = format!("{WRITABLE}/team/layers:v1");
    let text = wharf(&daemon, &["push", &image, &target]).await;
    assert!(text.starts_with("v1: digest: sha256:"), "{text}");
    let digest = text.split_whitespace().nth(2).unwrap().to_owned();
    let plain = ["--insecure-policy", "inspect", "--tls-verify=false"];
    let seen = tool(
        &daemon,
        "skopeo",
        &[&plain[..], &[&format!("docker://{target}")]].concat(),
    )
    .await;
    assert!(seen.contains(&digest), "{digest}: {seen}");
    // Once more, to another repository: nothing is compressed or sent again.
    let second = format!("{WRITABLE}/other/name");
    let output = run(daemon.wharf(&["push", &image, &second])).await;
    let text = said(&output);
    assert!(output.status.success() && text.contains(&digest), "{text}");
    assert!(
        text.contains("Mounted from another repository") && !text.contains("Pushed"),
        "{text}"
    );
    let output = run(daemon.wharf(&["push", &image, &second])).await;
    let text = said(&output);
    assert!(
        text.contains("Layer already exists") && !text.contains("Mounted"),
        "{text}"
    );
    // Docker's manifest stays one of Docker's.
    let third = format!("{WRITABLE}/docker:v2");
    wharf(&daemon, &["tag", &docker, &third]).await;
    assert!(wharf(&daemon, &["push", "-q", &third]).await.contains(&third));
    let raw = ["--insecure-policy", "inspect", "--raw", "--tls-verify=false"];
    let seen = tool(&daemon, "skopeo", &[&raw[..], &[&format!("docker://{third}")]].concat()).await;
    assert!(
        seen.contains("application/vnd.docker.image.rootfs.diff.tar.gzip"),
        "{seen}"
    );
    // From the registry it comes as the same image, to us and to others.
    let layout = path(&daemon, "o");
    skopeo_copy(&daemon, &format!("docker://{target}"), &format!("oci:{layout}:x")).await;
    let bundle = path(&daemon, "bundle");
    tool(
        &daemon,
        "umoci",
        &["unpack", "--image", &format!("{layout}:x"), &bundle],
    )
    .await;
    assert_eq!(
        std::fs::read(Path::new(&bundle).join("rootfs/data/kept")).unwrap(),
        b"kept"
    );
    daemon.cri.remove_image(&image).await.unwrap();
    daemon.cri.pull(&target).await.unwrap();
    let again = daemon.cri.image(&target).await.unwrap().unwrap();
    assert_eq!(again.id, wanted);
    assert_eq!(again.repo_digests, [format!("{WRITABLE}/team/layers@{digest}")]);
    // Now it came by the blobs that lie there, and so does its manifest.
    let fourth = format!("{WRITABLE}/team/layers:v2");
    let text = wharf(&daemon, &["push", &target, &fourth]).await;
    assert!(text.contains(&digest), "{text}");
    for (args, reason) in [
        (vec!["push", "absent"], "no image"),
        (vec!["push", &target, &again.repo_digests[0]], "not to a digest"),
        (vec!["push", &target, "127.0.0.1:1/x"], "RegistryUnavailable"),
        (vec!["push", &target, "127.0.0.1:5000/x"], "registry 127.0.0.1:5000"),
    ] {
        let text = refused(&daemon, &args).await;
        assert!(text.contains(reason), "{text}");
    }
    daemon.finish().await;
}

#[tokio::test]
async fn pruning_removes_what_nothing_needs_and_nothing_else() {
    let daemon = Daemon::start().await;
    let used = daemon.running("prune", "sleep 1000").await.1;
    let layers = daemon.pull("layers:latest").await;
    let docker = daemon.pull("docker:latest").await;
    let dangling = id(&daemon, &layers).await.unwrap();
    // The name goes to another image.
    wharf(&daemon, &["tag", &docker, &layers]).await;
    let text = refused(&daemon, &["image", "prune"]).await;
    assert!(text.contains("--force"), "{text}");
    let text = wharf(&daemon, &["image", "prune", "-f"]).await;
    assert!(
        text.contains(&dangling) && text.matches("Deleted").count() == 1,
        "{text}"
    );
    let other = daemon.pull("user-uid:latest").await;
    let saved = path(&daemon, "x.tar");
    wharf(&daemon, &["save", "-o", &saved, &other]).await;
    wharf(&daemon, &["image", "prune", "-a", "-f"]).await;
    assert!(id(&daemon, &other).await.is_none());
    assert!(daemon.cri.image(&daemon.busybox().await).await.unwrap().is_some());
    assert_eq!(daemon.cri.shell(&used, "echo here").await.unwrap(), "here\n");
    // What came out of a file may be nowhere else.
    wharf(&daemon, &["load", "-i", &saved]).await;
    wharf(&daemon, &["image", "prune", "-a", "-f"]).await;
    assert!(id(&daemon, &other).await.is_some());
    daemon.finish().await;
}
