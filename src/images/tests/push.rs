//! Pushes to registries that misbehave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc;
use wharf_proto::{api::push_progress::Event, cri::AuthConfig};

use super::super::{
    ErrorKind, Result,
    registry::digest_of,
    testing::{Fixture, Lab, Reply, Seen, Server, image, noise, tar},
};

/// What a registry holds, and what it does wrong.
#[derive(Default)]
struct State {
    uploads: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, Vec<u8>>,
    /// Chunks that are to be lost after half of them came.
    cuts: usize,
    /// Uploads that are to be forgotten.
    losses: usize,
    /// Chunks that are to be refused with 429.
    busy: usize,
    begun: usize,
}

fn answer(state: &mut State, seen: &Seen) -> Reply {
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let location = |id: &str| format!("/v2/app/blobs/uploads/{id}?state=a%2Fb");
    match (seen.method.as_str(), path) {
        ("HEAD", _) if path.contains("/blobs/") => {
            Reply::status(if state.blobs.contains_key(&last) { 200 } else { 404 })
        }
        ("POST", _) => {
            state.begun += 1;
            let id = format!("u{}", state.begun);
            state.uploads.insert(id.clone(), Vec::new());
            Reply::status(202).header("location", location(&id))
        }
        ("PATCH", _) => {
            if state.losses > 0 {
                state.losses -= 1;
                state.uploads.remove(&last);
            }
            let Some(upload) = state.uploads.get_mut(&last) else {
                return Reply::status(404);
            };
            if state.busy > 0 {
                state.busy -= 1;
                return Reply::status(429).header("retry-after", "0");
            }
            let from: usize = seen.header("content-range").split('-').next().unwrap().parse().unwrap();
            if from != upload.len() {
                return Reply::status(416);
            }
            if state.cuts > 0 {
                state.cuts -= 1;
                upload.extend_from_slice(&seen.raw[..seen.raw.len() / 2]);
                return Reply::status(0);
            }
            upload.extend_from_slice(&seen.raw);
            let range = format!("0-{}", upload.len() - 1);
            Reply::status(202)
                .header("location", location(&last))
                .header("range", range)
        }
        ("GET", _) if path.contains("/uploads/") => match state.uploads.get(&last) {
            Some(upload) => Reply::status(204).header("range", format!("0-{}", upload.len().saturating_sub(1))),
            None => Reply::status(404),
        },
        ("PUT", _) if path.contains("/uploads/") => {
            let digest = query.split("digest=").nth(1).unwrap_or_default().to_owned();
            let Some(upload) = state.uploads.remove(&last) else {
                return Reply::status(404);
            };
            assert!(
                query.contains("state=a%2Fb"),
                "the registry's own query is lost: {query}"
            );
            if digest_of(&upload) != digest {
                return Reply::status(400);
            }
            state.blobs.insert(digest, upload);
            Reply::status(201)
        }
        ("PUT", _) if path.contains("/manifests/") => {
            state.manifests.insert(last, seen.raw.clone());
            Reply::status(201).header("docker-content-digest", digest_of(&seen.raw))
        }
        _ => Reply::status(404),
    }
}

/// A room with an image of one layer that compresses to more than two chunks.
async fn lab() -> (Lab, String, Fixture) {
    let lab = Lab::new("").await;
    let archive = tar(&[("noise", &noise(9 << 20))]);
    let stored = (archive.clone(), digest_of(&archive));
    let fixture = image(&[stored], "push");
    let answered = fixture.clone();
    let source = Server::start(move |seen| answered.answer(seen).unwrap_or(Reply::status(404))).await;
    let name = format!("{}/source", source.host);
    lab.images.pull(&name, None, None).await.unwrap();
    (lab, name, fixture)
}

