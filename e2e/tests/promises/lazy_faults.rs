//! What can go wrong for a container that runs before its image is complete, and who else wants such an image.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use wharf_e2e::fixtures::{self, estargz, storage::digest};
use wharf_e2e::{Daemon, Options, container, eventually, logs, registry::WRITABLE, trickle::Manner};
use wharf_proto::cri as pb;

use crate::lazy::{ON, SLOW, Slow, daemon, fill, large, records};

/// The fail points that are between a question of the kernel and its answer; they have no table, as they are reached by
/// no call but by whoever reads.
pub const POINTS: [&str; 2] = ["lazy.lookup", "lazy.read"];

/// A pod with a container of the incomplete `lazy:latest`.
async fn sleeper(daemon: &Daemon, name: &str) -> (String, String) {
    let config = daemon.pod(name);
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let wanted = container("main", &format!("{SLOW}/lazy:latest"), "sleep 1000");
    let id = daemon.started(&pod, &config, &wanted).await;
    (pod, id)
}

/// Version of the kernel.
fn kernel() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = text.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The daemon's own process waits for its own file system in no case: killed between the kernel's question and its answer it is gone at
/// once, and so is its lock; the next one answers.
#[tokio::test]
async fn a_daemon_killed_between_a_question_and_its_answer_is_gone_and_the_next_one_answers() {
    let (mut daemon, _) = daemon(2).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let config = daemon.pod("asked");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let wanted = container("main", &image, "touch /tmp/up; sleep 1000");
    // While its root is mounted, and while the daemon looks who its user is.
    for point in ["lazy.lookup", "lazy.read"] {
        daemon.arm(point, "kill").unwrap();
        let answer = daemon.cri.create(&pod, &wanted, &config).await;
        answer.expect_err("its daemon was killed");
        let begun = Instant::now();
        daemon.start_after_end().await.unwrap();
        assert!(daemon.reached(point));
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "{point}: {:?}",
            begun.elapsed()
        );
        eventually("the image is shown again", async || {
            daemon.cri.image(&image).await.unwrap().is_some()
        })
        .await;
    }
    let id = daemon.started(&pod, &config, &wanted).await;
    // While the container reads: it waits for the next daemon, and reads right.
    eventually("the container runs", async || {
        let mut processes = daemon.lab.processes().into_iter();
        processes.any(|(pid, line)| {
            line.contains("sleep 1000") && std::fs::exists(format!("/proc/{pid}/root/tmp/up")).unwrap_or(false)
        })
    })
    .await;
    daemon.arm("lazy.read", "kill").unwrap();
    let answer = daemon.cri.exec(&id, &["/bin/sha256sum", "/data/fill-1"], 60).await;
    answer.expect_err("its daemon was killed");
    daemon.start_after_end().await.unwrap();
    assert_eq!(daemon.cri.shell(&id, "sha256sum /data/fill-1").await.unwrap(), fill(1));
    eventually("who asked has got its answer and gone", async || {
        let processes = daemon.lab.processes();
        !processes.iter().any(|(_, line)| line.starts_with("/bin/sha256sum"))
    })
    .await;
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

