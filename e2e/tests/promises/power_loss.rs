//! Power loss: what a disk has not flushed is gone. Every image whose pull was acknowledged is there and whole, and nothing
//! half done is in the way.
//!
//! `WHARF_LOSSES` says at how many moments beside the acknowledged ones the power goes; 4 by default.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use wharf_e2e::disk::{Log, Source};
use wharf_e2e::registry::reference;
use wharf_e2e::{Daemon, Options, eventually};
use wharf_proto::cri::PodSandboxState;

use crate::archives::wharf;

/// What happened to an image, and from when to when in the disk's log.
struct Event {
    image: String,
    present: bool,
    begun: u64,
    acknowledged: u64,
}

/// Whether each image must be there (or must not) after a loss at `moment`; what was under way then may be either.
fn expected(events: &[Event], moment: u64) -> BTreeMap<&str, bool> {
    let mut known: BTreeMap<&str, Option<bool>> = BTreeMap::new();
    for event in events {
        let told = known.entry(&event.image).or_insert(Some(false));
        if event.acknowledged <= moment {
            *told = Some(event.present);
        } else if event.begun <= moment {
            *told = None;
        }
    }
    known
        .into_iter()
        .filter_map(|(image, told)| Some((image, told?)))
        .collect()
}

#[tokio::test]
async fn every_acknowledged_image_outlives_a_power_loss_at_any_moment() {
    let count: u64 = std::env::var("WHARF_LOSSES").map_or(4, |count| count.parse().unwrap());
    let daemon = Daemon::with(Options {
        state_disk: Some(Source::Logged),
        ..Options::default()
    })
    .await;
    let disk = daemon.disk.as_ref().unwrap();
    let mut events = Vec::new();
    let first = disk.now().unwrap();
    for (name, present) in [
        ("busybox:latest", true),
        ("layers:latest", true),
        ("busybox:other-tag", true),
        ("docker:latest", true),
        ("layers:latest", false),
        ("layers:latest", true),
    ] {
        let (image, begun) = (reference(name), disk.now().unwrap());
        if present {
            daemon.cri.pull(&image).await.unwrap();
        } else {
            daemon.cri.remove_image(&image).await.unwrap();
        }
        let acknowledged = disk.now().unwrap();
        events.push(Event {
            image,
            present,
            begun,
            acknowledged,
        });
        // Pods are not synced: their records are lost, or half of them.
        let (pod, _) = daemon.running(&name.replace(':', "-"), "sleep 1000").await;
        if !present {
            daemon.gone(&pod).await;
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let last = disk.now().unwrap();
    let log = Log::read(&disk.log).unwrap();
    daemon.finish().await;

    let mut moments: Vec<u64> = events.iter().map(|event| event.acknowledged).collect();
    moments.extend((0..count).map(|number| first + (last - first) * (2 * number + 1) / (2 * count)));
    moments.sort_unstable();
    // Deterministic, and different for each write.
    let mut number = 1_u64;
    for (round, moment) in moments.into_iter().enumerate() {
        // Another file each time: the mount of the last one goes with its lab, which may take a moment.
        let image = dir.path().join(format!("disk-{round}"));
        let some_survive = round % 2 == 1;
        let kept = || {
            number = number
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            some_survive && number >> 63 == 1
        };
        let lost = log.lose(moment, kept, &image).unwrap();
        println!("power lost after {moment} of {last} bytes: {lost} writes are gone");
        after(&image, &expected(&events, moment)).await;
    }
}

/// Starts a daemon on what is left and looks at its images.
async fn after(disk: &Path, expected: &BTreeMap<&str, bool>) {
    let daemon = Daemon::with(Options {
        state_disk: Some(Source::Image(disk.to_owned())),
        boot_id: Some("after".into()),
        ..Options::default()
    })
    .await;
    for (image, present) in expected {
        let found = daemon.cri.image(image).await.unwrap();
        let records = daemon.seen(&daemon.state_dir).join("images/records");
        let names = std::fs::read_dir(records).into_iter().flatten().flatten();
        let names: Vec<_> = names.map(|entry| entry.file_name()).collect();
        assert_eq!(
            found.is_some(),
            *present,
            "{image}: {found:?}; images on disk: {names:?}"
        );
    }
    // Whatever is listed is whole.
    let out = daemon.dir().join("saved");
    for image in daemon.cri.image_list().await.unwrap() {
        std::fs::create_dir(&out).unwrap();
        wharf(&daemon, &["save", "-o", &out.to_string_lossy(), &image.id]).await;
        for entry in std::fs::read_dir(out.join("blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let digest = hex::encode(Sha256::digest(std::fs::read(&path).unwrap()));
            assert_eq!(
                path.file_name().unwrap().to_string_lossy(),
                digest,
                "a blob of {image:?} is damaged"
            );
        }
        std::fs::remove_dir_all(&out).unwrap();
    }
    // What was half done is gone, and the images that were lost can be had again.
    let state = daemon.seen(&daemon.state_dir);
    eventually("nothing half done is left", async || {
        ["images/tmp", "images/trash"]
            .iter()
            .all(|name| std::fs::read_dir(state.join(name)).into_iter().flatten().count() == 0)
    })
    .await;
    let pods = daemon.cri.pods(None).await.unwrap();
    assert!(
        pods.iter().all(|pod| pod.state() == PodSandboxState::SandboxNotready),
        "{pods:?}"
    );
    for pod in pods {
        daemon.gone(&pod.id).await;
    }
    daemon.pull("layers:latest").await;
    let (_, id) = daemon.running("after", "sleep 1000").await;
    assert_eq!(daemon.cri.shell(&id, "echo up").await.unwrap(), "up\n");
    daemon.finish().await;
}
