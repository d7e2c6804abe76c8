//! A disk without room, in each phase of a pod's life: what needs room fails and says so, what gives room back works, and
//! when there is room again all is well without a restart.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use tonic::Code;
use wharf_e2e::cri::Answer;
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::cri::ContainerState;

#[tokio::test]
async fn a_disk_without_a_free_byte_in_each_phase() {
    life("size=24m", |dir| {
        let mut file = fs::File::create(dir.join("filler")).unwrap();
        // Page by page: the last one counts too.
        while file.write_all(&[7; 4096]).is_ok() {}
    })
    .await;
}

#[tokio::test]
async fn a_disk_without_a_free_inode_in_each_phase() {
    life("nr_inodes=2000", |dir| {
        let below = dir.join("filler");
        if fs::create_dir(&below).is_ok() {
            (0..)
                .map(|n| fs::File::create(below.join(n.to_string())))
                .take_while(Result::is_ok)
                .for_each(drop);
        }
    })
    .await;
}

/// One pod's life with the disk filled before each call, and emptied after those that need room.
async fn life(tmpfs: &'static str, fill: fn(&Path)) {
    let daemon = Daemon::with(Options {
        state_tmpfs: Some(tmpfs),
        ..Options::default()
    })
    .await;
    let image = daemon.busybox().await;
    let disk = Disk {
        dir: daemon.seen(&daemon.state_dir),
        fill,
    };
    let config = daemon.pod("full");
    let cri = &daemon.cri;

    let other = wharf_e2e::registry::reference("layers:latest");
    disk.full();
    refused("PullImage", cri.pull(&other).await);
    assert!(
        cri.image(&other).await.unwrap().is_none(),
        "an image that is not whole is listed"
    );
    disk.free();
    cri.pull(&other).await.expect("PullImage with room");
    disk.full();
    cri.remove_image(&other).await.expect("RemoveImage without room");
    assert!(cri.image(&other).await.unwrap().is_none());

    disk.full();
    refused("RunPodSandbox", cri.run_pod(&config, "").await);
    assert!(
        cri.pods(None).await.unwrap().is_empty(),
        "a pod that could not be made is listed"
    );
    disk.free();
    let pod = cri.run_pod(&config, "").await.expect("RunPodSandbox with room");

    let wish = container("main", &image, "echo begins; sleep 1000");
    disk.full();
    refused("CreateContainer", cri.create(&pod, &wish, &config).await);
    assert!(
        cri.containers(None).await.unwrap().is_empty(),
        "a container that could not be made is listed"
    );
    disk.free();
    let id = cri
        .create(&pod, &wish, &config)
        .await
        .expect("CreateContainer with room");

    disk.full();
    refused("StartContainer", cri.start(&id).await);
    disk.free();
    // A start that failed before anything ran can be tried again.
    assert_eq!(cri.status(&id).await.unwrap().state(), ContainerState::ContainerCreated);
    cri.start(&id).await.expect("StartContainer with room");

    disk.full();
    assert_eq!(cri.shell(&id, "echo still here").await.unwrap(), "still here\n");
    assert_eq!(cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    cri.stop(&id, 0).await.expect("StopContainer without room");
    let status = cri.status(&id).await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code),
        (ContainerState::ContainerExited, 137)
    );
    disk.full();
    cri.remove(&id).await.expect("RemoveContainer without room");
    disk.full();
    cri.stop_pod(&pod).await.expect("StopPodSandbox without room");
    disk.full();
    cri.remove_pod(&pod).await.expect("RemovePodSandbox without room");
    disk.free();

    let (pod, id) = daemon.running("after", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&id, "echo well").await.unwrap(), "well\n");
    daemon.gone(&pod).await;
    daemon.finish().await;
}

fn refused<T: std::fmt::Debug>(call: &str, answer: Answer<T>) {
    let status = answer.expect_err(call);
    assert!(status.message().to_lowercase().contains("no space"), "{call}: {status}");
    assert_ne!(status.code(), Code::Unavailable, "{call}: {status}");
}

struct Disk {
    dir: PathBuf,
    fill: fn(&Path),
}

impl Disk {
    fn full(&self) {
        self.free();
        (self.fill)(&self.dir);
    }

    fn free(&self) {
        let filler = self.dir.join("filler");
        let _ = fs::remove_file(&filler);
        let _ = fs::remove_dir_all(&filler);
    }
}
