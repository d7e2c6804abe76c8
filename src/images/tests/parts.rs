//! Large blobs through several connections at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use super::super::{
    registry::digest_of,
    testing::{Fixture, Lab, Reply, Seen, Server, image, noise, tar},
};

const MIB: usize = 1 << 20;

/// An image whose one layer is not compressed and has a little more than `mib` MiB.
fn large(mib: usize) -> Fixture {
    let archive = tar(&[("noise", &noise(mib * MIB + 1))]);
    let digest = digest_of(&archive);
    image(&[(archive, digest)], "large")
}

/// Serves `image`; `change` may replace what is answered to a request for the layer.
async fn serve(image: &Fixture, change: impl Fn(usize, &Seen, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let (image, count) = (image.clone(), AtomicUsize::new(0));
    Server::start(move |seen| match image.answer(seen) {
        Some(reply) if seen.path.ends_with(&image.layers[0]) => {
            change(count.fetch_add(1, Ordering::Relaxed), seen, reply)
        }
        Some(reply) => reply,
        None => Reply::status(404),
    })
    .await
}

/// As [`serve`], so slowly that whoever reads waits: parts are for such.
async fn serve_slowly(
    image: &Fixture,
    change: impl Fn(usize, &Seen, Reply) -> Reply + Send + Sync + 'static,
) -> Server {
    serve(image, move |n, seen, reply| Reply {
        speed: Some(8 * MIB),
        ..change(n, seen, reply)
    })
    .await
}

async fn pull(lab: &Lab, server: &Server) -> Duration {
    let begun = Instant::now();
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    begun.elapsed()
}

#[tokio::test]
async fn a_limit_for_each_connection_does_not_limit_the_pull_and_memory_stays_within_its_budget() {
    let image = large(20);
    let server = serve_slowly(&image, |_, _, reply| reply).await;
    // Without room in the budget the blob comes through one connection.
    let lab = Lab::new("").await;
    let budget = lab.images.room.client.budget();
    let all = budget.available_permits();
    assert!(all > 0 && all * 2 * MIB < 64 * MIB);
    let held = budget
        .clone()
        .try_acquire_many_owned(u32::try_from(all).unwrap())
        .unwrap();
    let one = pull(&lab, &server).await;
    drop(held);
    // With it, through several; never more is held than the budget has.
    let lab = Lab::new("").await;
    let budget = lab.images.room.client.budget();
    let least = Arc::new(AtomicUsize::new(all));
    let watched = async {
        loop {
            least.fetch_min(budget.available_permits(), Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let several = tokio::select! {
        several = pull(&lab, &server) => several,
        () = watched => unreachable!(),
    };
    assert!(
        several < one.mul_f64(0.75),
        "{several:?} with several connections, {one:?} with one"
    );
    assert!(least.load(Ordering::Relaxed) < all, "no part was fetched ahead");
    assert_eq!(budget.available_permits(), all, "all of the budget is free again");
}

#[tokio::test]
async fn parts_that_break_off_stall_or_are_refused_for_now_come_all_the_same() {
    let image = large(24);
    type Change = fn(usize, &Seen, Reply) -> Reply;
    let changes: [Change; 3] = [
        |n, _, reply| if n % 3 == 1 { reply.cut(MIB / 2) } else { reply },
        |n, _, reply| {
            if n == 2 {
                Reply {
                    stall: true,
                    ..reply.cut(MIB / 2)
                }
            } else {
                reply
            }
        },
        |n, _, reply| match n % 2 {
            0 => reply,
            _ => Reply::status(429).header("retry-after", "0"),
        },
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let server = serve_slowly(&image, change).await;
        let lab = Lab::new("").await;
        let name = format!("{}/app", server.host);
        let pulled = lab.images.pull(&name, None, None).await;
        assert_eq!(pulled.unwrap(), image.id, "change {at}");
    }
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_sends_the_blob_once() {
    let image = large(20);
    let whole = image.clone();
    let server = serve(&image, move |_, _, _| Reply::ok(whole.blobs[&whole.layers[0]].clone())).await;
    let lab = Lab::new("").await;
    pull(&lab, &server).await;
    assert_eq!(server.seen(&image.layers[0]).len(), 1);
}

#[tokio::test]
async fn damage_in_a_part_is_found() {
    let image = large(20);
    let server = serve_slowly(&image, |n, _, mut reply| {
        if n == 3 {
            reply.body[100] ^= 1;
        }
        reply
    })
    .await;
    let lab = Lab::new("").await;
    let error = lab
        .images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("expected"), "{error}");
    lab.settled().await;
}
