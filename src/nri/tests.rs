//! Plugins in this process, over a real socket.

use std::{
    path::{Path, PathBuf},
    result::Result,
    time::Duration,
};

use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
};
use wharf_proto::{
    nri::{
        ConfigureResponse, ContainerAdjustment, CreateContainerResponse, LinuxContainerUpdate, LinuxMemory,
        LinuxResources, OptionalInt64, RegisterPluginRequest, StopContainerResponse, SynchronizeRequest,
        SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse, ValidateContainerAdjustmentResponse,
    },
    ttrpc,
};

use super::{
    frame::{Decoder, Frame, Kind, PLUGIN, RUNTIME, encode},
    *,
};

/// What a plugin is asked; the answer, or a refusal.
type Behaviour = Box<dyn FnMut(&str, &[u8]) -> Option<Result<Vec<u8>, (i32, String)>> + Send>;

/// A plugin that notes what it is asked.
struct Fake {
    heard: mpsc::UnboundedReceiver<String>,
    asks: mpsc::UnboundedSender<UpdateContainersRequest>,
    answers: mpsc::UnboundedReceiver<UpdateContainersResponse>,
    task: tokio::task::JoinHandle<()>,
}

impl Fake {
    /// Connects, and registers under this name. What `behave` does not answer is answered with nothing.
    async fn connect(socket: &Path, index: &str, name: &str, events: i32, mut behave: Behaviour) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let (told, heard) = mpsc::unbounded_channel();
        let (asks, mut to_ask) = mpsc::unbounded_channel::<UpdateContainersRequest>();
        let (answered, answers) = mpsc::unbounded_channel();
        let register = RegisterPluginRequest {
            plugin_name: name.into(),
            plugin_idx: index.into(),
            nri_version: String::new(),
        };
        let task = tokio::spawn(async move {
            let request = |method: &str, content: Vec<u8>| ttrpc::Request {
                service: "nri.pkg.api.v1alpha1.Runtime".into(),
                method: method.into(),
                payload: content,
                ..Default::default()
            };
            let first = request("RegisterPlugin", register.encode_to_vec()).encode_to_vec();
            stream
                .write_all(&encode(RUNTIME, 1, Kind::Request, &first).unwrap())
                .await
                .unwrap();
            let (mut decoder, mut stream_id) = (Decoder::default(), 1);
            loop {
                while let Some(frame) = decoder.next().unwrap() {
                    if frame.kind == Kind::Response {
                        let response = ttrpc::Response::decode(frame.content).unwrap();
                        if frame.stream > 1 {
                            let _ = answered.send(Message::decode(response.payload.as_slice()).unwrap());
                        }
                        continue;
                    }
                    let Some(answer) = asked(&frame, events, &mut behave, &told) else {
                        continue;
                    };
                    let (status, payload) = match answer {
                        Ok(payload) => (None, payload),
                        Err((code, message)) => (Some(ttrpc::Status { code, message }), Vec::new()),
                    };
                    let response = ttrpc::Response { status, payload }.encode_to_vec();
                    let bytes = encode(PLUGIN, frame.stream, Kind::Response, &response).unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
                tokio::select! {
                    read = stream.read_buf(decoder.buffer()) => match read {
                        Ok(0) | Err(_) => return,
                        Ok(_) => {}
                    },
                    Some(ask) = to_ask.recv() => {
                        stream_id += 2;
                        let ask = request("UpdateContainers", ask.encode_to_vec()).encode_to_vec();
                        let bytes = encode(RUNTIME, stream_id, Kind::Request, &ask).unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                }
            }
        });
        Self {
            heard,
            asks,
            answers,
            task,
        }
    }

    /// The next that it is asked.
    async fn next(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(10), self.heard.recv())
            .await
            .expect("the plugin is asked")
            .expect("the plugin is there")
    }
}

