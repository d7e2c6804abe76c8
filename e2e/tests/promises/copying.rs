//! `wharf cp` and `wharf port-forward`.

use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use wharf_e2e::{Daemon, PATIENCE, streams};

async fn wharf(daemon: &Daemon, args: &[&str]) -> Output {
    tokio::time::timeout(PATIENCE, daemon.wharf(args).output())
        .await
        .unwrap_or_else(|_| panic!("wharf {args:?} does not end"))
        .unwrap()
}

async fn ok(daemon: &Daemon, args: &[&str]) {
    let output = wharf(daemon, args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "wharf {args:?}: {stderr}");
}

#[tokio::test]
async fn files_are_copied_both_ways() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("copy", "sleep 1000").await;
    let dir = daemon.dir().join("copy");
    let here = |name: &str| dir.join(name).to_string_lossy().into_owned();
    std::fs::create_dir_all(dir.join("tree/sub")).unwrap();
    let large: Vec<u8> = (0..3_000_000u32).flat_map(|n| (n as u8).to_le_bytes()).collect();
    std::fs::write(dir.join("tree/large"), &large).unwrap();
    std::fs::write(dir.join("tree/sub/small"), "small").unwrap();
    // What would be a whiteout in an image's layer.
    std::fs::write(dir.join("tree/.wh.large"), "plain").unwrap();
    std::os::unix::fs::symlink("small", dir.join("tree/sub/link")).unwrap();
    ok(&daemon, &["cp", &here("tree"), &format!("{id}:/tmp")]).await;
    ok(&daemon, &["cp", &here("tree/sub/small"), &format!("{id}:/renamed")]).await;
    let line =
        "cat /tmp/tree/sub/link /renamed; wc -c < /tmp/tree/large; rm /tmp/tree/sub/small; echo new > /tmp/tree/new";
    let answer = daemon.cri.exec(&id, &["sh", "-c", line], 10).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "smallsmall3000000\n");
    ok(&daemon, &["cp", &format!("{id}:/tmp/tree"), &here("back")]).await;
    assert!(std::fs::read(dir.join("back/large")).unwrap() == large);
    assert_eq!(std::fs::read_to_string(dir.join("back/new")).unwrap(), "new\n");
    assert_eq!(std::fs::read_to_string(dir.join("back/.wh.large")).unwrap(), "plain");
    assert_eq!(
        std::fs::read_link(dir.join("back/sub/link")).unwrap().to_str(),
        Some("small")
    );
    // A hostile link does not lead the copy out of its place.
    let line = "mkdir /h && ln -s /etc /h/out && echo x > /h/file";
    daemon.cri.exec(&id, &["sh", "-c", line], 10).await.unwrap();
    ok(&daemon, &["cp", &format!("{id}:/h/."), &here("contents")]).await;
    assert!(dir.join("contents/file").exists() && dir.join("contents/out").is_symlink());
    let output = wharf(&daemon, &["cp", &format!("{id}:/no/such"), &here("x")]).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("such"), "{stderr}");
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().starts_with('.')),
        "{left:?}"
    );
    std::fs::remove_dir_all(dir).unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn ports_of_a_pod_are_reached_from_here() {
    let daemon = Daemon::start().await;
    let (pod, _) = daemon.running("forward", "nc -ll -p 8080 -e cat").await;
    let mut child = daemon
        .wharf(&["port-forward", &pod, ":8080", ":9"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        let line = tokio::time::timeout(PATIENCE, lines.next_line())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        addresses.push(line.split(' ').nth(2).unwrap().to_owned());
    }
    for round in 0..3 {
        let mut stream = streams::connect(&daemon.lab, &addresses[0]).await.unwrap();
        let text = format!("round {round}");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut back = vec![0; text.len()];
        let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await;
        read.expect("nothing comes back").unwrap();
        assert_eq!(String::from_utf8_lossy(&back), text);
    }
    let mut nobody = streams::connect(&daemon.lab, &addresses[1]).await.unwrap();
    let mut back = String::new();
    let _ = tokio::time::timeout(PATIENCE, nobody.read_to_string(&mut back))
        .await
        .expect("it is not closed");
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, errors.next_line())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(line.contains("refused") && line.contains(&pod), "{line}");
    let outer = child.id().unwrap();
    let inner = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
    let inner = nix::unistd::Pid::from_raw(inner.trim().parse().unwrap());
    nix::sys::signal::kill(inner, nix::sys::signal::SIGTERM).unwrap();
    child.wait().await.unwrap();
    daemon.finish().await;
}
