use std::path::Path;

use tokio_util::sync::CancellationToken;
use wharf_proto::{api::EventFilter, record::Owner};

use super::*;
use crate::node::Error;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("wharf-history-{name}-{}", std::process::id()));
    store::create_dir(&dir).unwrap();
    dir
}

fn open(dir: &Path, boot: &str) -> History {
    History::open(dir.to_owned(), boot, &TaskTracker::new())
}

fn container(id: &str) -> Event {
    Event {
        kind: EventKind::Container.into(),
        id: id.into(),
        name: format!("name-of-{id}"),
        ..Default::default()
    }
}

fn listen(history: &History, ask: Ask) -> crate::node::Result<Listener> {
    Listener::new(history, ask, &[Owner::Cri], CancellationToken::new())
}

fn behind(cursor: &str) -> Ask {
    Ask {
        cursor: cursor.into(),
        ..Default::default()
    }
}

async fn next(listener: &mut Listener) -> (String, String, String) {
    let event = listener.next().await.unwrap().expect("no end was asked for");
    (event.id.clone(), event.action.clone(), event.cursor.clone())
}

use Step::{Created, Deleted, Started, Stopped};

#[tokio::test]
async fn a_cursor_is_good_after_a_restart_and_what_happened_meanwhile_is_told() {
    let dir = scratch("restart");
    let history = open(&dir, "boot");
    let mut listener = listen(&history, Ask::default()).unwrap();
    history.object(&[Created, Started], container("a"));
    history.object(&[Created], container("b"));
    history.image(Change {
        id: "sha256:1".into(),
        name: "one:1".into(),
        action: "pull",
    });
    let mut cursor = String::new();
    for (id, action) in [("a", "create"), ("a", "start"), ("b", "create"), ("sha256:1", "pull")] {
        let event = next(&mut listener).await;
        assert_eq!((event.0.as_str(), event.1.as_str()), (id, action));
        if id == "a" {
            cursor = event.2;
        }
    }
    drop((history, listener));

    // Killed; `a` has ended and `b` is gone, another image has come and the first has another name.
    let history = open(&dir, "boot");
    let mut listener = listen(&history, behind(&cursor)).unwrap();
    history.object(&[Created, Started, Stopped], container("a"));
    let images = vec![
        ("sha256:1".to_owned(), vec!["one:2".to_owned()]),
        ("sha256:2".to_owned(), Vec::new()),
    ];
    history.settle(HashSet::from(["a".to_owned()]), images);
    for (id, action) in [
        ("b", "create"),
        ("sha256:1", "pull"),
        ("a", "stop"),
        ("b", "remove"),
        ("sha256:1", "untag"),
        ("sha256:1", "tag"),
        ("sha256:2", "pull"),
    ] {
        let event = next(&mut listener).await;
        assert_eq!((event.0.as_str(), event.1.as_str()), (id, action));
    }
    store::remove_dir(&dir).unwrap();
}

#[tokio::test]
async fn cursors_of_another_boot_and_of_events_that_are_gone_are_refused_with_advice() {
    let dir = scratch("gone");
    let history = open(&dir, "boot");
    let mut listener = listen(&history, Ask::default()).unwrap();
    history.object(&[Created], container("first"));
    let first = next(&mut listener).await.2;
    for number in 0..KEPT {
        history.object(&[Created, Deleted], container(&number.to_string()));
    }
    let mut newest = history.0.newest.subscribe();
    newest.wait_for(|newest| *newest > 2 * KEPT as u64).await.unwrap();
    let Err(Error::HistoryLost(text)) = listener.next().await else {
        panic!("it was overtaken");
    };
    assert!(text.contains("list what there is"), "{text}");
    let Err(Error::Gone(text)) = listen(&history, behind(&first)) else {
        panic!("events behind it are gone");
    };
    assert!(
        text.contains("not kept") && text.contains("list what there is"),
        "{text}"
    );
    drop(history);
    let history = open(&dir, "next boot");
    let Err(Error::Gone(text)) = listen(&history, behind(&first)) else {
        panic!("it is of another boot");
    };
    assert!(text.contains("another boot"), "{text}");
    for wrong in ["x", "1", ".1", "a.b"] {
        assert!(
            matches!(listen(&history, behind(wrong)), Err(Error::Invalid(_))),
            "{wrong}"
        );
    }
    store::remove_dir(&dir).unwrap();
}

#[tokio::test]
async fn half_an_event_at_the_end_of_the_file_is_left_out() {
    let dir = scratch("half");
    let history = open(&dir, "boot");
    let mut listener = listen(&history, Ask::default()).unwrap();
    history.object(&[Created, Started], container("a"));
    next(&mut listener).await;
    let (_, _, cursor) = next(&mut listener).await;
    drop((history, listener));
    let file = dir.join("events");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
    let history = open(&dir, "boot");
    // Whoever has seen it must not be told that all is well.
    assert!(matches!(listen(&history, behind(&cursor)), Err(Error::Invalid(_))));
    let before = format!("{}.1", cursor.split('.').next().unwrap());
    let mut listener = listen(&history, behind(&before)).unwrap();
    history.object(&[Created, Started], container("a"));
    assert_eq!(next(&mut listener).await.1, "start");
    store::remove_dir(&dir).unwrap();
}

#[tokio::test]
async fn filters_of_one_key_are_alternatives_and_keys_must_all_hold() {
    let dir = scratch("filters");
    let history = open(&dir, "boot");
    let filter = |key: &str, value: &str| EventFilter {
        key: key.into(),
        value: value.into(),
    };
    let ask = Ask {
        filters: vec![
            filter("type", "container"),
            filter("event", "stop"),
            filter("event", "remove"),
        ],
        ..Default::default()
    };
    let mut listener = listen(&history, ask).unwrap();
    history.image(Change {
        id: "sha256:1".into(),
        name: String::new(),
        action: "remove",
    });
    history.object(&[Created, Started, Stopped, Deleted], container("a"));
    assert_eq!(next(&mut listener).await.1, "stop");
    assert_eq!(next(&mut listener).await.1, "remove");
    let unknown = Ask {
        filters: vec![filter("colour", "red")],
        ..Default::default()
    };
    assert!(matches!(listen(&history, unknown), Err(Error::Invalid(_))));
    let over = Ask {
        since: 1,
        until: 2,
        ..Default::default()
    };
    assert!(listen(&history, over).unwrap().next().await.unwrap().is_none());
    store::remove_dir(&dir).unwrap();
}