/// Answers one request; nothing for one that hangs.
fn asked(
    frame: &Frame,
    events: i32,
    behave: &mut Behaviour,
    told: &mpsc::UnboundedSender<String>,
) -> Option<Result<Vec<u8>, (i32, String)>> {
    let request = ttrpc::Request::decode(frame.content.clone()).unwrap();
    let name = match request.method.as_str() {
        "Synchronize" => {
            let all = SynchronizeRequest::decode(request.payload.as_slice()).unwrap();
            let mut ids: Vec<_> = all.pods.into_iter().map(|pod| pod.id).collect();
            ids.extend(all.containers.into_iter().map(|one| one.id));
            ids.sort();
            format!("Synchronize {}", ids.join(" "))
        }
        "StateChange" => {
            let change = wharf_proto::nri::StateChangeEvent::decode(request.payload.as_slice()).unwrap();
            format!("StateChange {}", change.event().as_str_name())
        }
        other => other.to_owned(),
    };
    if request.method != "Configure" {
        let _ = told.send(name);
    }
    if let Some(answer) = behave(&request.method, &request.payload) {
        return match answer {
            // What hangs.
            Err((-1, _)) => None,
            answer => Some(answer),
        };
    }
    Some(Ok(match request.method.as_str() {
        "Configure" => ConfigureResponse { events }.encode_to_vec(),
        "Synchronize" => SynchronizeResponse::default().encode_to_vec(),
        _ => Vec::new(),
    }))
}

/// A room at a socket of its own, and what it asks.
struct House {
    nri: Nri,
    asks: Asks,
    socket: PathBuf,
}

impl House {
    async fn open(name: &str, edit: impl FnOnce(&mut config::Nri)) -> Self {
        let socket = std::env::temp_dir().join(format!("wharf-nri-{name}-{}.sock", std::process::id()));
        let mut settings = config::Nri {
            enable: true,
            socket: socket.clone(),
            plugin_path: "/nonexistent".into(),
            request_timeout_secs: 1,
            registration_timeout_secs: 1,
            ..Default::default()
        };
        edit(&mut settings);
        let (nri, mut asks) = Nri::new(&settings);
        let (started, ()) = tokio::join!(nri.start(), nothing_there(&mut asks));
        started.unwrap();
        Self { nri, asks, socket }
    }

    /// Answers the next question for all that there is.
    async fn state(&mut self, pods: &[&str], containers: &[&str]) {
        match self.asks.recv().await {
            Some(Ask::State(sender)) => drop(sender.send(State {
                pods: pods.iter().map(|id| pod(id)).collect(),
                containers: containers.iter().map(|id| container(id)).collect(),
            })),
            other => panic!("{other:?} is asked instead of the state"),
        }
    }

    async fn plugin(&mut self, index: &str, name: &str, events: &[Event], behave: Behaviour) -> Fake {
        let bits = events.iter().fold(0, |bits, event| bits | event::bit(*event));
        let mut fake = Fake::connect(&self.socket, index, name, bits, behave).await;
        self.state(&[], &[]).await;
        assert!(fake.next().await.starts_with("Synchronize"));
        // It has joined when it is counted.
        while self
            .nri
            .inner
            .turn
            .lock()
            .await
            .plugins
            .iter()
            .all(|plugin| plugin.identity.base != name)
        {
            tokio::task::yield_now().await;
        }
        fake
    }

    async fn close(self) {
        self.nri.shut_down().await;
        assert!(!self.socket.exists(), "the socket is left");
    }
}

/// Answers that there is nothing.
async fn nothing_there(asks: &mut Asks) {
    match asks.recv().await {
        Some(Ask::State(sender)) => drop(sender.send(State::default())),
        other => panic!("{other:?} is asked instead of the state"),
    }
}

pub(super) fn pod(id: &str) -> PodSandbox {
    PodSandbox {
        id: id.into(),
        ..Default::default()
    }
}

pub(super) fn container(id: &str) -> Container {
    Container {
        id: id.into(),
        ..Default::default()
    }
}

fn quiet() -> Behaviour {
    Box::new(|_, _| None)
}

#[tokio::test]
async fn plugins_hear_in_their_order_and_the_first_no_counts() {
    let mut house = House::open("order", |_| {}).await;
    let events = [Event::RunPodSandbox, Event::StopPodSandbox, Event::RemovePodSandbox];
    let mut second = house.plugin("20", "second", &events, quiet()).await;
    let refuses =
        Box::new(|method: &str, _: &[u8]| (method == "RunPodSandbox").then(|| Err((2, "not on this node".to_owned()))));
    let mut first = house.plugin("10", "first", &events, refuses).await;
    let error = house.nri.run_pod(pod("p")).await.unwrap_err().to_string();
    assert_eq!(error, "NRI plugin 10-first, RunPodSandbox: not on this node");
    // Both can give up what they hold for it; the second has not been asked for it.
    for expected in ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"] {
        assert_eq!(first.next().await, expected);
    }
    assert_eq!(second.next().await, "StopPodSandbox");
    house.close().await;
}

