//! Container logs under load: bursts, rotation, long lines, full disks, rates, and the journal.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wharf_e2e::logs::{Part, parts, path};
use wharf_e2e::{Daemon, Options, container, eventually};
use wharf_proto::cri as pb;

/// What the monitor has counted for a container's log.
async fn counters(daemon: &Daemon, id: &str) -> serde_json::Value {
    let request = pb::ContainerStatusRequest {
        container_id: id.into(),
        verbose: true,
    };
    let answer = daemon.cri.runtime.clone().container_status(request).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&answer.into_inner().info["info"]).unwrap();
    info["log"].clone()
}

/// The lines of one stream put together, as long as it is text.
fn joined(parts: &[Part], stream: &str) -> String {
    let mut text = Vec::new();
    for part in parts.iter().filter(|part| part.stream == stream) {
        text.extend_from_slice(&part.content);
        if part.full {
            text.push(b'\n');
        }
    }
    String::from_utf8(text).unwrap()
}

/// Fails unless `text` is the numbers from 1 to `count`, one a line.
fn counts_to(text: &str, count: usize) {
    let mut lines = text.lines();
    for number in 1..=count {
        let line = lines.next();
        assert_eq!(line, Some(number.to_string().as_str()), "line {number} of {count}");
    }
    assert_eq!(lines.next(), None);
}

#[tokio::test]
async fn a_million_lines_lose_none_while_the_log_is_rotated() {
    const LINES: usize = 1_000_000;
    let daemon = Daemon::start().await;
    let config = daemon.pod("burst");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, &format!("exec seq 1 {LINES}"));
    let begin = Instant::now();
    let id = daemon.started(&pod, &config, &main).await;
    let log = path(&config, &main);
    let mut files: Vec<PathBuf> = Vec::new();
    loop {
        let old = log.with_extension(format!("{}", files.len()));
        std::fs::rename(&log, &old).unwrap();
        files.push(old);
        if daemon.cri.reopen_log(&id).await.is_err() {
            break; // It has ended.
        }
        assert!(log.exists(), "the new file is not there on return");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = daemon.cri.exited(&id).await.unwrap();
    let taken = begin.elapsed();
    assert_eq!(status.exit_code, 0);
    files.push(log.clone());
    println!("{LINES} lines in {taken:?} through {} files", files.len());
    assert!(files.len() > 2, "the burst was over before it was rotated");
    let mut next = 1;
    for file in files.iter().filter(|file| file.exists()) {
        for part in parts(file).unwrap() {
            assert!(part.full && part.stream == "stdout");
            assert_eq!(part.content, next.to_string().into_bytes(), "in {}", file.display());
            next += 1;
        }
    }
    assert_eq!(next, LINES + 1);
    daemon.finish().await;
}

#[tokio::test]
async fn both_streams_come_whole_and_in_order_when_they_are_written_at_once() {
    const LINES: usize = 50_000;
    let daemon = Daemon::start().await;
    let config = daemon.pod("both");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    // Each waits halfway for the other, so that none is done before the other has begun. Half of it does not fit into a pipe.
    let half = LINES / 2;
    let writer = |to: &str, own: &str, other: &str| {
        format!(
            "(seq 1 {half} {to}; touch /{own}; while [ ! -e /{other} ]; do sleep 0.01; done; seq {} {LINES} {to}) & ",
            half + 1
        )
    };
    let line = format!("{}{}wait", writer("", "out", "err"), writer(">&2", "err", "out"));
    let main = container("main", &daemon.busybox().await, &line);
    let id = daemon.started(&pod, &config, &main).await;
    daemon.cri.exited(&id).await.unwrap();
    let parts = parts(&path(&config, &main)).unwrap();
    for stream in ["stdout", "stderr"] {
        counts_to(&joined(&parts, stream), LINES);
    }
    let changes = parts.windows(2).filter(|pair| pair[0].stream != pair[1].stream).count();
    assert!(changes > 1, "the streams were not written at once");
    daemon.finish().await;
}

#[tokio::test]
async fn long_lines_are_split_at_16_kib_whatever_the_bytes_and_an_unended_one_is_partial() {
    let daemon = Daemon::start().await;
    let config = daemon.pod("long");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    // The second line's parts end within a character; the third is exactly one part.
    let line = "head -c 40000 /dev/zero | tr '\\0' x; echo; \
        printf a; yes \u{e9} | head -n 20000 | tr -d '\\n'; echo; \
        head -c 16384 /dev/zero | tr '\\0' y; echo; echo; printf 'no end'";
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    daemon.cri.exited(&id).await.unwrap();
    let mut lines: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    let mut open = false;
    let read = parts(&path(&config, &main)).unwrap();
    for part in &read {
        if !open {
            lines.push(Default::default());
        }
        let line = lines.last_mut().unwrap();
        line.0.extend_from_slice(&part.content);
        line.1.push(part.content.len());
        open = !part.full;
    }
    assert!(open, "the last line has no end");
    let split = |length: usize| {
        let mut sizes = vec![16384; length / 16384];
        sizes.extend(Some(length % 16384).filter(|rest| *rest > 0));
        sizes
    };
    let expected: Vec<Vec<u8>> = vec![
        vec![b'x'; 40_000],
        format!("a{}", "\u{e9}".repeat(20_000)).into_bytes(),
        vec![b'y'; 16384],
        vec![],
        b"no end".to_vec(),
    ];
    assert_eq!(lines.len(), expected.len());
    for ((found, sizes), wanted) in lines.iter().zip(expected) {
        assert_eq!(found, &wanted);
        let sizes_wanted = if wanted.is_empty() {
            vec![0]
        } else {
            split(wanted.len())
        };
        assert_eq!(*sizes, sizes_wanted);
    }
    daemon.finish().await;
}

