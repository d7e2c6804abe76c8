//! How images come, share, move and go.

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;

use super::super::testing::{Fixture, Lab, Reply, Seen, Server, gzip, image, noise, small, tar};

/// A registry with one image per tag.
async fn registry(images: Vec<(&'static str, Fixture)>) -> Server {
    Server::start(move |seen| find(&images, seen)).await
}

fn find(images: &[(&str, Fixture)], seen: &Seen) -> Reply {
    let tag = seen.path.rsplit('/').next().unwrap_or_default();
    if let Some((_, image)) = images.iter().find(|(name, _)| *name == tag) {
        return image.answer(seen).unwrap();
    }
    let mut by_digest = images.iter().filter(|_| tag.starts_with("sha256:"));
    by_digest
        .find_map(|(_, image)| image.answer(seen))
        .unwrap_or(Reply::status(404))
}

/// The daemon's end lets go of all that holds layers, while the janitor may still be at work.
#[tokio::test]
async fn the_rooms_end_frees_no_layer() {
    let server = registry(vec![("latest", small("app"))]).await;
    let mut lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    let (layers, before) = (lab.images.room.layers.clone(), lab.entries("layers"));
    lab.reopen().await;
    layers.sweep().unwrap();
    assert_eq!(lab.entries("layers"), before);
    assert_eq!(lab.images.list().len(), 1);
}

#[tokio::test]
async fn a_pulled_image_is_found_by_all_its_names() {
    let app = small("app");
    let server = registry(vec![("latest", app.clone())]).await;
    let lab = Lab::new("").await;
    let name = format!("{}/app", server.host);
    assert_eq!(lab.images.pull(&name, None, None).await.unwrap(), app.id);
    let image = lab.images.find(&app.id).unwrap();
    assert_eq!(image.tags, [format!("{name}:latest")]);
    assert_eq!(image.digests, [format!("{name}@{}", app.digest)]);
    assert_eq!(image.size as usize, app.blobs.values().map(Vec::len).sum::<usize>());
    assert_eq!(image.config.cmd, ["sh"]);
    let specs = [
        name.clone(),
        format!("{name}:latest"),
        format!("{name}@{}", app.digest),
        format!("{name}:v9@{}", app.digest),
        app.id[7..].to_owned(),
        app.id[7..19].to_owned(),
        app.id[..15].to_owned(),
    ];
    for spec in specs {
        assert!(
            lab.images.find(&spec).is_some_and(|found| Arc::ptr_eq(&found, &image)),
            "{spec}"
        );
    }
    for spec in [
        "",
        "sha256:",
        &app.id[7..9],
        "app",
        &format!("{name}:other"),
        &format!("other@{}", app.digest),
        "\0",
    ] {
        assert!(lab.images.find(spec).is_none(), "{spec:?}");
    }
    assert!(lab.images.fs_usage().await.unwrap().used_bytes >= 100_000);
    assert_eq!(lab.entries("tmp"), 0);
}

#[tokio::test]
async fn a_pull_by_digest_gives_no_tag() {
    let app = small("app");
    let server = registry(vec![("latest", app.clone())]).await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app:x@{}", server.host, app.digest), None, None)
        .await
        .unwrap();
    assert!(lab.images.list()[0].tags.is_empty());
    assert_eq!(lab.images.list()[0].digests.len(), 1);
}

#[tokio::test]
async fn a_tag_moves_and_the_old_image_keeps_its_digest() {
    let (old, new) = (small("old"), small("new"));
    let server = registry(vec![("1", old.clone()), ("2", new.clone())]).await;
    let moved = {
        let (old, new) = (old.clone(), new.clone());
        let now = std::sync::atomic::AtomicBool::new(false);
        Server::start(move |seen| {
            if seen.path.ends_with("/latest") {
                let first = !now.swap(true, std::sync::atomic::Ordering::SeqCst);
                return if first { &old } else { &new }.answer(seen).unwrap();
            }
            find(&[("-", old.clone()), ("-", new.clone())], seen)
        })
        .await
    };
    let mut lab = Lab::new("").await;
    let name = format!("{}/app", moved.host);
    lab.images.pull(&name, None, None).await.unwrap();
    lab.images.pull(&name, None, None).await.unwrap();
    lab.images
        .pull(&format!("{}/app:1", server.host), None, None)
        .await
        .unwrap();
    for _ in 0..2 {
        assert_eq!(lab.images.find(&name).unwrap().id, new.id);
        let left = lab.images.find(&old.id).unwrap();
        assert_eq!(left.tags, [format!("{}/app:1", server.host)]);
        assert_eq!(left.digests.len(), 2);
        assert!(lab.images.find(&format!("{name}@{}", old.digest)).is_some());
        lab.reopen().await;
    }
}

#[tokio::test]
async fn equal_pulls_share_one_transfer() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let server = registry(vec![("latest", app)]).await;
    let lab = Lab::new("").await;
    let name = format!("{}/app", server.host);
    let pulls = (0..8).map(|_| lab.images.pull(&name, None, None));
    let ids = futures_util::future::try_join_all(pulls).await.unwrap();
    assert!(ids.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(server.seen("/manifests/").len(), 1);
    assert_eq!(server.seen(&layer).len(), 1);
}

#[tokio::test]
async fn different_images_share_a_layer_under_way_and_at_rest() {
    let base = gzip(&tar(&[("base", &noise(200_000))]));
    let images = ["a", "b", "c"].map(|mark| (mark, image(&[base.clone(), gzip(&tar(&[(mark, b"x")]))], mark)));
    let layer = images[0].1.layers[0].clone();
    let server = registry(images.to_vec()).await;
    let lab = Lab::new("").await;
    let pull = |tag: &str| {
        let reference = format!("{}/app:{tag}", server.host);
        let images = lab.images.clone();
        async move { images.pull(&reference, None, None).await }
    };
    let (a, b) = tokio::join!(pull("a"), pull("b"));
    assert_ne!(a.unwrap(), b.unwrap());
    pull("c").await.unwrap();
    assert_eq!(server.seen(&layer).len(), 1);
    assert_eq!(lab.entries("layers"), 4);
}

#[tokio::test]
async fn a_shared_transfer_that_fails_for_one_is_tried_by_the_other() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let fixture = app.clone();
    let good = Server::start(move |seen| fixture.answer(seen).unwrap()).await;
    let fixture = app.clone();
    let bad = Server::start(move |seen| {
        let reply = fixture.answer(seen).unwrap();
        if seen.path.contains(&layer) {
            reply.cut(0)
        } else {
            reply
        }
    })
    .await;
    let lab = Lab::new("").await;
    let (bad, good) = (format!("{}/app", bad.host), format!("{}/app", good.host));
    let (failed, pulled) = tokio::join!(lab.images.pull(&bad, None, None), lab.images.pull(&good, None, None));
    assert_eq!(pulled.unwrap(), app.id);
    // It fails unless the other was quicker.
    assert!(failed.is_err() || lab.images.find(&bad).is_some());
}