#[tokio::test]
async fn ends_are_told_once_and_only_of_what_is_known() {
    let mut house = House::open("ends", |_| {}).await;
    let mut fake = house.plugin("10", "all", &[], quiet()).await;
    let nri = house.nri.clone();
    nri.run_pod(pod("p")).await.unwrap();
    nri.create_container(pod("p"), container("c")).await.unwrap();
    let subject = || async { (pod("p"), container("c")) };
    for _ in 0..2 {
        nri.stop_container("c", subject).await;
    }
    nri.stop_container("unknown", || async { (pod("p"), container("unknown")) })
        .await;
    for _ in 0..2 {
        nri.remove_container("c", subject).await;
        nri.stop_pod("p", || async { pod("p") }).await;
    }
    for _ in 0..2 {
        nri.remove_pod("p", || async { pod("p") }).await;
    }
    let expected = [
        "RunPodSandbox",
        "CreateContainer",
        "ValidateContainerAdjustment",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
        "Shutdown",
    ];
    house.close().await;
    for expected in expected {
        assert_eq!(fake.next().await, expected);
    }
    assert!(fake.heard.recv().await.is_none(), "more was told");
}

#[tokio::test]
async fn one_that_does_not_answer_is_cut_off_and_holds_up_nobody() {
    let mut house = House::open("hang", |_| {}).await;
    let hangs = Box::new(|method: &str, _: &[u8]| (method == "CreateContainer").then(|| Err((-1, String::new()))));
    let slow = house.plugin("10", "slow", &[Event::CreateContainer], hangs).await;
    let mut quick = house.plugin("20", "quick", &[Event::CreateContainer], quiet()).await;
    let begun = std::time::Instant::now();
    house.nri.create_container(pod("p"), container("c")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(quick.next().await, "CreateContainer");
    // Its socket is closed.
    slow.task.await.unwrap();
    assert_eq!(house.nri.inner.turn.lock().await.plugins.len(), 1);
    house.close().await;
}

#[tokio::test]
async fn plugins_of_older_versions_hear_by_state_change() {
    let mut house = House::open("older", |_| {}).await;
    let older = Box::new(|method: &str, _: &[u8]| {
        (method == "RunPodSandbox").then(|| Err((connection::code::UNIMPLEMENTED, "no such method".to_owned())))
    });
    let mut fake = house.plugin("10", "older", &[Event::RunPodSandbox], older).await;
    house.nri.run_pod(pod("p")).await.unwrap();
    house.nri.run_pod(pod("q")).await.unwrap();
    for expected in [
        "RunPodSandbox",
        "StateChange RUN_POD_SANDBOX",
        "StateChange RUN_POD_SANDBOX",
    ] {
        assert_eq!(fake.next().await, expected);
    }
    house.close().await;
}

#[tokio::test]
async fn who_comes_late_is_told_of_what_is_on_its_way() {
    let mut house = House::open("late", |_| {}).await;
    house.nri.run_pod(pod("p")).await.unwrap();
    house.nri.create_container(pod("p"), container("c")).await.unwrap();
    // Neither is listed yet; another is, and has not been told of.
    let mut fake = Fake::connect(&house.socket, "10", "late", 0, quiet()).await;
    house.state(&["other"], &["more"]).await;
    assert_eq!(fake.next().await, "Synchronize c p");
    house.close().await;
}

#[tokio::test]
async fn a_validator_has_the_last_word() {
    let mut house = House::open("validate", |_| {}).await;
    let rejects = Box::new(|method: &str, _: &[u8]| {
        let verdict = ValidateContainerAdjustmentResponse {
            reject: true,
            reason: "no".into(),
        };
        (method == "ValidateContainerAdjustment").then(|| Ok(verdict.encode_to_vec()))
    });
    let events = [
        Event::ValidateContainerAdjustment,
        Event::StopContainer,
        Event::RemoveContainer,
    ];
    let mut fake = house.plugin("10", "strict", &events, rejects).await;
    let error = house.nri.create_container(pod("p"), container("c")).await.unwrap_err();
    assert_eq!(error.to_string(), "NRI validator 10-strict: no");
    for expected in ["ValidateContainerAdjustment", "StopContainer", "RemoveContainer"] {
        assert_eq!(fake.next().await, expected);
    }
    house.close().await;
}

#[tokio::test]
async fn the_validator_that_is_built_in_asks_for_plugins() {
    let mut house = House::open("required", |settings| {
        settings.default_validator.enable = true;
        settings.default_validator.required_plugins = vec!["needed".into()];
    })
    .await;
    let error = house.nri.create_container(pod("p"), container("c")).await.unwrap_err();
    assert!(error.to_string().contains("needed"), "{error}");
    let _fake = house.plugin("10", "needed", &[Event::StopPodSandbox], quiet()).await;
    house.nri.create_container(pod("p"), container("c")).await.unwrap();
    house.close().await;
}

fn update(id: &str) -> ContainerUpdate {
    let memory = LinuxMemory {
        limit: Some(OptionalInt64 { value: 1 << 30 }),
        ..Default::default()
    };
    ContainerUpdate {
        container_id: id.into(),
        linux: Some(LinuxContainerUpdate {
            resources: Some(LinuxResources {
                memory: Some(memory),
                ..Default::default()
            }),
        }),
        ignore_failure: false,
    }
}

#[tokio::test]
async fn updates_and_evictions_are_made_before_the_call_returns() {
    let mut house = House::open("updates", |_| {}).await;
    let wants = Box::new(|method: &str, _: &[u8]| match method {
        "CreateContainer" => Some(Ok(CreateContainerResponse {
            adjust: Some(ContainerAdjustment::default()),
            update: vec![update("other")],
            evict: vec![ContainerEviction {
                container_id: "third".into(),
                reason: "room".into(),
            }],
        }
        .encode_to_vec())),
        "StopContainer" => Some(Ok(StopContainerResponse {
            update: vec![update("left")],
        }
        .encode_to_vec())),
        _ => None,
    });
    let fake = house
        .plugin("10", "wants", &[Event::CreateContainer, Event::StopContainer], wants)
        .await;
    let nri = house.nri.clone();
    let create = tokio::spawn(async move { nri.create_container(pod("p"), container("c")).await });
    let Some(Ask::Change {
        updates,
        evictions,
        failed,
        ..
    }) = house.asks.recv().await
    else {
        panic!("a change is asked for")
    };
    assert_eq!(
        (updates[0].container_id.as_str(), evictions[0].container_id.as_str()),
        ("other", "third")
    );
    assert!(!create.is_finished());
    failed.send(Vec::new()).unwrap();
    create.await.unwrap().unwrap();

    let nri = house.nri.clone();
    let stop = tokio::spawn(async move { nri.stop_container("c", || async { (pod("p"), container("c")) }).await });
    let Some(Ask::Change { updates, failed, .. }) = house.asks.recv().await else {
        panic!("a change is asked for")
    };
    assert_eq!(updates[0].container_id, "left");
    failed.send(Vec::new()).unwrap();
    stop.await.unwrap();

    // Asked for by the plugin, on its own account.
    let mut fake = fake;
    let asked = UpdateContainersRequest {
        update: vec![update("a"), update("b")],
        evict: Vec::new(),
    };
    fake.asks.send(asked).unwrap();
    let Some(Ask::Change {
        plugin,
        updates,
        failed,
        ..
    }) = house.asks.recv().await
    else {
        panic!("a change is asked for")
    };
    assert_eq!(plugin, "10-wants");
    failed.send(vec![updates[1].clone()]).unwrap();
    let answer = fake.answers.recv().await.unwrap();
    assert_eq!(answer.failed[0].container_id, "b");
    house.close().await;
}

#[tokio::test]
async fn who_does_not_register_properly_is_sent_away() {
    let mut house = House::open("register", |_| {}).await;
    // Says nothing.
    let mut silent = UnixStream::connect(&house.socket).await.unwrap();
    // Speaks something else.
    let mut noise = UnixStream::connect(&house.socket).await.unwrap();
    noise.write_all(&[0xff; 64]).await.unwrap();
    let wrong = Fake::connect(&house.socket, "x", "name", 0, quiet()).await;
    let unknown = Fake::connect(&house.socket, "10", "events", 1 << 20, quiet()).await;
    for stream in [&mut silent, &mut noise] {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "the connection stays open");
    }
    wrong.task.await.unwrap();
    unknown.task.await.unwrap();
    // Others are not kept out by it.
    let _fake = house.plugin("10", "good", &[], quiet()).await;
    house.close().await;
}

#[tokio::test]
async fn a_socket_that_somebody_serves_is_left_alone() {
    let house = House::open("taken", |_| {}).await;
    let settings = config::Nri {
        socket: house.socket.clone(),
        plugin_path: "/nonexistent".into(),
        ..Default::default()
    };
    let (second, mut asks) = Nri::new(&settings);
    let (started, ()) = tokio::join!(second.start(), nothing_there(&mut asks));
    let error = started.unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    house.close().await;
}