#[tokio::test]
async fn a_full_disk_costs_lines_and_never_holds_the_container_up() {
    let daemon = Daemon::start().await;
    let logs = daemon.logs.to_string_lossy().into_owned();
    std::fs::create_dir_all(&daemon.logs).unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", &logs];
    daemon.lab.output("mount", &mount).await.unwrap();
    let config = daemon.pod("full");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "seq 1 200000; touch /done; while :; do sleep 0.1; done";
    let main = container("main", &daemon.busybox().await, line);
    let id = daemon.started(&pod, &config, &main).await;
    eventually("the container has written all", async || {
        daemon.cri.shell(&id, "test -e /done").await.is_ok()
    })
    .await;
    // The file system is the lab's own.
    let log = path(&config, &main);
    let seen = Path::new("/proc")
        .join(daemon.lab.init.to_string())
        .join("root")
        .join(log.strip_prefix("/").unwrap());
    let read = parts(&seen).unwrap();
    assert!(read.len() > 1000 && read.len() < 200_000, "{} lines", read.len());
    let told = counters(&daemon, &id).await;
    assert!(told["lost"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(told["bytesIn"].as_u64().unwrap(), 1_288_895, "{told}");
    // Room again: what comes is logged, in whole lines.
    let line = format!(": > {}", log.display());
    daemon.lab.output("sh", &["-c", &line]).await.unwrap();
    daemon.cri.shell(&id, "echo again > /proc/1/fd/1").await.unwrap();
    eventually("the log goes on", async || {
        parts(&seen).is_ok_and(|read| joined(&read, "stdout") == "again\n")
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_container_beyond_its_rate_runs_on_and_its_log_says_what_was_left_out() {
    let daemon = Daemon::with(Options {
        settings: "log_rate_limit = '4KiB'".into(),
        ..Default::default()
    })
    .await;
    let config = daemon.pod("rate");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container(
        "main",
        &daemon.busybox().await,
        "seq 1 20000; sleep 1.5; echo end; sleep 1000",
    );
    let id = daemon.started(&pod, &config, &main).await;
    let log = path(&config, &main);
    eventually("it has written all", async || {
        parts(&log).is_ok_and(|read| joined(&read, "stdout").ends_with("\nend\n"))
    })
    .await;
    let text = joined(&parts(&log).unwrap(), "stdout");
    let (mut kept, mut left_out) = (0, 0);
    for line in text.lines() {
        match line.strip_prefix("wharf: ") {
            Some(notice) => left_out += notice.split(' ').next().unwrap().parse::<usize>().unwrap(),
            None => kept += 1,
        }
    }
    assert_eq!(kept + left_out, 20_001, "{text}");
    assert!(left_out > 10_000, "only {left_out} lines were left out");
    let told = counters(&daemon, &id).await;
    assert_eq!(told["leftOut"].as_u64(), Some(left_out as u64), "{told}");
    daemon.finish().await;
}

#[tokio::test]
async fn lines_are_copied_to_the_journal_with_their_containers_names() {
    let daemon = Daemon::with(Options {
        settings: "log_to_journald = true".into(),
        ..Default::default()
    })
    .await;
    let socket = daemon.dir().join("journal.sock");
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(wharf_e2e::PATIENCE)).unwrap();
    let line = format!(
        "mkdir -p /run/systemd/journal && ln -s {} /run/systemd/journal/socket",
        socket.display()
    );
    daemon.lab.output("sh", &["-c", &line]).await.unwrap();
    let config = daemon.pod("journal");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let main = container("main", &daemon.busybox().await, "echo hello; sleep 0.2; echo oops >&2");
    let id = daemon.started(&pod, &config, &main).await;
    daemon.cri.exited(&id).await.unwrap();
    for (priority, text) in [("6", "hello"), ("3", "oops")] {
        let mut entry = vec![0; 4096];
        let length = journal.recv(&mut entry).unwrap();
        let entry = String::from_utf8_lossy(&entry[..length]).into_owned();
        for field in [
            format!("CONTAINER_ID_FULL={id}\n"),
            format!("CONTAINER_ID={}\n", &id[..12]),
            "CONTAINER_NAME=main\n".to_owned(),
            "POD_NAME=journal\n".to_owned(),
            "NAMESPACE=e2e\n".to_owned(),
            format!("PRIORITY={priority}\n"),
        ] {
            assert!(entry.contains(&field), "{field:?} is not in {entry:?}");
        }
        let length = u8::try_from(text.len()).unwrap();
        let message = format!("MESSAGE\n{}\0\0\0\0\0\0\0{text}\n", char::from(length));
        assert!(entry.ends_with(&message), "{message:?} does not end {entry:?}");
    }
    // The file has them as well.
    assert_eq!(joined(&parts(&path(&config, &main)).unwrap(), "stderr"), "oops\n");
    daemon.finish().await;
}