#[tokio::test]
async fn a_pull_that_nobody_awaits_leaves_nothing() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let server = Server::start(move |seen| {
        let reply = app.answer(seen).unwrap();
        if seen.path.contains(&layer) {
            Reply {
                stall: true,
                ..reply.cut(70_000)
            }
        } else {
            reply
        }
    })
    .await;
    let lab = Lab::new("").await;
    let name = format!("{}/app", server.host);
    let pull = lab.images.pull(&name, None, None);
    assert!(tokio::time::timeout(Duration::from_millis(150), pull).await.is_err());
    lab.settled().await;
    assert_eq!((lab.entries("layers"), lab.entries("records")), (0, 0));
}

#[tokio::test]
async fn the_end_of_the_daemon_frees_no_layer_however_late_the_janitor_comes() {
    let app = small("app");
    let server = registry(vec![("1", app.clone())]).await;
    let mut lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    lab.images
        .pull(&format!("{}/app:1", server.host), None, None)
        .await
        .unwrap();
    let layers = lab.images.room.layers.clone();
    lab.reopen().await;
    layers.sweep().unwrap();
    assert_eq!(lab.entries("layers"), app.layers.len());
    assert_eq!(lab.images.list().len(), 1);
}

/// A registry whose blob `slow` stalls after some bytes, unless it is asked for a part of it.
async fn stalling(app: Fixture, slow: String, after: usize) -> Server {
    Server::start(move |seen| {
        let reply = app.answer(seen).unwrap();
        if seen.path.contains(&slow) && !seen.headers.contains_key("range") {
            Reply {
                stall: true,
                ..reply.cut(after)
            }
        } else {
            reply
        }
    })
    .await
}

