//! The events that Wharf keeps: `wharf events`, and a cursor to come back to.

use nix::sys::signal::Signal;
use tonic::{Code, Streaming};
use wharf_e2e::{Daemon, PATIENCE, container};
use wharf_proto::api::{self, events_message::Message, wharf_client::WharfClient};

async fn listen(daemon: &Daemon, request: api::EventsRequest) -> Result<Streaming<api::EventsMessage>, tonic::Status> {
    let channel = wharf_e2e::cri::channel(&daemon.socket).await.unwrap();
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("wharf-owner", "all".parse().unwrap());
    Ok(WharfClient::new(channel).events(request).await?.into_inner())
}

async fn message(events: &mut Streaming<api::EventsMessage>) -> Message {
    let message = tokio::time::timeout(PATIENCE, events.message()).await;
    let message = message.expect("an event is due").unwrap().expect("the stream goes on");
    message.message.unwrap()
}

async fn event(events: &mut Streaming<api::EventsMessage>) -> api::Event {
    loop {
        if let Message::Event(event) = message(events).await {
            return event;
        }
    }
}

fn behind(cursor: &str) -> api::EventsRequest {
    api::EventsRequest {
        cursor: cursor.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_cursor_outlives_the_daemon_and_misses_nothing() {
    let mut daemon = Daemon::start().await;
    let mut events = listen(&daemon, api::EventsRequest::default()).await.unwrap();
    let Message::Begin(begin) = message(&mut events).await else {
        panic!("the first message says where it begins");
    };
    let image = daemon.busybox().await;
    let pulled = event(&mut events).await;
    assert_eq!((pulled.action.as_str(), pulled.name.as_str()), ("pull", image.as_str()));
    let config = daemon.pod("kept");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let short = container("short", &image, "exit 5");
    let long = container("long", &image, "trap 'exit 6' TERM; while :; do sleep 0.1; done");
    let short = daemon.started(&pod, &config, &short).await;
    let long = daemon.started(&pod, &config, &long).await;
    daemon.cri.exited(&short).await.unwrap();
    let mut seen = Vec::new();
    let mut cursor = String::new();
    while seen.len() < 7 {
        let event = event(&mut events).await;
        cursor.clone_from(&event.cursor);
        seen.push(event);
    }
    let of = |events: &[api::Event], id: &str| -> Vec<String> {
        events
            .iter()
            .filter(|event| event.id == id)
            .map(|event| event.action.clone())
            .collect()
    };
    assert_eq!(of(&seen, &pod), ["create", "start"]);
    assert_eq!(of(&seen, &short), ["create", "start", "stop"]);
    let ended = seen.iter().find(|event| event.action == "stop").unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (Some(5), "Error"));
    assert_eq!(
        (ended.pod.as_str(), ended.name.as_str(), ended.image.as_str()),
        ("kept", "short", image.as_str())
    );

    // It is killed; the container ends while nobody is there.
    daemon.end(Signal::SIGKILL).await.unwrap();
    let main = daemon
        .lab
        .processes()
        .into_iter()
        .find(|(_, line)| line.contains("trap 'exit 6'"))
        .unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(main.0), Signal::SIGTERM).unwrap();
    wharf_e2e::eventually("it ends", async || {
        !daemon
            .lab
            .processes()
            .iter()
            .any(|(_, line)| line.contains("trap 'exit 6'"))
    })
    .await;
    daemon.start_again().await.unwrap();
    let mut again = listen(&daemon, behind(&cursor)).await.unwrap();
    let missed = event(&mut again).await;
    assert_eq!(
        (missed.id.as_str(), missed.action.as_str(), missed.exit_code),
        (long.as_str(), "stop", Some(6))
    );
    daemon.cri.remove(&short).await.unwrap();
    assert_eq!(event(&mut again).await.action, "remove");
    // All of it once more, from where the first listener began: the same, in the same order.
    let mut all = listen(&daemon, behind(&begin.cursor)).await.unwrap();
    assert_eq!(event(&mut all).await, pulled);
    for event_before in &seen {
        assert_eq!(event(&mut all).await, *event_before);
    }

    // An orderly end, and one of the run directory's content, as after a reboot.
    daemon.end(Signal::SIGTERM).await.unwrap();
    daemon.start_again().await.unwrap();
    listen(&daemon, behind(&cursor)).await.unwrap();
    daemon.end(Signal::SIGTERM).await.unwrap();
    std::fs::remove_file(daemon.run_dir.join("events")).unwrap();
    daemon.start_again().await.unwrap();
    let error = match listen(&daemon, behind(&cursor)).await {
        Err(error) => error,
        Ok(_) => panic!("what happened in between can't be known"),
    };
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    assert!(error.message().contains("list what there is"), "{error}");
    daemon.finish().await;
}

#[tokio::test]
async fn wharf_events_shows_what_was_in_lines_and_as_json() {
    let daemon = Daemon::start().await;
    let image = daemon.busybox().await;
    let (pod, id) = daemon.running("shown", "exit 0").await;
    daemon.cri.exited(&id).await.unwrap();
    daemon.gone(&pod).await;
    let run = async |args: &[&str]| {
        let output = daemon.wharf(args).output().await.unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let tagged = run(&["tag", &image, "mine:1"]).await;
    assert!(tagged.contains("mine:1"), "{tagged}");
    run(&["rmi", "mine:1"]).await;
    let text = run(&["events", "--since", "10m", "--until", "0s"]).await;
    let words: Vec<_> = text
        .lines()
        .map(|line| line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let wanted = [
        "image pull",
        "pod create",
        "pod start",
        "container create",
        "container start",
        "container stop",
        "pod stop",
        "container remove",
        "pod remove",
        "image tag",
        "image remove",
    ];
    assert_eq!(words, wanted, "{text}");
    let json = run(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "--filter",
        "type=container",
        "--filter",
        "event=stop",
        "-o",
        "json",
    ])
    .await;
    let event: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
    assert_eq!(
        (event["exitCode"].as_i64(), event["pod"].as_str()),
        (Some(0), Some("shown")),
        "{event}"
    );
    let cursor = event["cursor"].as_str().unwrap();
    let rest = run(&["events", "--cursor", cursor, "--until", "0s", "--filter", "type=pod"]).await;
    assert_eq!(rest.lines().count(), 2, "{rest}");
    let wrong = daemon
        .wharf(&["events", "--filter", "colour=red"])
        .output()
        .await
        .unwrap();
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("no filter"),
        "{wrong:?}"
    );
    daemon.finish().await;
}
