//! Images of the runtimes that a node had before, taken over without a download.

use std::path::Path;

use wharf_e2e::{Daemon, container, registry::reference};

async fn wharf(daemon: &Daemon, args: &[&str]) -> (bool, String) {
    let output = daemon.wharf(args).output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What is migrated is what a pull would have brought.
async fn is_as_pulled(daemon: &Daemon, source: &[&str], names: &[(&str, String)]) {
    for (fixture, name) in names {
        let pulled = daemon.cri.image(&daemon.pull(fixture).await).await.unwrap().unwrap();
        daemon.cri.remove_image(&pulled.id).await.unwrap();
        let (good, said) = wharf(daemon, &[&["migrate"], source, &[name.as_str()]].concat()).await;
        assert!(good && said.contains(&format!("Migrated image: {name}")), "{said}");
        let migrated = daemon.cri.image(name).await.unwrap().expect("it is here");
        assert!(!migrated.pinned, "a registry has it");
        assert_eq!((&migrated.id, migrated.size), (&pulled.id, pulled.size), "{fixture}");
        assert_eq!(migrated.repo_tags, std::slice::from_ref(name));
        let digest = |image: &wharf_proto::cri::Image| {
            let digests = image.repo_digests.iter();
            let digests = digests.filter_map(|one| Some(one.split_once('@')?.1.to_owned()));
            digests.collect::<Vec<_>>()
        };
        assert_eq!(digest(&migrated), digest(&pulled), "{fixture}");
    }
    let (good, said) = wharf(daemon, &["fsck"]).await;
    assert!(good, "{said}");
}

/// A container of it does.
async fn works(daemon: &Daemon, name: &str) {
    let sandbox = daemon.pod("migrated");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let main = daemon
        .started(&pod, &sandbox, &container("main", name, "sleep 1000"))
        .await;
    assert_eq!(daemon.cri.shell(&main, "echo works").await.unwrap(), "works\n");
    daemon.gone(&pod).await;
}

#[tokio::test]
async fn images_of_cri_o_and_podman_are_taken_over() {
    let daemon = Daemon::start().await;
    let (root, run) = (daemon.dir().join("storage"), daemon.dir().join("storage-run"));
    let mut names = Vec::new();
    for fixture in ["busybox:latest", "layers:latest"] {
        let name = format!("registry.example/team/{fixture}");
        let target = format!("containers-storage:[overlay@{}+{}]{name}", text(&root), text(&run));
        let source = format!("docker://{}", reference(fixture));
        let copy = ["copy", "-q", "--src-tls-verify=false", &source, &target];
        daemon.lab.output("skopeo", &copy).await.unwrap();
        names.push((fixture, name));
    }
    let root = text(&root);
    let (good, listed) = wharf(&daemon, &["migrate", "--storage", &root, "--dry-run"]).await;
    assert!(good && names.iter().all(|(_, name)| listed.contains(name)), "{listed}");
    assert!(
        daemon.cri.image(&names[0].1).await.unwrap().is_none(),
        "a dry run takes nothing over"
    );
    is_as_pulled(&daemon, &["--storage", &root], &names).await;
    works(&daemon, &names[0].1).await;
    let (good, said) = wharf(&daemon, &["migrate", "--storage", &root, "absent"]).await;
    assert!(!good && said.contains("no image \"absent\""), "{said}");
    let (good, said) = wharf(&daemon, &["migrate", "--storage", "/nowhere"]).await;
    assert!(!good && said.contains("/nowhere"), "{said}");
    let _ = daemon.lab.output("umount", &[&format!("{root}/overlay")]).await;
    daemon.finish().await;
}

#[tokio::test]
async fn images_of_containerd_are_taken_over_while_it_runs() {
    let daemon = Daemon::start().await;
    let dir = daemon.dir().join("containerd");
    std::fs::create_dir(&dir).unwrap();
    let at = |name: &str| text(&dir.join(name));
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n\
         [grpc]\naddress = {:?}\n",
        at("root"),
        at("state"),
        at("sock")
    );
    std::fs::write(dir.join("config.toml"), config).unwrap();
    let log = std::fs::File::create(dir.join("log")).unwrap();
    let mut containerd = daemon
        .lab
        .command("containerd")
        .args(["--config", &at("config.toml")])
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    wharf_e2e::eventually("containerd listens", async || {
        std::os::unix::net::UnixStream::connect(dir.join("sock")).is_ok()
    })
    .await;
    let socket = at("sock");
    let mut names = Vec::new();
    for fixture in ["busybox:latest", "layers:latest"] {
        let name = reference(fixture);
        let pull = ["-a", &socket, "-n", "k8s.io", "content", "fetch", "--plain-http", &name];
        daemon.lab.output("ctr", &pull).await.unwrap();
        let other = format!("registry.example/team/{fixture}");
        let tag = ["-a", &socket, "-n", "k8s.io", "images", "tag", &name, &other];
        daemon.lab.output("ctr", &tag).await.unwrap();
        let untag = ["-a", &socket, "-n", "k8s.io", "images", "rm", &name];
        daemon.lab.output("ctr", &untag).await.unwrap();
        names.push((fixture, other));
    }
    let root = at("root");
    is_as_pulled(&daemon, &["--containerd", &root], &names).await;
    let (good, said) = wharf(&daemon, &["migrate", "--containerd", &root, "--namespace", "other"]).await;
    assert!(good && said.is_empty(), "{said}");
    // A blob that containerd has let go of.
    let image = daemon.cri.image(&names[1].1).await.unwrap().unwrap();
    let config = image.id.trim_start_matches("sha256:");
    std::fs::remove_file(
        Path::new(&root)
            .join("io.containerd.content.v1.content/blobs/sha256")
            .join(config),
    )
    .unwrap();
    let (good, said) = wharf(&daemon, &["migrate", "--containerd", &root, &names[1].1]).await;
    assert!(!good && said.contains("has let go of it"), "{said}");
    // What was started is its parent, which ends with it.
    let inner = daemon.lab.inner_pid(&containerd).await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(inner), nix::sys::signal::Signal::SIGKILL).unwrap();
    containerd.wait().await.unwrap();
    works(&daemon, &names[0].1).await;
    daemon.finish().await;
}