#[tokio::test]
async fn a_pull_that_was_given_up_goes_on_where_it_stood() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let server = stalling(app.clone(), layer.clone(), 70_000).await;
    let lab = Lab::new("[pull]\nkeep_partial_secs = 60").await;
    let name = format!("{}/app", server.host);
    let pull = lab.images.pull(&name, None, None);
    assert!(tokio::time::timeout(Duration::from_millis(200), pull).await.is_err());
    assert_eq!(lab.images.pull(&name, None, None).await.unwrap(), app.id);
    let requests = server.seen(&layer);
    assert_eq!(requests.len(), 2);
    let range = requests[1].header("range");
    let from: u64 = range
        .trim_start_matches("bytes=")
        .trim_end_matches('-')
        .parse()
        .unwrap();
    assert!(from > 0 && from <= 70_000, "{range}");
    lab.settled().await;
}

#[tokio::test]
async fn complete_layers_of_a_pull_that_was_given_up_are_used_by_the_next_and_go_with_the_image() {
    let (one, two) = (gzip(&tar(&[("a", &noise(9000))])), gzip(&tar(&[("b", &noise(8000))])));
    let app = image(&[one, two], "app");
    let (quick, slow) = (app.layers[0].clone(), app.layers[1].clone());
    let server = stalling(app.clone(), slow.clone(), 0).await;
    let lab = Lab::new("[pull]\nkeep_partial_secs = 60").await;
    lab.images.adopt(&[]).await.unwrap();
    let name = format!("{}/app", server.host);
    {
        let pull = lab.images.pull(&name, None, None);
        tokio::pin!(pull);
        while lab.entries("layers") == 0 {
            assert!(
                tokio::time::timeout(Duration::from_millis(20), &mut pull)
                    .await
                    .is_err()
            );
        }
        // Its pin is noted by the pull, not by the transfer.
        assert!(
            tokio::time::timeout(Duration::from_millis(20), &mut pull)
                .await
                .is_err()
        );
    }
    // Nobody is left who could stall it.
    let patient = Server::start({
        let app = app.clone();
        move |seen| app.answer(seen).unwrap()
    })
    .await;
    let other = format!("{}/app", patient.host);
    assert_eq!(lab.images.pull(&other, None, None).await.unwrap(), app.id);
    assert_eq!(patient.seen(&quick).len(), 0, "it was here");
    assert_eq!(patient.seen(&slow).len(), 1);
    lab.images.remove(&other).await.unwrap();
    lab.until(|| lab.entries("layers") == 0).await;
}

#[tokio::test]
async fn what_was_given_up_goes_when_its_time_is_over() {
    let app = small("app");
    let server = stalling(app.clone(), app.layers[0].clone(), 70_000).await;
    let lab = Lab::new("[pull]\nkeep_partial_secs = 1").await;
    let pull_of = format!("{}/app", server.host);
    let pull = lab.images.pull(&pull_of, None, None);
    assert!(tokio::time::timeout(Duration::from_millis(200), pull).await.is_err());
    assert_eq!(lab.entries("tmp"), 1);
    lab.settled().await;
}

#[tokio::test]
async fn a_removed_image_is_gone_with_all_its_names_and_its_layers_follow() {
    let app = small("app");
    let server = registry(vec![("1", app.clone()), ("2", app.clone())]).await;
    let lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    let name = format!("{}/app", server.host);
    for _ in 0..2 {
        for tag in ["1", "2"] {
            lab.images.pull(&format!("{name}:{tag}"), None, None).await.unwrap();
        }
        assert_eq!(lab.images.list()[0].tags.len(), 2);
        let spec = format!("{name}:1");
        let removals = (0..4).map(|_| lab.images.remove(&spec));
        futures_util::future::try_join_all(removals).await.unwrap();
        assert!(lab.images.list().is_empty() && lab.images.find(&app.id).is_none());
        lab.until(|| lab.entries("layers") == 0).await;
        lab.settled().await;
        assert_eq!(lab.images.fs_usage().await.unwrap().used_bytes, 0);
    }
    lab.images.remove("never/was").await.unwrap();
    lab.images.remove("not a reference").await.unwrap();
}