async fn push(lab: &Lab, spec: &str, to: &str, auth: Option<AuthConfig>) -> Result<String> {
    let (sender, mut events) = mpsc::unbounded_channel();
    lab.images.push(spec, to, auth, sender).await?;
    let mut digest = String::new();
    while let Some(event) = events.recv().await {
        if let Some(Event::Done(done)) = event.event {
            digest = done.digest;
        }
    }
    Ok(digest)
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke_off_and_begins_again_when_it_is_lost() {
    let (lab, name, fixture) = lab().await;
    for (cuts, losses, busy) in [(0, 0, 0), (2, 0, 0), (0, 1, 0), (0, 0, 2), (1, 1, 1)] {
        let state = Arc::new(Mutex::new(State {
            cuts,
            losses,
            busy,
            ..State::default()
        }));
        let shared = state.clone();
        let server = Server::start(move |seen| answer(&mut shared.lock().unwrap(), seen)).await;
        let digest = push(&lab, &name, &format!("{}/app:v1", server.host), None)
            .await
            .unwrap();
        let state = state.lock().unwrap();
        let manifest = &state.manifests["v1"];
        assert_eq!(digest_of(manifest), digest);
        assert!(state.blobs.contains_key(&fixture.id), "the configuration is there");
        let value: serde_json::Value = serde_json::from_slice(manifest).unwrap();
        let layer = value["layers"][0]["digest"].as_str().unwrap();
        let blob = &state.blobs[layer];
        assert_eq!(value["layers"][0]["size"], blob.len());
        let mut archive = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(blob.as_slice()), &mut archive).unwrap();
        assert_eq!(digest_of(&archive), fixture.layers[0], "({cuts}, {losses}, {busy})");
        if (cuts, losses) == (2, 0) {
            let chunks = server
                .seen("/uploads/u")
                .into_iter()
                .filter(|seen| seen.method == "PATCH");
            let sent: usize = chunks.map(|seen| seen.raw.len()).sum();
            assert!(sent < blob.len() * 2, "what was there is not sent again: {sent}");
        }
    }
    lab.settled().await;
}

#[tokio::test]
async fn a_push_that_is_refused_says_so_and_leaves_nothing() {
    let (lab, name, _) = lab().await;
    let server = Server::start(|seen| match seen.method.as_str() {
        "HEAD" => Reply::status(404),
        _ => Reply::status(403),
    })
    .await;
    let error = push(&lab, &name, &format!("{}/app", server.host), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().starts_with("push access to blob"), "{error}");
    let down = Server::start(|_| Reply::status(503)).await;
    let error = push(&lab, &name, &format!("{}/app", down.host), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RegistryUnavailable);
    lab.settled().await;
}

#[tokio::test]
async fn a_token_is_fetched_for_pushing_and_for_the_repository_that_is_mounted_from() {
    let (lab, _, fixture) = lab().await;
    let state = Arc::new(Mutex::new(State::default()));
    let (shared, answered) = (state.clone(), fixture.clone());
    let server = Server::start(move |seen| {
        if seen.path.starts_with("/token") {
            let scopes = seen.path.matches("scope=").count();
            let push = seen.path.contains("pull%2Cpush");
            return Reply::ok(format!(r#"{{"token": "{scopes}-{push}"}}"#));
        }
        if let Some(reply) = (seen.method == "GET").then(|| answered.answer(seen)).flatten() {
            return reply;
        }
        let wanted = if seen.path.contains("mount=") {
            "Bearer 2-true"
        } else {
            "Bearer"
        };
        let shown = seen.header("authorization");
        if !shown.starts_with(wanted) || (seen.method != "HEAD" && !shown.ends_with("true")) {
            let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", seen.header("host"));
            return Reply::status(401).header("www-authenticate", realm);
        }
        if seen.path.contains(&format!("mount={}&from=origin", answered.layers[0])) {
            let mut state = shared.lock().unwrap();
            let digest = answered.layers[0].clone();
            state.blobs.insert(digest, Vec::new());
            return Reply::status(201);
        }
        answer(&mut shared.lock().unwrap(), seen)
    })
    .await;
    lab.images
        .pull(&format!("{}/origin:1", server.host), None, None)
        .await
        .unwrap();
    let auth = AuthConfig {
        username: "u".into(),
        password: "p".into(),
        ..AuthConfig::default()
    };
    let (from, to) = (format!("{}/origin:1", server.host), format!("{}/app:2", server.host));
    let digest = push(&lab, &from, &to, Some(auth)).await.unwrap();
    // The layer was mounted as the blob that it came as, so the manifest is the one that it came by.
    assert_eq!(digest, fixture.digest);
    assert!(server.seen("/uploads/u").iter().all(|seen| seen.raw.len() < 10_000));
}
