//! What a container writes, counted and limited by the project quotas of the file system below. Not every kernel has them
//! (CONFIG_QFMT_V2 for ext4, CONFIG_XFS_QUOTA); `make vm-test` has one that does, and says so by `WHARF_QUOTAS=1`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tonic::Code;
use wharf_e2e::disk::Source;
use wharf_e2e::{Daemon, Options, container, eventually};

use crate::stats::{stats, value};

/// A disk of this kind in a file below `dir`; None, with a word, where this kernel can't count on it.
fn disk(dir: &Path, kind: &'static str) -> Option<PathBuf> {
    let run = |program: &str, args: &[&str]| Command::new(program).args(args).output();
    let (file, mount) = (dir.join("image"), dir.join("mount"));
    std::fs::create_dir(&mount).unwrap();
    // The least that xfs takes.
    std::fs::File::create(&file).unwrap().set_len(320 << 20).unwrap();
    let (file, mount) = (file.to_str().unwrap(), mount.to_str().unwrap());
    // The mount and its loop device go with the namespace.
    let tried = match kind {
        "ext4" => run("mkfs.ext4", &["-q", "-F", "-O", "quota,project", file]),
        _ => run("mkfs.xfs", &["-q", file]),
    };
    let tried = tried.and_then(|made| match made.status.success() {
        true => run(
            "unshare",
            &["--mount", "mount", "-t", kind, "-o", "loop,prjquota", file, mount],
        ),
        false => Ok(made),
    });
    let failed = match tried {
        Ok(Output { status, .. }) if status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(reason) = failed {
        let required = std::env::var("WHARF_QUOTAS").is_ok_and(|value| value == "1");
        assert!(!required, "{kind}: {reason}");
        println!("skipped: no project quotas on {kind} here: {reason}");
        return None;
    }
    Some(PathBuf::from(file))
}

/// Project ids of a container's `upper` and `work`, and of its directory.
async fn projects(daemon: &Daemon, id: &str) -> [u32; 3] {
    let pods = daemon.seen(&daemon.state_dir.join("pods"));
    let of_pod = |pod: std::io::Result<std::fs::DirEntry>| Some(pod.ok()?.path().join("containers").join(id));
    let dirs: Vec<PathBuf> = std::fs::read_dir(pods).unwrap().filter_map(of_pod).collect();
    let dir = dirs
        .into_iter()
        .find(|dir| dir.exists())
        .expect("the container has a directory");
    ["upper", "work", ""].map(|name| {
        let output = Command::new("lsattr").arg("-pd").arg(dir.join(name)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let id = text.split_whitespace().next().and_then(|word| word.parse().ok());
        id.unwrap_or_else(|| panic!("{output:?}"))
    })
}

async fn layer(daemon: &Daemon, id: &str) -> (u64, u64) {
    let layer = stats(daemon, id).await.unwrap().writable_layer.unwrap();
    (value(layer.used_bytes), value(layer.inodes_used))
}

#[tokio::test]
async fn a_container_is_counted_and_limited_by_the_file_system() {
    for kind in ["ext4", "xfs"] {
        let dir = tempfile::tempdir().unwrap();
        let Some(image) = disk(dir.path(), kind) else { continue };
        counted_and_limited(kind, image).await;
    }
}

async fn counted_and_limited(kind: &'static str, image: PathBuf) {
    let mut daemon = Daemon::with(Options {
        settings: "project_ids = [41, 42]\n".into(),
        state_disk: Some(Source::Quotas(image, kind)),
        ..Options::default()
    })
    .await;
    let busybox = daemon.busybox().await;
    let line = "mkdir /many; for n in $(seq 500); do : > /many/$n; done; dd if=/dev/zero of=/file bs=1M count=3; echo done; \
                sleep 1000";
    let (_, counted) = daemon.running("counted", line).await;
    eventually("it has written", async || {
        daemon
            .cri
            .shell(&counted, "ls /file && wc -c < /file")
            .await
            .is_ok_and(|text| text.ends_with("3145728\n"))
    })
    .await;
    let (bytes, inodes) = layer(&daemon, &counted).await;
    assert!((3 << 20..4 << 20).contains(&bytes), "{kind}: {bytes}");
    assert!((502..560).contains(&inodes), "{kind}: {inodes}");
    assert_eq!(projects(&daemon, &counted).await, [41, 41, 0], "{kind}");

    // Privileged, to show that this does not help.
    let args = [
        "run",
        "-d",
        "--privileged",
        "--name",
        "limited",
        "--storage-opt",
        "size=8m",
        &busybox,
        "sleep",
        "1000",
    ];
    let limited = daemon.wharf(&args).output().await.unwrap();
    assert!(limited.status.success(), "{limited:?}");
    let limited = String::from_utf8(limited.stdout).unwrap().trim().to_owned();
    assert_eq!(projects(&daemon, &limited).await, [42, 42, 0], "{kind}");
    let shell = async |daemon: &Daemon, line: &str| {
        let output = daemon
            .wharf(&["exec", "limited", "sh", "-c", line])
            .output()
            .await
            .unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    };
    let over = shell(
        &daemon,
        "dd if=/dev/zero of=/big bs=1M count=20 2>&1; sync; wc -c < /big",
    )
    .await;
    assert!(
        over.contains("quota exceeded") || over.contains("No space left"),
        "{kind}: {over}"
    );
    let written: u64 = over.split_whitespace().last().unwrap().parse().unwrap();
    assert!((6 << 20..=8 << 20).contains(&written), "{kind}: {over}");
    let freed = shell(
        &daemon,
        "rm /big && dd if=/dev/zero of=/small bs=1M count=4 && echo fits",
    )
    .await;
    assert!(freed.contains("fits"), "{kind}: {freed}");

    // What is known of ids is in the file system, not in the daemon.
    daemon.crash().await;
    assert!((3 << 20..4 << 20).contains(&layer(&daemon, &counted).await.0), "{kind}");
    let config = daemon.pod("third");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let third = container("main", &busybox, "sleep 1000");
    let refused = daemon.cri.create(&pod, &third, &config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{kind}: {refused}");
    assert!(refused.message().contains("from 41 to 42"), "{kind}: {refused}");
    let removed = daemon.wharf(&["rm", "-f", "limited"]).output().await.unwrap();
    assert!(removed.status.success(), "{removed:?}");
    // What is still open goes a moment later.
    let again = std::cell::OnceCell::new();
    eventually("an id is free when its files are gone", async || {
        match daemon.cri.create(&pod, &third, &config).await {
            Ok(id) => again.set(id).is_ok(),
            Err(_) => false,
        }
    })
    .await;
    let third = again.into_inner().unwrap();
    daemon.cri.start(&third).await.unwrap();
    assert_eq!(
        projects(&daemon, &third).await,
        [42, 42, 0],
        "{kind}: an id is free when its files are gone"
    );
    let more = daemon
        .cri
        .shell(&third, "dd if=/dev/zero of=/big bs=1M count=20 && echo fits")
        .await
        .unwrap();
    assert!(
        more.contains("fits"),
        "{kind}: the limit of the one before holds no more: {more}"
    );
    daemon.finish().await;
}

#[tokio::test]
async fn a_limit_that_the_file_system_cant_hold_anybody_to_is_refused_by_name() {
    let daemon = Daemon::with(Options {
        state_tmpfs: Some("size=128m"),
        ..Options::default()
    })
    .await;
    let busybox = daemon.busybox().await;
    let args = ["run", "--name", "limited", "--storage-opt", "size=8m", &busybox, "true"];
    let refused = daemon.wharf(&args).output().await.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{refused:?}");
    let place = daemon.state_dir.to_string_lossy().into_owned();
    for word in ["8388608 bytes", "prjquota", &place] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let doctor = daemon.wharf(&["doctor"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains("project quotas"), "{text}");
    daemon.finish().await;
}
