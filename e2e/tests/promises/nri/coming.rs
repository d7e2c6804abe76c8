//! How plugins come and go.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::sync::oneshot;
use wharf_e2e::nri::Reply;
use wharf_e2e::{Daemon, Options, container};

use super::{House, once, quiet};

#[tokio::test]
async fn a_plugin_that_hangs_or_dies_is_cut_off_and_work_goes_on() {
    let house = House::with("request_timeout_secs = 1", "builtin").await;
    let mut hangs = house.plugin("10", "hangs", once("CreateContainer", Reply::Hang)).await;
    let well = house.plugin("20", "well", quiet()).await;
    let pod = house.pod("hangs").await;
    let id = house.create(&pod, "main").await.unwrap();
    hangs.is_cut_off().await;
    well.hears("PostCreateContainer", &id).await;

    // One that goes in the middle of a question.
    let (gone, wait) = oneshot::channel::<()>();
    let dies = house
        .plugin("30", "dies", once("StartContainer", Reply::Wait(wait)))
        .await;
    let (cri, asked) = (house.daemon.cri.clone(), id.clone());
    let start = tokio::spawn(async move { cri.start(&asked).await });
    dies.hears("StartContainer", &id).await;
    dies.leave().await;
    start.await.unwrap().unwrap();
    drop(gone);
    assert!(house.daemon.log().contains("an NRI plugin is cut off"));
    house.daemon.finish().await;
}

#[tokio::test]
async fn who_connects_hears_of_exactly_all_and_so_after_a_restart() {
    let mut house = House::open().await;
    let pod = house.pod("all").await;
    let runs = house.create(&pod, "runs").await.unwrap();
    house.daemon.cri.start(&runs).await.unwrap();
    let waits = house.create(&pod, "waits").await.unwrap();
    let over = container("over", &house.daemon.busybox().await, "true");
    let over = house.daemon.started(&pod.0, &pod.1, &over).await;
    house.daemon.cri.exited(&over).await.unwrap();
    // Returns when plugins have been told of its end, if there were some.
    house.daemon.cri.stop(&over, 0).await.unwrap();
    let mut expected = vec![pod.0.clone(), runs.clone(), waits.clone()];
    expected.sort();
    let mut first = house.plugin("10", "first", quiet()).await;
    assert_eq!(first.hears("Synchronize", "").await.all, expected);

    house.daemon.end(Signal::SIGTERM).await.unwrap();
    first.is_cut_off().await;
    assert!(first.told().iter().any(|told| told.what == "Shutdown"));
    assert!(!house.socket().exists(), "the socket is left");
    house.daemon.start_again().await.unwrap();
    let again = house.plugin("10", "first", quiet()).await;
    assert_eq!(again.hears("Synchronize", "").await.all, expected);

    house.daemon.crash().await;
    let again = house.plugin("10", "first", quiet()).await;
    assert_eq!(again.hears("Synchronize", "").await.all, expected);
    // What was there before is told of like the rest.
    house.daemon.cri.stop(&runs, 0).await.unwrap();
    again.hears("StopContainer", &runs).await;
    house.daemon.finish().await;
}

#[tokio::test]
async fn many_are_made_while_plugins_come_and_none_is_missed_or_told_of_twice() {
    let house = House::open().await;
    let pod = house.pod("busy").await;
    let made = Arc::new(Mutex::new(Vec::new()));
    let creating = async {
        for at in 0..24 {
            let id = house.create(&pod, &format!("c{at}")).await.unwrap();
            made.lock().unwrap().push(id);
        }
    };
    let joining = async {
        let mut plugins = Vec::new();
        for at in 0..6 {
            plugins.push(house.plugin("10", &format!("p{at}"), quiet()).await);
        }
        plugins
    };
    let ((), plugins) = tokio::join!(creating, joining);
    let made = std::mem::take(&mut *made.lock().unwrap());
    for id in &made {
        for plugin in &plugins {
            let at_first = plugin.hears("Synchronize", "").await.all.contains(id);
            let later = plugin
                .heard_of(id)
                .iter()
                .filter(|what| *what == "CreateContainer")
                .count();
            assert_eq!(usize::from(at_first) + later, 1, "container {id}: {at_first} {later}");
        }
    }
    house.daemon.finish().await;
}

#[tokio::test]
async fn installed_plugins_are_started_configured_and_ended() {
    let dir = TempDir::with_prefix("we.nri.").unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["plugins", "conf.d"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let lab = wharf_e2e::lab::program("lab").unwrap();
    let put = |name: &str, line: &str| {
        let path = at("plugins").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{line}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    put(
        "10-given",
        &format!("exec {} nri-plugin {}", lab.display(), at("log").display()),
    );
    put("20-broken", "exit 1");
    put("wrong-name", "exit 1");
    std::fs::write(at("conf.d/given.conf"), "COLOUR=red\nSIZE=large\n").unwrap();
    let tables = format!(
        "[nri]\nenable = true\ndisable_connections = true\nsocket = '{root}/nri.sock'\nplugin_path = '{root}/plugins'\n\
         plugin_config_path = '{root}/conf.d'\n",
        root = dir.path().display()
    );
    let daemon = Daemon::with(Options {
        tables,
        ..Default::default()
    })
    .await;
    assert!(!at("nri.sock").exists());
    let (pod, id) = daemon.running("given", "exec sleep 1000").await;
    assert_eq!(
        daemon.cri.shell(&id, "echo $COLOUR $SIZE").await.unwrap(),
        "red large\n"
    );
    let log = std::fs::read_to_string(at("log")).unwrap();
    assert!(
        log.contains(&format!("RunPodSandbox {pod}")) && log.contains(&format!("CreateContainer {id}")),
        "{log}"
    );
    assert!(daemon.log().contains("20-broken") && daemon.log().contains("wrong-name"));
    // The harness fails when the plugin outlives the daemon.
    daemon.finish().await;
}