#[tokio::test]
async fn containers_keep_the_layers_of_a_removed_image_even_over_a_restart() {
    let app = small("app");
    let server = registry(vec![("latest", app.clone())]).await;
    let mut lab = Lab::new("").await;
    lab.images.adopt(&[]).await.unwrap();
    let name = format!("{}/app", server.host);
    lab.images.pull(&name, None, None).await.unwrap();
    let container = lab.config.state_dir.join("container");
    std::fs::create_dir(&container).unwrap();
    let image = lab.images.find(&name).unwrap();
    let mounted = lab
        .images
        .mount_rootfs(&image, &container, None, None, 0)
        .await
        .unwrap();
    let rootfs = mounted.rootfs;
    drop(image);
    assert_eq!(std::fs::read(rootfs.join("app.txt")).unwrap(), noise(100_000));
    std::fs::write(rootfs.join("new"), "x").unwrap();
    lab.images.remove(&name).await.unwrap();
    lab.settled().await;
    assert_eq!(lab.entries("layers"), 1);

    lab.reopen().await;
    assert_eq!(lab.entries("layers"), 1);
    lab.images.adopt(std::slice::from_ref(&container)).await.unwrap();
    lab.settled().await;
    assert_eq!(lab.entries("layers"), 1);
    assert!(rootfs.join("app.txt").exists());

    for _ in 0..2 {
        lab.images.unmount_rootfs(&container).await.unwrap();
    }
    assert!(!rootfs.join("app.txt").exists());
    lab.until(|| lab.entries("layers") == 0).await;
}

#[tokio::test]
async fn a_restart_shows_what_was_whole_and_clears_the_rest() {
    let (one, two) = (small("one"), small("two"));
    let server = registry(vec![("1", one.clone()), ("2", two.clone())]).await;
    let mut lab = Lab::new("").await;
    for tag in ["1", "2"] {
        lab.images
            .pull(&format!("{}/app:{tag}", server.host), None, None)
            .await
            .unwrap();
    }
    lab.images.set_pinned(&one.id, true).await.unwrap();
    std::fs::create_dir_all(lab.path("tmp/left/fs/over")).unwrap();
    std::fs::create_dir_all(lab.path("layers/half/fs")).unwrap();
    std::fs::write(lab.path(&format!("records/{}/record", &two.id[7..])), "garbage").unwrap();
    lab.reopen().await;
    assert_eq!(lab.images.list().len(), 1);
    assert!(
        lab.images
            .find(&one.id)
            .is_some_and(|image| image.pinned && image.tags.len() == 1)
    );
    lab.settled().await;
    assert_eq!(lab.entries("layers"), 2);
    lab.images.adopt(&[]).await.unwrap();
    lab.until(|| lab.entries("layers") == 1).await;
    lab.images
        .pull(&format!("{}/app:2", server.host), None, None)
        .await
        .unwrap();
    assert_eq!(lab.images.list().len(), 2);
}

#[tokio::test]
async fn no_more_layers_are_fetched_at_a_time_than_configured() {
    let layers: Vec<_> = (0..6_u8).map(|n| gzip(&tar(&[("f", &[n; 10])]))).collect();
    let app = image(&layers, "x");
    let running = Arc::new(Semaphore::new(2));
    let (gate, fixture) = (running.clone(), app.clone());
    let server = Server::start(move |seen| {
        let _permit = if app.layers.iter().any(|layer| seen.path.contains(layer)) {
            Some(gate.try_acquire().expect("a third layer is fetched"))
        } else {
            None
        };
        std::thread::sleep(Duration::from_millis(5));
        fixture.answer(seen).unwrap()
    })
    .await;
    let lab = Lab::new("[pull]\nmax_parallel_layers = 2").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    assert_eq!(lab.images.list()[0].pins.len(), 6);
}

#[tokio::test]
async fn the_usage_that_is_told_is_what_a_walk_finds() {
    let files: Vec<(String, Vec<u8>)> = (0..300).map(|n| (format!("d{}/f{n}", n % 20), noise(n * 37))).collect();
    let listed: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    let app = image(&[gzip(&tar(&listed))], "app");
    let server = registry(vec![("latest", app)]).await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    let told = lab.images.fs_usage().await.unwrap();
    let found = crate::images::rootfs::usage(&lab.path("layers")).unwrap();
    // The directory of all layers is not a layer's.
    assert_eq!(told.inodes_used, found.inodes_used - 1);
    let apart = told.used_bytes.abs_diff(found.used_bytes);
    assert!(apart <= 64 << 10, "{told:?} {found:?}");
    assert!(told.used_bytes > 300 * 4096, "{told:?}");
}
