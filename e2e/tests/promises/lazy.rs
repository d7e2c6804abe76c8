//! Containers that start before their image is complete.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use wharf_e2e::fixtures::{self, estargz, storage::digest};
use wharf_e2e::{Daemon, Options, container, eventually, logs, registry::WRITABLE, trickle::Manner};
use wharf_proto::cri::ContainerState;

/// What is served here sends a byte a second, but for manifests and parts.
pub const SLOW: &str = "127.0.0.1:5009";

/// Its configuration.
pub const ON: &str = "[pull]\nlazy = true\nlazy_timeout_secs = 4\n";

/// A daemon with images that may be used before they are complete, `lazy:latest` of `mib` MiB more in a registry of its own, and
/// the digest of its large layer.
pub async fn daemon(mib: usize) -> (Daemon, String) {
    let daemon = Daemon::with(Options {
        tables: format!("{ON}keep_partial_secs = 0\n"),
        writable_registry: true,
        ..Options::default()
    })
    .await;
    let blob = fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", mib).unwrap();
    (daemon, blob)
}

/// A registry of [`SLOW`]'s address.
pub struct Slow {
    manner: Manner,
    server: Child,
    told: Lines<BufReader<ChildStdout>>,
}

impl Slow {
    /// One that sends a byte a second.
    pub async fn start(daemon: &Daemon) -> Self {
        Self::of(daemon, Manner::Trickle).await
    }

    pub async fn of(daemon: &Daemon, manner: Manner) -> Self {
        let (server, told) = daemon.helper(&[manner.word(), SLOW, WRITABLE]).await;
        Self { manner, server, told }
    }

    /// Waits until the pull of the whole layer has begun.
    pub async fn trickles(&mut self) {
        assert_eq!(self.told.next_line().await.unwrap().as_deref(), Some("trickles"));
    }

    pub async fn end(mut self, daemon: &Daemon) {
        for (pid, line) in daemon.lab.processes() {
            if line.contains(&format!("{} {SLOW}", self.manner.word())) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.server.wait().await.unwrap();
    }
}

pub fn large() -> String {
    let sum = digest(&estargz::noise(1, estargz::LARGE.1));
    format!("{}  /{}\n", sum.trim_start_matches("sha256:"), estargz::LARGE.0)
}

pub fn fill(number: u64) -> String {
    let sum = digest(&estargz::noise(100 + number, 1 << 20));
    format!("{}  /data/fill-{number}\n", sum.trim_start_matches("sha256:"))
}

pub fn records(daemon: &Daemon, kind: &str) -> usize {
    std::fs::read_dir(daemon.state_dir.join("images").join(kind))
        .unwrap()
        .count()
}

#[tokio::test]
async fn a_container_runs_and_reads_all_right_before_its_image_is_complete() {
    let (daemon, _) = daemon(0).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    assert!(daemon.cri.image(&image).await.unwrap().is_some());
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (0, 1));

    let config = daemon.pod("lazy");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "cat /data/small; sha256sum /data/large; stat -c '%n %a %u %g %s %Y %F' /data/suid /data/empty /data/fifo /bin/sh \
                /data/link /tmp; cat /data/link; ls /data; ls -a /; test -e /data/removed || echo gone; echo new > /data/small; \
                cat /data/small; stat -c %h /bin/sh";
    let wanted = container("reads", &image, line);
    let id = daemon.started(&pod, &config, &wanted).await;
    let status = daemon.cri.exited(&id).await.unwrap();
    let text = logs::text(&logs::path(&config, &wanted), "stdout").unwrap();
    assert_eq!(status.exit_code, 0, "{text}");
    let expected = format!(
        "small\n{}/data/suid 4755 1002 1003 5 1700000000 regular file\n/data/empty 600 0 0 0 1700000000 regular empty file\n\
         /data/fifo 644 0 0 0 1700000000 fifo\n",
        large()
    );
    assert!(text.starts_with(&expected), "{text}");
    for part in [
        "/data/link 777 0 0 5 1700000000 symbolic link\n/tmp 1777 0 0",
        "\nsmall\nempty\nfifo\nlarge\nlink\nsmall\nsuid\n",
        "\ngone\nnew\n12\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("lazy-mount"), "{text}");

    // What the container holds goes with it, and with the image the pull of the rest.
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    assert_eq!(slow.told.next_line().await.unwrap().as_deref(), Some("gone"));
    eventually("nothing is left of the image", async || {
        records(&daemon, "incomplete") + records(&daemon, "tmp") + records(&daemon, "trash") == 0
    })
    .await;
    slow.end(&daemon).await;
    let devices = || {
        let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let targets = open.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|target| target.ends_with("fuse")).count()
    };
    eventually("the file systems are given up", async || devices() == 0).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_container_of_an_incomplete_image_outlives_a_killed_daemon_and_reads_on() {
    let (mut daemon, _) = daemon(4).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let config = daemon.pod("kept");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    // Begins to read what is not there while no daemon runs.
    // What would have the kernel ask while nobody answers is done before: the directory is copied up.
    let line = "touch /tmp/begun; echo begun; while test ! -e /tmp/go; do sleep 0.1; done; echo goes; sha256sum /data/large; stat -c %a /data/suid; \
                cat /data/small; sleep 1000";
    let wanted = container("reads", &image, line);
    let id = daemon.started(&pod, &config, &wanted).await;
    let path = logs::path(&config, &wanted);
    let said = |word: &str| logs::text(&path, "stdout").is_ok_and(|text| text.contains(word));
    eventually("the container runs", async || said("begun\n")).await;
    let pid = running(&daemon, "/tmp/go");
    daemon.end(Signal::SIGKILL).await.unwrap();
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    // Older kernels ask for the directory once more, and wait already there.
    let waits = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at == "request_wait_answer");
    eventually("the container goes on, or asks", async || said("goes\n") || waits()).await;
    assert!(!said(&large()), "nobody was there to answer");
    daemon.start_again().await.unwrap();
    eventually("the container has read all of it", async || said("small\n")).await;
    let text = logs::text(&path, "stdout").unwrap();
    assert_eq!(text, format!("begun\ngoes\n{}4755\nsmall\n", large()));
    let status = daemon.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);

    // Once more, in the middle of reads; and the image is shown again, for it was acknowledged.
    daemon.crash().await;
    eventually("the image is shown again", async || {
        daemon.cri.image(&image).await.unwrap().is_some()
    })
    .await;
    let sum = daemon.cri.shell(&id, "sha256sum /data/fill-3").await.unwrap();
    assert_eq!(sum, fill(3));
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

