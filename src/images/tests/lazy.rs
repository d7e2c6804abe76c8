//! Images that can be used before they are complete.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::super::{
    Image,
    lazy::{LazyLayer, Lower},
    registry::digest_of,
    testing::{Fixture, Lab, Reply, Seen, Server, image, noise, tar},
};

const SIZE: usize = 900_000;
const ON: &str = "[pull]\nlazy = true\n";

/// An image of one layer with a table of contents: `a`, of [`SIZE`] bytes in two pieces, and `b`.
fn stargz() -> Fixture {
    let content = noise(SIZE);
    let archive = tar(&[("a", &content), ("b", b"bee")]);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let (half, behind) = (512 + SIZE / 2, 512 + SIZE.next_multiple_of(512));
    let mut blob = Vec::new();
    let mut offsets = Vec::new();
    let bee = behind + 512;
    let end = bee + 512;
    for part in [
        0..512,
        512..half,
        half..512 + SIZE,
        512 + SIZE..bee,
        bee..bee + 3,
        bee + 3..end,
    ] {
        offsets.push(blob.len());
        blob.extend(gzip(&archive[part]));
    }
    let toc = serde_json::json!({ "version": 1, "entries": [
        { "name": "a", "type": "reg", "mode": 0o644, "size": SIZE, "offset": offsets[1], "chunkSize": SIZE / 2,
            "chunkDigest": digest_of(&content[..SIZE / 2]) },
        { "name": "a", "type": "chunk", "offset": offsets[2], "chunkOffset": SIZE / 2,
            "chunkDigest": digest_of(&content[SIZE / 2..]) },
        { "name": "b", "type": "reg", "mode": 0o600, "size": 3, "offset": offsets[4], "chunkDigest": digest_of(b"bee") },
    ]})
    .to_string();
    let table = tar(&[("stargz.index.json", toc.as_bytes())]);
    let offset = blob.len();
    blob.extend(gzip(&table));
    blob.extend([0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0]);
    blob.extend(format!("{offset:016x}STARGZ").as_bytes());
    blob.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    let whole = [&archive[..end], table.as_slice()].concat();
    let mut fixture = image(&[(blob, digest_of(&whole))], "lazy");
    vouch(&mut fixture, &digest_of(toc.as_bytes()));
    fixture
}

/// An image of one layer of zstd:chunked: `a`, of [`SIZE`] bytes, zeroes and three bytes more, and `b`. Its table, and where it is.
fn chunked() -> (Fixture, Vec<u8>, usize) {
    let content = [noise(SIZE), vec![0; 5000], b"end".to_vec()].concat();
    let archive = tar(&[("a", &content), ("b", b"bee")]);
    let (a, zeros, end) = (512, 512 + SIZE, 512 + SIZE + 5000);
    let bee = 512 + content.len().next_multiple_of(512) + 512;
    let mut blob = Vec::new();
    let mut offsets = Vec::new();
    for part in [
        0..a,
        a..zeros,
        zeros..end,
        end..end + 3,
        end + 3..bee,
        bee..bee + 3,
        bee + 3..archive.len(),
    ] {
        offsets.push(blob.len());
        blob.extend(zstd::encode_all(&archive[part], 1).unwrap());
    }
    let toc = serde_json::json!({ "version": 1, "entries": [
        { "name": "a", "type": "reg", "mode": 0o644, "size": content.len(), "offset": offsets[1], "chunkSize": SIZE,
            "chunkDigest": digest_of(&content[..SIZE]), "digest": digest_of(&content) },
        { "name": "a", "type": "chunk", "offset": offsets[2], "chunkOffset": SIZE, "chunkSize": 5000, "chunkType": "zeros" },
        { "name": "a", "type": "chunk", "offset": offsets[3], "chunkOffset": SIZE + 5000, "chunkSize": 3,
            "chunkDigest": digest_of(b"end") },
        { "name": "b", "type": "reg", "mode": 0o600, "size": 3, "offset": offsets[5], "digest": digest_of(b"bee") },
    ]})
    .to_string();
    let packed = zstd::encode_all(toc.as_bytes(), 1).unwrap();
    blob.extend(0x184d_2a50_u32.to_le_bytes());
    blob.extend((packed.len() as u32).to_le_bytes());
    let offset = blob.len();
    blob.extend(&packed);
    let mut fixture = image(&[(blob, digest_of(&archive))], "lazy");
    annotate(
        &mut fixture,
        &digest_of(&packed),
        &format!("{offset}:{}:{}:1", packed.len(), toc.len()),
    );
    (fixture, packed, toc.len())
}