/// As a container that an older daemon has started, which kept no journal of what the kernel has asked.
#[tokio::test]
async fn a_container_whose_daemon_kept_no_journal_reads_on_with_the_next_one() {
    let (mut daemon, _) = daemon(2).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let (pod, id) = sleeper(&daemon, "old").await;
    daemon.end(Signal::SIGKILL).await.unwrap();
    let journals = std::fs::read_dir(daemon.run_dir.join("lazy")).unwrap();
    let removed: Vec<_> = journals
        .flatten()
        .map(|file| std::fs::remove_file(file.path()).unwrap())
        .collect();
    assert_eq!(removed.len(), 1);
    daemon.start_again().await.unwrap();
    eventually("the image is shown again", async || {
        daemon.cri.image(&image).await.unwrap().is_some()
    })
    .await;
    // Such daemons started containers so from Linux 6.9 on only, where the kernel can ask again.
    if kernel() >= (6, 9) {
        assert_eq!(daemon.cri.shell(&id, "sha256sum /data/large").await.unwrap(), large());
        assert!(
            daemon
                .log()
                .contains("what was asked and not answered is asked for again")
        );
    } else {
        assert!(daemon.log().contains("the kernel can't ask again"));
    }
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_registry_that_goes_away_is_an_error_in_time_and_all_comes_when_it_is_back() {
    let (daemon, blob) = daemon(2).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let (pod, id) = sleeper(&daemon, "cut").await;
    assert_eq!(daemon.cri.shell(&id, "cat /data/small").await.unwrap(), "small\n");
    slow.end(&daemon).await;
    let begun = Instant::now();
    let read = daemon.cri.exec(&id, &["/bin/cat", "/data/fill-1"], 60).await.unwrap();
    let (taken, error) = (begun.elapsed(), String::from_utf8_lossy(&read.stderr).into_owned());
    assert!(read.exit_code != 0 && error.contains("Input/output error"), "{error}");
    assert!(
        taken >= Duration::from_secs(3) && taken < Duration::from_secs(15),
        "{taken:?}"
    );
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("can't be read; its reader gets"));
    let line = line.unwrap_or_else(|| panic!("no word about it in {log}"));
    for word in [blob.as_str(), SLOW, "data/fill-1", "RegistryUnavailable"] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    // What has been read is here, and who waits for nothing is not held up.
    assert_eq!(daemon.cri.shell(&id, "cat /data/small").await.unwrap(), "small\n");
    daemon.cri.stop(&id, 0).await.unwrap();
    daemon.cri.remove(&id).await.unwrap();
    daemon.gone(&pod).await;

    // It is back, and as fast as others: the same image becomes complete without being asked for.
    let back = Slow::of(&daemon, Manner::Forward).await;
    let end = Instant::now() + Duration::from_secs(90);
    while records(&daemon, "records") == 0 {
        assert!(Instant::now() < end, "the rest does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (pod, id) = sleeper(&daemon, "back").await;
    assert_eq!(daemon.cri.shell(&id, "sha256sum /data/fill-1").await.unwrap(), fill(1));
    daemon.gone(&pod).await;
    back.end(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn a_registry_without_ranges_is_pulled_from_as_ever() {
    let (daemon, _) = daemon(2).await;
    let slow = Slow::of(&daemon, Manner::Rangeless).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    assert!(daemon.log().contains("a layer is pulled before it is used"));
    let (pod, id) = sleeper(&daemon, "whole").await;
    assert_eq!(daemon.cri.shell(&id, "sha256sum /data/large").await.unwrap(), large());
    daemon.gone(&pod).await;
    slow.end(&daemon).await;
    daemon.finish().await;
}

/// A kernel without FUSE, or a node that hides the device.
#[tokio::test]
async fn without_fuse_images_are_pulled_whole_at_once_and_the_daemon_says_so() {
    let mut daemon = Daemon::with(Options {
        writable_registry: true,
        tables: ON.into(),
        ..Options::default()
    })
    .await;
    let info = daemon.wharf(&["info"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(text.contains("Lazy images     on\n"), "{text}");
    daemon.end(Signal::SIGTERM).await.unwrap();
    daemon
        .lab
        .output("mount", &["--bind", "/dev/null", "/dev/fuse"])
        .await
        .unwrap();
    daemon.start_again().await.unwrap();
    fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", 1).unwrap();
    let info = daemon.wharf(&["info"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&info.stdout).into_owned();
    assert!(
        text.contains("Lazy images     not possible: make a FUSE file system"),
        "{text}"
    );
    let log = daemon.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("images are pulled whole: this machine can't"));
    assert_eq!(lines.count(), 1, "{log}");
    daemon.cri.pull(&format!("{WRITABLE}/lazy:latest")).await.unwrap();
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    daemon.lab.output("umount", &["/dev/fuse"]).await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn zstd_chunked_is_read_before_it_is_complete_as_well() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        tables: ON.into(),
        ..Options::default()
    })
    .await;
    fixtures::make_lazy_chunked(&daemon.dir().join("pushed"), "lazy", 2).unwrap();
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (0, 1));
    let (pod, id) = sleeper(&daemon, "zstd").await;
    let line = "cat /data/small; sha256sum /data/large /data/fill-1 /data/sparse; stat -c '%a %u %g' /data/suid; cat /data/link; \
                test -e /data/removed || echo gone";
    let text = daemon.cri.shell(&id, line).await.unwrap();
    let sparse = digest(&estargz::sparse());
    let sparse = sparse.trim_start_matches("sha256:");
    let wanted = format!(
        "small\n{}{}{sparse}  /data/sparse\n4755 1002 1003\nsmall\ngone\n",
        large(),
        fill(1)
    );
    assert_eq!(text, wanted);
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    // And whole, as any other.
    let whole = format!("{WRITABLE}/lazy:latest");
    let pulled = daemon.wharf(&["pull", "--whole", &whole]).output().await.unwrap();
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    daemon.finish().await;
}

/// With the setting off, a person asks for it; whoever asks for the whole waits for it.
#[tokio::test]
async fn a_person_can_ask_for_it_and_sees_how_far_the_rest_is() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await;
    fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", 2).unwrap();
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    let pulled = daemon.wharf(&["pull", "--lazy", &image]).output().await.unwrap();
    let text = String::from_utf8_lossy(&pulled.stdout).into_owned();
    assert!(
        pulled.status.success() && text.contains("% of it is here, the rest comes"),
        "{text}"
    );
    slow.trickles().await;
    let images = daemon.wharf(&["images"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&images.stdout).into_owned();
    assert!(
        text.contains("STATE") && text.contains("lazy, ") && text.contains(" %"),
        "{text}"
    );
    let (pod, id) = sleeper(&daemon, "asked").await;
    assert_eq!(daemon.cri.shell(&id, "sha256sum /data/large").await.unwrap(), large());
    let images = daemon.wharf(&["images"]).output().await.unwrap();
    let more = String::from_utf8_lossy(&images.stdout).into_owned();
    assert_ne!(text, more, "what was read counts");
    // Whoever does not ask for it has the whole: another registry has it at once.
    slow.end(&daemon).await;
    let fast = Slow::of(&daemon, Manner::Forward).await;
    daemon.cri.pull(&image).await.unwrap();
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    let images = daemon.wharf(&["images"]).output().await.unwrap();
    let text = String::from_utf8_lossy(&images.stdout).into_owned();
    assert!(!text.contains("STATE"), "{text}");
    daemon.gone(&pod).await;
    fast.end(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn an_image_that_is_removed_or_collected_is_there_for_its_container() {
    let (daemon, _) = daemon(2).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let (pod, id) = sleeper(&daemon, "removed").await;
    let fsck = daemon.wharf(&["fsck"]).output().await.unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    daemon.cri.remove_image(&image).await.unwrap();
    let pruned = daemon
        .wharf(&["image", "prune", "--all", "--force"])
        .output()
        .await
        .unwrap();
    assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
    assert!(daemon.cri.image(&image).await.unwrap().is_none());
    assert_eq!(daemon.cri.shell(&id, "sha256sum /data/fill-1").await.unwrap(), fill(1));
    let fsck = daemon.wharf(&["fsck"]).output().await.unwrap();
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    daemon.gone(&pod).await;
    eventually("nothing is left of the image", async || {
        records(&daemon, "incomplete") + records(&daemon, "tmp") + records(&daemon, "trash") == 0
    })
    .await;
    slow.end(&daemon).await;
    daemon.finish().await;
}

#[tokio::test]
async fn who_wants_the_layers_themselves_waits_until_they_are_complete() {
    let (daemon, _) = daemon(20).await;
    let image = format!("{WRITABLE}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    assert_eq!(
        records(&daemon, "incomplete"),
        1,
        "it is complete at once: too fast for this test"
    );
    let archive = daemon.dir().join("saved.tar");
    let saved = daemon
        .wharf(&["save", "-o", &archive.to_string_lossy(), &image])
        .output()
        .await
        .unwrap();
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    assert!(std::fs::metadata(&archive).unwrap().len() > 20 << 20);
    daemon.cri.remove_image(&image).await.unwrap();
    eventually("it is gone", async || records(&daemon, "layers") == 0).await;

    daemon.cri.pull(&image).await.unwrap();
    let other = format!("{WRITABLE}/copy:latest");
    let pushed = daemon.wharf(&["tag", &image, &other]).output().await.unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let pushed = daemon.wharf(&["push", &other]).output().await.unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (1, 0));
    daemon.finish().await;
}

#[tokio::test]
async fn a_full_disk_is_an_error_for_who_reads_and_nothing_is_left() {
    let daemon = Daemon::with(Options {
        tables: format!("{ON}keep_partial_secs = 0\n"),
        writable_registry: true,
        state_tmpfs: Some("size=9m"),
        ..Options::default()
    })
    .await;
    fixtures::make_lazy(&daemon.dir().join("pushed"), "lazy", 8).unwrap();
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let (pod, id) = sleeper(&daemon, "full").await;
    let line = "for n in 0 1 2 3 4 5 6 7; do sha256sum /data/fill-$n || exit 7; done";
    let read = daemon.cri.exec(&id, &["/bin/sh", "-c", line], 120).await.unwrap();
    let error = String::from_utf8_lossy(&read.stderr);
    assert!(
        read.exit_code == 7 && error.contains("Input/output error"),
        "{} {error}",
        read.exit_code
    );
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("can't be read; its reader gets"));
    assert!(line.is_some_and(|line| line.contains("No space left")), "{log}");
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

/// From Linux 6.12 on the files are shown as the pod's users'; before, the container waits, and the daemon says why.
#[tokio::test]
async fn a_pod_with_a_user_namespace_has_its_files_on_demand_where_the_kernel_can() {
    let can = kernel() >= (6, 12);
    let (daemon, _) = daemon(2).await;
    let mut slow = Slow::of(&daemon, if can { Manner::Trickle } else { Manner::Forward }).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    if can {
        slow.trickles().await;
    }
    let range = pb::IdMapping {
        host_id: 300_000,
        container_id: 0,
        length: 65_536,
    };
    let users = pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: vec![range],
        gids: vec![range],
    };
    let mut config = daemon.pod("users");
    let context = config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    context.namespace_options.get_or_insert_default().userns_options = Some(users.clone());
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut wanted = container("main", &image, "sleep 1000");
    let context = wanted
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default();
    context.namespace_options = Some(pb::NamespaceOption {
        pid: pb::NamespaceMode::Container.into(),
        userns_options: Some(users),
        ..Default::default()
    });
    let id = daemon.started(&pod, &config, &wanted).await;
    let log = daemon.log();
    let waited = log.contains("can be mapped from Linux 6.12 on only");
    assert_eq!(waited, !can, "{log}");
    if can {
        assert_eq!((records(&daemon, "records"), records(&daemon, "incomplete")), (0, 1));
    }
    let line = "stat -c '%a %u %g' /data/suid /data/small; sha256sum /data/large; echo new > /data/small; stat -c %u /data/small";
    let text = daemon.cri.shell(&id, line).await.unwrap();
    assert_eq!(text, format!("4755 1002 1003\n640 0 0\n{}0\n", large()));
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}

/// A container reads while the daemon is killed again and again: it has the bytes in the end, and each of them.
#[tokio::test]
async fn a_reader_outlives_many_killed_daemons() {
    let (mut daemon, _) = daemon(8).await;
    let mut slow = Slow::start(&daemon).await;
    let image = format!("{SLOW}/lazy:latest");
    daemon.cri.pull(&image).await.unwrap();
    slow.trickles().await;
    let config = daemon.pod("killed");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let line = "for n in 0 1 2 3 4 5 6 7; do sha256sum /data/fill-$n; done; echo read; sleep 1000";
    let wanted = container("reads", &image, line);
    daemon.started(&pod, &config, &wanted).await;
    let path = logs::path(&config, &wanted);
    for number in 0..4 {
        let shown = format!("/data/fill-{number}\n");
        eventually("the container reads", async || {
            logs::text(&path, "stdout").is_ok_and(|text| text.contains(&shown))
        })
        .await;
        daemon.crash().await;
    }
    eventually("the container has read all", async || {
        logs::text(&path, "stdout").is_ok_and(|text| text.contains("read\n"))
    })
    .await;
    let text = logs::text(&path, "stdout").unwrap();
    let all: String = (0..8).map(fill).collect();
    assert_eq!(text, format!("{all}read\n"));
    daemon.gone(&pod).await;
    daemon.cri.remove_image(&image).await.unwrap();
    slow.end(&daemon).await;
    daemon.finish().await;
}
