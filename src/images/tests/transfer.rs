//! What registries and networks do to a pull.

use std::sync::atomic::{AtomicUsize, Ordering};

use wharf_proto::api::{LayerState, pull_progress::Event};

use super::super::{
    ErrorKind,
    registry::digest_of,
    testing::{Lab, Reply, Seen, Server, gzip, image, noise, small, tar},
};

/// The `n`th call (from one) whose path has `part`.
fn nth(part: &'static str, n: usize) -> impl Fn(&Seen) -> bool {
    let count = AtomicUsize::new(0);
    move |seen| seen.path.contains(part) && count.fetch_add(1, Ordering::SeqCst) + 1 == n
}

async fn pull_fails(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (String, ErrorKind) {
    let server = Server::start(answer).await;
    let lab = Lab::new("").await;
    let error = lab
        .images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap_err();
    assert!(lab.images.list().is_empty());
    lab.settled().await;
    assert_eq!((lab.entries("layers"), lab.entries("records")), (0, 0));
    (error.to_string(), error.kind())
}

#[tokio::test]
async fn a_connection_that_breaks_is_continued_by_range() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let broken = nth("/blobs/", 2);
    let server = Server::start(move |seen| {
        let reply = app.answer(seen).unwrap();
        if broken(seen) { reply.cut(40_000) } else { reply }
    })
    .await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    let requests = server.seen(&layer);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].header("range"), "bytes=40000-");
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_again_from_the_start() {
    let app = small("app");
    let broken = nth("/blobs/", 2);
    let server = Server::start(move |seen| {
        let mut seen = seen.clone();
        seen.headers.remove("range");
        let reply = app.answer(&seen).unwrap();
        if broken(&seen) { reply.cut(40_000) } else { reply }
    })
    .await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stalled_connection_is_given_up_and_continued() {
    let app = small("app");
    let slow = nth("/blobs/", 2);
    let server = Server::start(move |seen| {
        let reply = app.answer(seen).unwrap();
        if slow(seen) {
            Reply {
                stall: true,
                ..reply.cut(10_000)
            }
        } else {
            reply
        }
    })
    .await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_registry_that_cuts_for_ever_is_unavailable() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let (error, kind) = pull_fails(move |seen| {
        let reply = app.answer(seen).unwrap();
        if seen.path.contains(&layer) {
            reply.cut(0)
        } else {
            reply
        }
    })
    .await;
    assert_eq!(kind, ErrorKind::RegistryUnavailable, "{error}");
    assert!(
        error.starts_with("RegistryUnavailable: 127.0.0.1:") && error.contains("broke off at 0 of"),
        "{error}"
    );
}

#[tokio::test]
async fn busy_and_broken_registries_get_another_chance() {
    let app = small("app");
    let (busy, broken) = (nth("/manifests/", 1), nth("/blobs/", 1));
    let server = Server::start(move |seen| {
        if busy(seen) {
            Reply::status(429).header("retry-after", "0")
        } else if broken(seen) {
            Reply::status(503)
        } else {
            app.answer(seen).unwrap()
        }
    })
    .await;
    let lab = Lab::new("").await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_registry_out_of_order_is_unavailable() {
    let (error, kind) = pull_fails(|_| Reply::status(500)).await;
    assert_eq!(kind, ErrorKind::RegistryUnavailable);
    assert!(
        error.starts_with("RegistryUnavailable: ") && error.contains("500"),
        "{error}"
    );
}

#[tokio::test]
async fn an_unreachable_registry_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap();
    drop(listener);
    let lab = Lab::new("").await;
    let error = lab
        .images
        .pull(&format!("{host}/app"), None, None)
        .await
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(&format!("RegistryUnavailable: {host}: ")), "{error}");
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test]
async fn an_unknown_image_is_not_found() {
    let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"secret prose"}]}"#;
    let (error, kind) = pull_fails(move |_| Reply {
        status: 404,
        ..Reply::ok(body)
    })
    .await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert!(
        error.starts_with("manifest app:latest not found in registry 127.0.0.1:"),
        "{error}"
    );
    let (error, kind) = pull_fails(|_| Reply {
        status: 400,
        ..Reply::ok(r#"{"errors":[{"code":"NAME_INVALID","message":"secret prose"}]}"#)
    })
    .await;
    assert_eq!(kind, ErrorKind::Other);
    assert!(error.contains("(NAME_INVALID)") && !error.contains("prose"), "{error}");
}

#[tokio::test]
async fn a_layer_with_other_bytes_is_refused() {
    let app = small("app");
    let layer = app.layers[0].clone();
    for at in [0, 60_000] {
        let (app, name) = (app.clone(), layer.clone());
        let (error, _) = pull_fails(move |seen| {
            let mut reply = app.answer(seen).unwrap();
            if seen.path.contains(&name) {
                reply.body[at] ^= 1;
            }
            reply
        })
        .await;
        assert!(error.contains(&format!("expected {layer}, got sha256:")), "{error}");
    }
}

#[tokio::test]
async fn a_truncated_layer_is_refused() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let (error, _) = pull_fails(move |seen| {
        let mut reply = app.answer(seen).unwrap();
        if seen.path.contains(&layer) {
            reply.body.truncate(50_000);
        }
        reply
    })
    .await;
    assert!(
        error.contains("expected 1") && error.contains("got 50000 bytes"),
        "{error}"
    );
}