/// Has the manifest vouch for a table of zstd:chunked with `digest` at `position`.
fn annotate(fixture: &mut Fixture, digest: &str, position: &str) {
    let mut manifest: serde_json::Value = serde_json::from_slice(&fixture.manifest).unwrap();
    manifest["layers"][0]["mediaType"] = serde_json::json!("application/vnd.oci.image.layer.v1.tar+zstd");
    manifest["layers"][0]["annotations"] = serde_json::json!({
        "io.github.containers.zstd-chunked.manifest-checksum": digest,
        "io.github.containers.zstd-chunked.manifest-position": position,
    });
    fixture.manifest = manifest.to_string().into_bytes();
    fixture.digest = digest_of(&fixture.manifest);
}

#[tokio::test]
async fn zstd_chunked_is_read_in_parts_too_and_what_its_manifest_says_wrongly_is_pulled_whole() {
    let (fixture, packed, length) = chunked();
    let open = Arc::new(AtomicBool::new(false));
    let server = serve(&fixture, &open, |reply| reply).await;
    let lab = Lab::new(ON).await;
    lab.images.adopt(&[]).await.unwrap();
    let image = pulled(&lab, &server).await;
    let layer = layer(&image);
    let content = [noise(SIZE), vec![0; 5000], b"end".to_vec()].concat();
    let node = layer.table.find("a").unwrap();
    for (from, size) in [
        (0, 10),
        (SIZE - 5, 10),
        (SIZE + 1, 5),
        (SIZE + 4990, 100),
        (0, SIZE + 5003),
    ] {
        let read = layer.read(node, from as u64, size as u32).await.unwrap();
        assert_eq!(read, content[from..(from + size).min(content.len())], "{from}");
    }
    let bee = layer.table.find("b").unwrap();
    assert_eq!(layer.read(bee, 0, 10).await.unwrap(), b"bee");
    assert!(image.come().unwrap().0 > 0);
    open.store(true, Ordering::Relaxed);
    assert!(lab.images.whole(image).await.unwrap().is_complete());

    let good = digest_of(&packed);
    let (at, packed) = (packed_at(&fixture), packed.len());
    for (digest, position) in [
        (digest_of(b"another"), format!("{at}:{packed}:{length}:1")),
        (good.clone(), format!("{at}:{packed}:{}:1", length + 1)),
        (good.clone(), format!("{}:{packed}:{length}:1", at + 1)),
        (good.clone(), format!("{}:{packed}:{length}:1", 1_u64 << 62)),
        (good.clone(), format!("{at}:{packed}:{}:1", u64::MAX)),
        (good.clone(), format!("{}:{packed}:{length}:1", u64::MAX)),
    ] {
        let mut fixture = fixture.clone();
        annotate(&mut fixture, &digest, &position);
        let server = serve(&fixture, &Arc::new(AtomicBool::new(true)), |reply| reply).await;
        let lab = Lab::new(ON).await;
        assert!(pulled(&lab, &server).await.is_complete(), "{position}");
    }
}

/// Where the table is, by the manifest.
fn packed_at(fixture: &Fixture) -> u64 {
    let manifest: serde_json::Value = serde_json::from_slice(&fixture.manifest).unwrap();
    let position = &manifest["layers"][0]["annotations"]["io.github.containers.zstd-chunked.manifest-position"];
    position.as_str().unwrap().split(':').next().unwrap().parse().unwrap()
}

/// Has the manifest vouch for the table with `digest`.
fn vouch(fixture: &mut Fixture, digest: &str) {
    let mut manifest: serde_json::Value = serde_json::from_slice(&fixture.manifest).unwrap();
    manifest["layers"][0]["annotations"] = serde_json::json!({ "containerd.io/snapshot/stargz/toc.digest": digest });
    fixture.manifest = manifest.to_string().into_bytes();
    fixture.digest = digest_of(&fixture.manifest);
}

/// Serves `image`, the whole layer only when `open` is set; `change` may replace parts of it.
async fn serve(
    image: &Fixture,
    open: &Arc<AtomicBool>,
    change: impl Fn(Reply) -> Reply + Send + Sync + 'static,
) -> Server {
    let (image, open) = (image.clone(), open.clone());
    Server::start(move |seen: &Seen| match image.answer(seen) {
        Some(reply) if seen.path.ends_with(&image.layers[0]) => {
            let range = seen.header("range");
            let is_part = !range.is_empty() && !range.ends_with('-');
            match is_part {
                true => change(reply),
                false if open.load(Ordering::Relaxed) => reply,
                false => Reply {
                    stall: true,
                    ..reply.cut(1000)
                },
            }
        }
        Some(reply) => reply,
        None => Reply::status(404),
    })
    .await
}

async fn pulled(lab: &Lab, server: &Server) -> Arc<Image> {
    let name = format!("{}/app:latest", server.host);
    lab.images.pull(&name, None, None).await.unwrap();
    lab.images.find(&name).unwrap()
}

fn layer(image: &Image) -> Arc<LazyLayer> {
    match &image.lazy.as_ref().expect("an incomplete image").layers[0] {
        Lower::Lazy(layer) => layer.clone(),
        Lower::Whole(_) => panic!("the layer is here"),
    }
}