/// The process in the lab whose command line has `part`.
pub fn running(daemon: &Daemon, part: &str) -> i32 {
    let found = daemon.lab.processes().into_iter().find(|(_, line)| line.contains(part));
    found.expect("the container's process").0
}

#[tokio::test]
async fn an_image_becomes_complete_under_its_container() {
    let (mut daemon, _) = daemon(30).await;
    let image = format!("{WRITABLE}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    let config = daemon.pod("completes");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &container("first", &image, "sleep 1000"))
        .await;
    eventually("the image is complete", async || {
        (records(&daemon, "records"), records(&daemon, "incomplete")) == (1, 0)
    })
    .await;
    let sum = daemon.cri.shell(&id, "sha256sum /data/large").await.unwrap();
    assert_eq!(sum, large());
    let other = daemon
        .started(&pod, &config, &container("second", &image, "sleep 1000"))
        .await;
    assert_eq!(
        daemon.cri.shell(&other, "sha256sum /data/large").await.unwrap(),
        large()
    );
    // From disk: no registry is needed, after a restart neither.
    daemon.crash().await;
    assert!(daemon.cri.image(&image).await.unwrap().is_some());
    for container in [&id, &other] {
        let sum = daemon.cri.shell(container, "sha256sum /data/fill-29").await.unwrap();
        assert_eq!(sum, fill(29));
    }
    let fsck = daemon.wharf(&["fsck"]).output().await.unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    daemon.gone(&pod).await;
    daemon.finish().await;
}

#[tokio::test]
async fn what_is_damaged_on_the_way_is_an_error_and_never_a_wrong_byte() {
    let (daemon, blob) = daemon(2).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    // The last of the large files, at the end of the blob but for the table.
    let path = fixtures::blob(&daemon.dir().join("pushed"), &blob);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - (512 << 10);
    bytes[at] ^= 0x55;
    std::fs::write(&path, bytes).unwrap();
    let config = daemon.pod("damaged");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let id = daemon
        .started(&pod, &config, &container("main", &image, "sleep 1000"))
        .await;
    let sum = daemon.cri.shell(&id, "cat /data/small").await.unwrap();
    assert_eq!(sum, "small\n");
    let read = daemon.cri.exec(&id, &["/bin/cat", "/data/fill-1"], 60).await.unwrap();
    let error = String::from_utf8_lossy(&read.stderr);
    assert!(read.exit_code != 0 && error.contains("Input/output error"), "{error}");
    // What came before the damage is right.
    let right = estargz::noise(101, 1 << 20);
    assert!(right.starts_with(&read.stdout) && read.stdout.len() < right.len());
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("can't be read; its reader gets"));
    let line = line.unwrap_or_else(|| panic!("no word about it in {log}"));
    for word in [blob.as_str(), SLOW, "data/fill-1", "lazy"] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn without_a_table_or_without_the_setting_an_image_is_pulled_whole() {
    let (daemon, _) = daemon(0).await;
    let image = daemon.busybox().await;
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    daemon.cri.remove_image(&image).await.unwrap();
    daemon.finish().await;

    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await;
    fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", 0).unwrap();
    daemon.cri.pull(&format!("{WRITABLE}/lazy:latest")).await.unwrap();
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    daemon.finish().await;
}

/// Of a 1 GB image, beside a full pull: `make bench-lazy`.
#[tokio::test]
#[ignore = "a measurement"]
async fn time_to_the_first_log_line() {
    for lazy in [false, true] {
        let daemon = Daemon::with(Options {
            tables: format!("[pull]\nlazy = {lazy}\n"),
            writable_registry: true,
            ..Options::default()
        })
        .await;
        fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", 1000).unwrap();
        let image = format!("{WRITABLE}/lazy:latest");
        let config = daemon.pod("bench");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let wanted = container("main", &image, "echo hello; sleep 1000");
        let path = logs::path(&config, &wanted);
        let begin = Instant::now();
        daemon.cri.pull(&image).await.unwrap();
        let pulled = begin.elapsed();
        daemon.started(&pod, &config, &wanted).await;
        while !logs::text(&path, "stdout").is_ok_and(|text| text == "hello\n") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        println!(
            "lazy = {lazy}: PullImage {pulled:?}, first line after {:?}",
            begin.elapsed()
        );
        if lazy {
            let end = Instant::now() + Duration::from_secs(600);
            while records(&daemon, "records") == 0 && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            println!("complete after {:?}", begin.elapsed());
        }
        daemon.gone(&pod).await;
        daemon.cri.remove_image(&image).await.unwrap();
        daemon.finish().await;
    }
}