#[tokio::test]
async fn a_manifest_or_configuration_with_another_digest_is_refused() {
    let app = small("app");
    let fixture = app.clone();
    let server = Server::start(move |seen| {
        let mut reply = fixture.answer(seen).unwrap();
        reply.body[10] ^= 1;
        reply
    })
    .await;
    let lab = Lab::new("").await;
    let reference = format!("{}/app@{}", server.host, app.digest);
    let error = lab.images.pull(&reference, None, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("expected {}", app.digest)), "{error}");

    let id = app.id.clone();
    let (error, _) = pull_fails(move |seen| {
        let mut reply = app.answer(seen).unwrap();
        if seen.path.contains(&id) {
            reply.body[10] ^= 1;
        }
        reply
    })
    .await;
    assert!(error.contains("is not what was promised"), "{error}");
}

#[tokio::test]
async fn a_wrong_diff_id_is_refused() {
    let (blob, _) = gzip(&tar(&[("a", b"a")]));
    let wrong = digest_of(b"something else");
    let app = image(&[(blob, wrong.clone())], "x");
    let (error, _) = pull_fails(move |seen| app.answer(seen).unwrap()).await;
    assert!(
        error.contains("uncompressed layer") && error.contains(&wrong),
        "{error}"
    );
}

#[tokio::test]
async fn a_layer_that_is_no_archive_is_refused() {
    let app = image(&[gzip(&noise(5000))], "x");
    let (error, _) = pull_fails(move |seen| app.answer(seen).unwrap()).await;
    assert!(error.contains("layer"), "{error}");
    let mut damaged = gzip(&tar(&[("a", &noise(5000))]));
    damaged.0.truncate(3000);
    let app = image(&[damaged], "x");
    let (error, _) = pull_fails(move |seen| app.answer(seen).unwrap()).await;
    assert!(error.contains("can't be decompressed"), "{error}");
}

#[tokio::test]
async fn an_endless_manifest_is_refused() {
    let (error, _) = pull_fails(|_| Reply::ok(vec![b' '; (4 << 20) + 1])).await;
    assert!(error.contains("larger than"), "{error}");
}

#[tokio::test]
async fn every_compression_and_an_index_are_read() {
    let archives = [tar(&[("a", &noise(300_000))]), tar(&[("b", b"b")]), tar(&[("c", b"c")])];
    let layers = [
        (
            zstd::encode_all(archives[0].as_slice(), 3).unwrap(),
            digest_of(&archives[0]),
        ),
        (archives[1].clone(), digest_of(&archives[1])),
        gzip(&archives[2]),
    ];
    let app = image(&layers, "x");
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"digest": digest_of(b"windows"), "platform": {"os": "windows", "architecture": "amd64"}},
        {"digest": app.digest, "platform": {"os": "linux", "architecture": super::super::platform::Host::current().architecture()}},
    ]})
    .to_string();
    let digest = digest_of(index.as_bytes());
    let (fixture, name) = (app.clone(), index.clone());
    let server = Server::start(move |seen| {
        if seen.path.ends_with("/manifests/multi") {
            Reply::ok(name.clone()).header("content-type", "application/vnd.oci.image.index.v1+json")
        } else {
            fixture.answer(seen).unwrap()
        }
    })
    .await;
    let lab = Lab::new("").await;
    let id = lab
        .images
        .pull(&format!("{}/app:multi", server.host), None, None)
        .await
        .unwrap();
    assert_eq!(id, app.id);
    let image = lab.images.find(&id).unwrap();
    assert_eq!(image.digests, [format!("{}/app@{digest}", server.host)]);
    assert_eq!(image.layers.len(), 3);
    let files: Vec<bool> = ["a", "b", "c"]
        .iter()
        .zip(&image.pins)
        .map(|(file, pin)| pin.path().join(file).exists())
        .collect();
    assert_eq!(files, [true; 3]);
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_may_fail() {
    let app = small("app");
    let layer = app.layers[0].clone();
    let fixture = app.clone();
    let server = Server::start(move |seen| fixture.answer(seen).unwrap()).await;
    let fixture = app.clone();
    let mirror = Server::start(move |seen| {
        if seen.path.contains(&layer) {
            Reply::status(404)
        } else {
            fixture.answer(seen).unwrap()
        }
    })
    .await;
    let lab = Lab::new(&format!(
        "[registries.\"{}\"]\nmirrors = [\"{}/cache\"]",
        server.host, mirror.host
    ))
    .await;
    lab.images
        .pull(&format!("{}/app", server.host), None, None)
        .await
        .unwrap();
    assert_eq!(
        mirror
            .seen(&format!("/v2/cache/app/manifests/latest?ns={}", server.host))
            .len(),
        1
    );
    assert!(server.seen("/manifests/").is_empty());
    assert_eq!(server.seen(&app.layers[0]).len(), 1);
}

#[tokio::test]
async fn progress_tells_the_whole_story() {
    let app = small("app");
    let fixture = app.clone();
    let server = Server::start(move |seen| fixture.answer(seen).unwrap()).await;
    let lab = Lab::new("").await;
    let reference = format!("{}/app", server.host);
    for (up_to_date, last) in [(false, LayerState::LayerDone), (true, LayerState::LayerExists)] {
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        lab.images.pull(&reference, None, Some(sender)).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = receiver.recv().await {
            events.push(event.event.unwrap());
        }
        let Event::Resolved(resolved) = &events[0] else {
            panic!("{events:?}")
        };
        assert_eq!(resolved.reference, format!("{reference}:latest"));
        assert_eq!(resolved.layers[0].digest, app.layers[0]);
        let Event::Layer(layer) = &events[events.len() - 2] else {
            panic!("{events:?}")
        };
        assert_eq!((layer.state, layer.current), (i32::from(last), layer.total));
        let Some(Event::Done(done)) = events.last() else {
            panic!("{events:?}")
        };
        assert_eq!((&done.image_id, done.up_to_date), (&app.id, up_to_date));
    }
}
