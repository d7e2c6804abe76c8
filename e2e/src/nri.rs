//! An NRI plugin as anybody could write one, by the protocol's own documents: it shares no code with the daemon. A test
//! has it [`connect`] at the daemon's socket; as a program, [`run_installed`], it is one that the daemon starts.

use std::collections::HashMap;
use std::os::fd::FromRawFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use wharf_proto::{nri, ttrpc};

use crate::Result;

/// Which connection of the socket is whose.
const ASKED: u32 = 1;
const ASKING: u32 = 2;

/// Something that a plugin was told of.
#[derive(Debug, Clone)]
pub struct Told {
    /// The method.
    pub what: String,
    /// The pod, if the message has one.
    pub pod: nri::PodSandbox,
    /// The container, if the message has one.
    pub container: nri::Container,
    /// What `Synchronize` tells of, and whether `Configure` gave a configuration.
    pub all: Vec<String>,
    /// The limits that an update asks for.
    pub limits: Option<nri::LinuxResources>,
}

/// What a plugin answers: the encoded message, or a refusal.
pub type Answer = std::result::Result<Vec<u8>, String>;

/// What a plugin does when it is told of something; `None` is to agree.
pub type Behaviour = Box<dyn FnMut(&Told) -> Reply + Send>;

/// What a plugin does.
pub enum Reply {
    /// It agrees.
    Agree,
    /// It answers so.
    Say(Answer),
    /// It agrees when the test says so.
    Wait(oneshot::Receiver<()>),
    /// It never answers.
    Hang,
}

impl Reply {
    /// Answers with a message.
    pub fn with(message: &impl Message) -> Self {
        Self::Say(Ok(message.encode_to_vec()))
    }

    /// Says no.
    pub fn no(why: &str) -> Self {
        Self::Say(Err(why.to_owned()))
    }
}

/// A plugin that is there.
pub struct Plugin {
    told: Arc<Mutex<Vec<Told>>>,
    changed: watch::Receiver<usize>,
    asks: mpsc::UnboundedSender<(
        nri::UpdateContainersRequest,
        oneshot::Sender<nri::UpdateContainersResponse>,
    )>,
    task: tokio::task::JoinHandle<()>,
}