#[tokio::test]
async fn an_incomplete_image_is_read_in_parts_and_becomes_complete() {
    let (fixture, open) = (stargz(), Arc::new(AtomicBool::new(false)));
    let server = serve(&fixture, &open, |reply| reply).await;
    let lab = Lab::new(ON).await;
    lab.images.adopt(&[]).await.unwrap();
    let image = pulled(&lab, &server).await;
    let layer = layer(&image);
    let node = layer.table.find("a").unwrap();
    let content = noise(SIZE);
    for (from, size) in [(0, 10), (SIZE / 2 - 5, 10), (SIZE - 3, 100), (SIZE, 10), (0, SIZE)] {
        let read = layer.read(node, from as u64, size as u32).await.unwrap();
        assert_eq!(read, content[from..(from + size).min(SIZE)]);
    }
    let kept = lab.images.room.lazy.kept();
    assert!(kept >= SIZE as u64, "{kept}");
    assert_eq!(lab.entries("records"), 0);
    // Its names change as those of others.
    lab.images.tag(&image.id, "registry.example/other:1").await.unwrap();
    open.store(true, Ordering::Relaxed);
    let whole = lab.images.whole(image).await.unwrap();
    assert!(whole.is_complete());
    assert_eq!(whole.tags.len(), 2, "{:?}", whole.tags);
    assert_eq!((lab.entries("records"), lab.entries("incomplete")), (1, 0));
    let fresh = layer.read(node, 7, 100).await.unwrap();
    assert_eq!(fresh, content[7..107]);
    drop((layer, whole));
    lab.images.remove("registry.example/other:1").await.unwrap();
    lab.until(|| lab.entries("layers") == 0).await;
    assert_eq!(lab.images.room.lazy.kept(), 0);
}

#[tokio::test]
async fn a_part_that_was_changed_on_the_way_is_an_error() {
    let (fixture, open) = (stargz(), Arc::new(AtomicBool::new(false)));
    let bad = Arc::new(AtomicBool::new(false));
    let changing = bad.clone();
    let change = move |mut reply: Reply| {
        if changing.load(Ordering::Relaxed) {
            let middle = reply.body.len() / 2;
            reply.body[middle] ^= 1;
        }
        reply
    };
    let server = serve(&fixture, &open, change).await;
    let lab = Lab::new(ON).await;
    let image = pulled(&lab, &server).await;
    let layer = layer(&image);
    let node = layer.table.find("a").unwrap();
    bad.store(true, Ordering::Relaxed);
    assert_eq!(layer.read(node, 0, 10).await, Err(libc::EIO));
    // The next one may be right.
    bad.store(false, Ordering::Relaxed);
    assert_eq!(layer.read(node, 0, 10).await.unwrap(), noise(SIZE)[..10]);
}

#[tokio::test]
async fn what_the_manifest_does_not_vouch_for_is_pulled_first() {
    let mut fixture = stargz();
    vouch(&mut fixture, &digest_of(b"another table"));
    let server = serve(&fixture, &Arc::new(AtomicBool::new(true)), |reply| reply).await;
    let lab = Lab::new(ON).await;
    assert!(pulled(&lab, &server).await.is_complete());
    let lab = Lab::new("").await;
    let server = serve(&stargz(), &Arc::new(AtomicBool::new(true)), |reply| reply).await;
    assert!(pulled(&lab, &server).await.is_complete());
}

#[tokio::test]
async fn after_a_restart_an_incomplete_image_is_not_shown_until_it_is_pulled_again() {
    let (fixture, open) = (stargz(), Arc::new(AtomicBool::new(false)));
    let server = serve(&fixture, &open, |reply| reply).await;
    let mut lab = Lab::new(ON).await;
    let image = pulled(&lab, &server).await;
    let name = image.tags[0].clone();
    drop(image);
    open.store(true, Ordering::Relaxed);
    lab.reopen().await;
    lab.until(|| lab.images.find(&name).is_some_and(|image| image.is_complete()))
        .await;
    assert_eq!((lab.entries("records"), lab.entries("incomplete")), (1, 0));
}

#[tokio::test]
async fn an_incomplete_image_that_is_removed_takes_its_pull_with_it() {
    let (fixture, open) = (stargz(), Arc::new(AtomicBool::new(false)));
    let server = serve(&fixture, &open, |reply| reply).await;
    let lab = Lab::new(ON).await;
    lab.images.adopt(&[]).await.unwrap();
    let image = pulled(&lab, &server).await;
    lab.images.remove(&image.id).await.unwrap();
    assert!(lab.images.list().is_empty());
    drop(image);
    lab.settled().await;
    assert_eq!((lab.entries("incomplete"), lab.entries("layers")), (0, 0));
}
