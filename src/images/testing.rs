//! A registry that misbehaves on demand, and images for it.

use std::{
    collections::HashMap,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{
    Images,
    registry::{Client, Patience, digest_of},
};
use crate::config::Config;

/// A request as the registry saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
    /// The same as it came.
    pub raw: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What the registry answers; status 0 breaks the connection instead.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Content-Length if it is not the body's.
    pub length: Option<usize>,
    /// Silence after the body instead of the end.
    pub stall: bool,
    /// Bytes a second.
    pub speed: Option<usize>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::status(200)
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends only the first `bytes` of the body and then breaks the connection.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.length = Some(self.body.len());
        self.body.truncate(bytes);
        self
    }
}

/// A server on a loopback port that ends when dropped.
pub struct Server {
    pub host: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

impl Server {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, answer) = (log.clone(), answer.clone());
                connections.spawn(async move {
                    let _ = serve(stream, &log, &*answer).await;
                });
            }
        });
        Self {
            host,
            seen,
            _tasks: tasks,
        }
    }

    /// Requests whose path has `part`.
    pub fn seen(&self, part: &str) -> Vec<Seen> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Seen>>,
    answer: &(impl Fn(&Seen) -> Reply + Sync),
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(ToOwned::to_owned);
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    while bytes.len() < end + length {
        stream.read_buf(&mut bytes).await?;
    }
    let seen = Seen {
        method: first.next().unwrap_or_default(),
        path: first.next().unwrap_or_default(),
        headers,
        body: String::from_utf8_lossy(&bytes[end..]).into_owned(),
        raw: bytes[end..].to_vec(),
    };
    let reply = answer(&seen);
    let bodiless = seen.method == "HEAD";
    log.lock().unwrap().push(seen);
    if reply.status == 0 {
        return stream.shutdown().await;
    }
    let mut text = format!("HTTP/1.1 {} Test\r\nconnection: close\r\n", reply.status);
    text.push_str(&format!(
        "content-length: {}\r\n",
        reply.length.unwrap_or(reply.body.len())
    ));
    for (name, value) in &reply.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    stream.write_all(text.as_bytes()).await?;
    if !bodiless {
        match reply.speed {
            None => stream.write_all(&reply.body).await?,
            Some(speed) => {
                for piece in reply.body.chunks(speed.div_ceil(20)) {
                    stream.write_all(piece).await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
    if reply.stall {
        std::future::pending::<()>().await;
    }
    stream.shutdown().await
}

/// An image in pieces, as a registry has it.
#[derive(Clone)]
pub struct Fixture {
    pub id: String,
    pub digest: String,
    pub manifest: Vec<u8>,
    /// Digests, bottom first.
    pub layers: Vec<String>,
    /// Layers and configuration by digest.
    pub blobs: HashMap<String, Vec<u8>>,
}

/// A blob and the digest of the archive in it.
pub fn gzip(archive: &[u8]) -> (Vec<u8>, String) {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(archive).unwrap();
    (encoder.finish().unwrap(), digest_of(archive))
}

/// An image with `layers` (blob, diff ID), whose configuration has `mark` in its environment.
pub fn image(layers: &[(Vec<u8>, String)], mark: &str) -> Fixture {
    let diff_ids: Vec<&String> = layers.iter().map(|(_, diff_id)| diff_id).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Env": [format!("MARK={mark}")], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes();
    let mut blobs: HashMap<String, Vec<u8>> = HashMap::new();
    let id = digest_of(&config);
    let config_size = config.len();
    blobs.insert(id.clone(), config);
    let mut descriptors = Vec::new();
    let mut digests = Vec::new();
    for (blob, _) in layers {
        let digest = digest_of(blob);
        descriptors.push(serde_json::json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": blob.len(),
        }));
        blobs.insert(digest.clone(), blob.clone());
        digests.push(digest);
    }
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config_size},
        "layers": descriptors,
    })
    .to_string()
    .into_bytes();
    Fixture {
        id,
        digest: digest_of(&manifest),
        manifest,
        layers: digests,
        blobs,
    }
}

/// An image of one gzip layer with one file of random bytes.
pub fn small(mark: &str) -> Fixture {
    let archive = tar(&[(&format!("{mark}.txt"), &noise(100_000))]);
    image(&[gzip(&archive)], mark)
}

impl Fixture {
    /// What an orderly registry answers for this image under any tag; `None` if it is not about this image.
    pub fn answer(&self, seen: &Seen) -> Option<Reply> {
        let path = seen.path.split('?').next().unwrap_or_default();
        let (rest, last) = path.rsplit_once('/')?;
        if rest.ends_with("/manifests") && (last == self.digest || !last.starts_with("sha256:")) {
            let reply = Reply::ok(self.manifest.clone());
            return Some(reply.header("content-type", "application/vnd.oci.image.manifest.v1+json"));
        }
        let blob = self.blobs.get(last).filter(|_| rest.ends_with("/blobs"))?;
        let range = seen
            .header("range")
            .strip_prefix("bytes=")
            .and_then(|range| range.split_once('-'));
        let Some((from, last)) = range else {
            return Some(Reply::ok(blob.clone()));
        };
        let from: usize = from.parse().ok()?;
        let last = last.parse().unwrap_or(blob.len() - 1);
        let reply = Reply {
            status: 206,
            ..Reply::ok(&blob[from..=last])
        };
        Some(reply.header("content-range", format!("bytes {from}-{last}/{}", blob.len())))
    }
}

/// A plain ustar archive of regular files.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..116].copy_from_slice(b"0000000\0");
        header[116..124].copy_from_slice(b"0000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// Bytes that don't compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// An images room in a directory of its own, with little patience.
pub struct Lab {
    pub config: Config,
    pub images: Images,
}

impl Lab {
    pub async fn new(extra: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("wharf-images-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let mut config: Config = toml::from_str(&format!("state_dir = {directory:?}\n{extra}")).unwrap();
        config.run_dir = directory.join("run");
        std::fs::create_dir_all(&config.run_dir).unwrap();
        if !extra.contains("keep_partial_secs") {
            config.pull.keep_partial_secs = 0;
        }
        let images = open(&config).await;
        Self { config, images }
    }

    /// What a restart of the daemon sees.
    pub async fn reopen(&mut self) {
        self.images = open(&self.config).await;
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.config.state_dir.join("images").join(name)
    }

    /// Entries of a directory of the room.
    pub fn entries(&self, name: &str) -> usize {
        std::fs::read_dir(self.path(name)).unwrap().count()
    }

    /// Waits until nothing is under way or left in `tmp` and `trash`.
    pub async fn settled(&self) {
        self.until(|| self.entries("tmp") + self.entries("trash") == 0).await;
    }

    pub async fn until(&self, done: impl Fn() -> bool) {
        for _ in 0..500 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("it did not come about; left below {}", self.config.state_dir.display());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.config.state_dir);
        }
    }
}

async fn open(config: &Config) -> Images {
    let patience = Patience {
        stall: Duration::from_millis(300),
        back_off: Duration::from_millis(1),
        attempts: 4,
    };
    Images::open_with(config, Client::with_patience(config, patience))
        .await
        .unwrap()
}