impl Plugin {
    /// Connects to the daemon's socket and registers; returns when the plugin has been told of all that there is.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(socket: &Path, index: &str, name: &str, behave: Behaviour) -> Result<Self> {
        let plugin = Self::enter(socket, index, name, behave).await?;
        plugin.hears("Synchronize", "").await;
        Ok(plugin)
    }

    /// As [`Plugin::connect`], without waiting.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn enter(socket: &Path, index: &str, name: &str, behave: Behaviour) -> Result<Self> {
        let stream = UnixStream::connect(socket).await?;
        let told = Arc::new(Mutex::new(Vec::new()));
        let (count, changed) = watch::channel(0);
        let (asks, to_ask) = mpsc::unbounded_channel();
        let (index, name, list) = (index.to_owned(), name.to_owned(), Arc::clone(&told));
        let task = tokio::spawn(async move {
            let note = move |one: &Told| {
                let mut list = list.lock().expect("no test panics while it notes");
                list.push(one.clone());
                count.send_replace(list.len());
            };
            let _ = serve(stream, &index, &name, behave, note, to_ask).await;
        });
        Ok(Self {
            told,
            changed,
            asks,
            task,
        })
    }

    /// All that it was told of, in order.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().expect("no test panics while it notes").clone()
    }

    /// Methods that it was told by of the container or pod with this id, in order.
    pub fn heard_of(&self, id: &str) -> Vec<String> {
        let about = |told: &Told| match told.container.id.is_empty() {
            true => told.pod.id == id,
            false => told.container.id == id,
        };
        self.told().into_iter().filter(about).map(|told| told.what).collect()
    }

    /// Waits until it has been told of this, of the container or pod with this id (empty: of any).
    ///
    /// # Panics
    /// When it is not.
    pub async fn hears(&self, what: &str, id: &str) -> Told {
        let found = || {
            self.told()
                .into_iter()
                .find(|told| told.what == what && (id.is_empty() || told.container.id == id || told.pod.id == id))
        };
        let mut changed = self.changed.clone();
        let heard = tokio::time::timeout(crate::PATIENCE, async {
            loop {
                if let Some(told) = found() {
                    return Some(told);
                }
                if changed.changed().await.is_err() {
                    return found();
                }
            }
        });
        match heard.await {
            Ok(Some(told)) => told,
            _ => panic!("the plugin never heard of {what} {id}; it heard {:?}", self.names()),
        }
    }

    fn names(&self) -> Vec<String> {
        self.told().into_iter().map(|told| told.what).collect()
    }

    /// Asks the daemon to change and stop containers.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn ask(&self, request: nri::UpdateContainersRequest) -> nri::UpdateContainersResponse {
        let (sender, answer) = oneshot::channel();
        self.asks.send((request, sender)).expect("the plugin is there");
        tokio::time::timeout(crate::PATIENCE, answer)
            .await
            .expect("the daemon answers")
            .expect("the connection stays open")
    }

    /// Waits until the daemon has closed its socket.
    ///
    /// # Panics
    /// When it does not.
    pub async fn is_cut_off(&mut self) {
        tokio::time::timeout(crate::PATIENCE, &mut self.task)
            .await
            .expect("the daemon closes the plugin's socket")
            .expect("the plugin does not panic");
    }

    /// Goes away at once.
    pub async fn leave(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Speaks the protocol until the daemon closes the socket.
async fn serve(
    mut stream: UnixStream,
    index: &str,
    name: &str,
    mut behave: Behaviour,
    note: impl Fn(&Told),
    mut to_ask: mpsc::UnboundedReceiver<(
        nri::UpdateContainersRequest,
        oneshot::Sender<nri::UpdateContainersResponse>,
    )>,
) -> Result {
    let register = nri::RegisterPluginRequest {
        plugin_name: name.to_owned(),
        plugin_idx: index.to_owned(),
        nri_version: "v0.12.0".to_owned(),
    };
    stream
        .write_all(&request(1, "RegisterPlugin", register.encode_to_vec()))
        .await?;
    let mut next = 1;
    let mut waiting: HashMap<u32, oneshot::Sender<nri::UpdateContainersResponse>> = HashMap::new();
    let (mut read, mut parts) = (Vec::new(), [Vec::new(), Vec::new()]);
    let (done, mut finished) = mpsc::unbounded_channel::<Vec<u8>>();
    loop {
        while let Some((connection, id, kind, content)) = take(&mut read, &mut parts) {
            if connection == ASKING {
                let response = ttrpc::Response::decode(content.as_slice())?;
                if let Some(waiting) = waiting.remove(&id) {
                    let _ = waiting.send(nri::UpdateContainersResponse::decode(response.payload.as_slice())?);
                }
                continue;
            }
            assert_eq!((connection, kind), (ASKED, 1), "a request on the plugin's connection");
            let asked = ttrpc::Request::decode(content.as_slice())?;
            let told = understand(&asked)?;
            note(&told);
            match behave(&told) {
                Reply::Agree => stream.write_all(&response(id, Ok(agree(&asked.method)))).await?,
                Reply::Say(answer) => stream.write_all(&response(id, answer)).await?,
                Reply::Wait(until) => {
                    let (done, content) = (done.clone(), agree(&asked.method));
                    tokio::spawn(async move {
                        let _ = until.await;
                        let _ = done.send(response(id, Ok(content)));
                    });
                }
                Reply::Hang => {}
            }
        }
        tokio::select! {
            count = stream.read_buf(&mut read) => if count? == 0 {
                return Ok(());
            },
            Some((ask, sender)) = to_ask.recv() => {
                next += 2;
                waiting.insert(next, sender);
                stream.write_all(&request(next, "UpdateContainers", ask.encode_to_vec())).await?;
            }
            Some(bytes) = finished.recv() => stream.write_all(&bytes).await?,
        }
    }
}

/// What the daemon asks, whichever of the messages it is.
fn understand(asked: &ttrpc::Request) -> Result<Told> {
    let mut told = Told {
        what: asked.method.clone(),
        pod: nri::PodSandbox::default(),
        container: nri::Container::default(),
        all: Vec::new(),
        limits: None,
    };
    let content = asked.payload.as_slice();
    match asked.method.as_str() {
        "Configure" => told.all.push(nri::ConfigureRequest::decode(content)?.config),
        "Synchronize" => {
            let all = nri::SynchronizeRequest::decode(content)?;
            told.all.extend(all.pods.into_iter().map(|pod| pod.id));
            told.all
                .extend(all.containers.into_iter().map(|container| container.id));
            told.all.sort();
        }
        "UpdatePodSandbox" => {
            let request = nri::UpdatePodSandboxRequest::decode(content)?;
            told.pod = request.pod.unwrap_or_default();
            told.limits = request.linux_resources;
        }
        "UpdateContainer" => {
            let request = nri::UpdateContainerRequest::decode(content)?;
            told.pod = request.pod.unwrap_or_default();
            told.container = request.container.unwrap_or_default();
            told.limits = request.linux_resources;
        }
        "Shutdown" => {}
        // All others begin with the pod, and the container if there is one.
        _ => {
            let request = nri::StopContainerRequest::decode(content)?;
            told.pod = request.pod.unwrap_or_default();
            told.container = request.container.unwrap_or_default();
        }
    }
    Ok(told)
}

/// The answer of one that wants nothing; to `Configure`, to hear of everything but to validate nothing.
fn agree(method: &str) -> Vec<u8> {
    match method {
        "Configure" => nri::ConfigureResponse { events: (1 << 13) - 1 }.encode_to_vec(),
        _ => Vec::new(),
    }
}

fn frame(connection: u32, id: u32, kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("a test's messages are small");
    let mut out = Vec::new();
    out.extend(connection.to_be_bytes());
    out.extend((length + 10).to_be_bytes());
    out.extend(length.to_be_bytes());
    out.extend(id.to_be_bytes());
    out.extend([kind, 0]);
    out.extend(content);
    out
}

fn request(id: u32, method: &str, payload: Vec<u8>) -> Vec<u8> {
    let request = ttrpc::Request {
        service: "nri.pkg.api.v1alpha1.Runtime".to_owned(),
        method: method.to_owned(),
        payload,
        ..Default::default()
    };
    frame(ASKING, id, 1, &request.encode_to_vec())
}

fn response(id: u32, answer: Answer) -> Vec<u8> {
    let response = match answer {
        Ok(payload) => ttrpc::Response { status: None, payload },
        Err(message) => ttrpc::Response {
            status: Some(ttrpc::Status { code: 2, message }),
            payload: Vec::new(),
        },
    };
    frame(ASKED, id, 2, &response.encode_to_vec())
}

/// Takes one message out of what has been read: connection, stream, type, content.
fn take(read: &mut Vec<u8>, parts: &mut [Vec<u8>; 2]) -> Option<(u32, u32, u8, Vec<u8>)> {
    let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    loop {
        for (connection, part) in [ASKED, ASKING].into_iter().zip(&mut *parts) {
            if part.len() < 10 || part.len() < 10 + number(part) as usize {
                continue;
            }
            let length = number(part) as usize;
            let message: Vec<u8> = part.drain(..10 + length).collect();
            return Some((connection, number(&message[4..]), message[8], message[10..].to_vec()));
        }
        let length = number(read.get(4..8)?) as usize;
        if read.len() < 8 + length {
            return None;
        }
        let bytes: Vec<u8> = read.drain(..8 + length).collect();
        parts[number(&bytes) as usize - 1].extend(&bytes[8..]);
    }
}

/// A plugin that the daemon has started: writes what it hears into the file `log`, and gives each container the variables
/// that its configuration names, a line each.
///
/// # Errors
/// When it was not started as plugins are.
pub async fn run_installed(log: &Path) -> Result {
    let descriptor: i32 = std::env::var("NRI_PLUGIN_SOCKET")?.parse()?;
    // SAFETY: whoever starts a plugin gives it this descriptor, and nothing else of this process knows it.
    let stream = unsafe { std::os::unix::net::UnixStream::from_raw_fd(descriptor) };
    stream.set_nonblocking(true)?;
    let (index, name) = (std::env::var("NRI_PLUGIN_IDX")?, std::env::var("NRI_PLUGIN_NAME")?);
    let variables = Arc::new(Mutex::new(String::new()));
    let wanted = Arc::clone(&variables);
    let behave = move |told: &Told| match told.what.as_str() {
        "Configure" => {
            wanted.lock().expect("one at a time").clone_from(&told.all[0]);
            Reply::Agree
        }
        "CreateContainer" => {
            let variables = wanted.lock().expect("one at a time");
            let env = variables.lines().filter_map(|line| line.split_once('='));
            Reply::with(&nri::CreateContainerResponse {
                adjust: Some(nri::ContainerAdjustment {
                    env: env
                        .map(|(key, value)| nri::KeyValue {
                            key: key.to_owned(),
                            value: value.to_owned(),
                        })
                        .collect(),
                    ..Default::default()
                }),
                ..Default::default()
            })
        }
        _ => Reply::Agree,
    };
    let log = log.to_owned();
    let note = move |told: &Told| {
        use std::io::Write as _;
        let id = if told.container.id.is_empty() {
            &told.pod.id
        } else {
            &told.container.id
        };
        let file = std::fs::File::options().create(true).append(true).open(&log);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{} {} {}", told.what, id, told.all.join(" "));
        }
    };
    let (_asks, to_ask) = mpsc::unbounded_channel();
    serve(
        UnixStream::from_std(stream)?,
        &index,
        &name,
        Box::new(behave),
        note,
        to_ask,
    )
    .await
}
