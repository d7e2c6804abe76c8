//! What a pull takes of the node's memory, whatever the image.

use std::time::Duration;

use wharf_e2e::{Daemon, Options, fixtures, own_memory, registry::WRITABLE};

/// KiB over what the idle daemon has.
const LIMIT: u64 = 64 << 10;

#[tokio::test]
async fn a_large_image_is_pulled_within_64_mib() {
    let daemon = Daemon::with(Options {
        writable_registry: true,
        ..Options::default()
    })
    .await;
    fixtures::make_big(&daemon.dir().join("pushed"), 4, 40).unwrap();
    // What every daemon has once it has worked belongs to idling.
    daemon.busybox().await;
    let idle = own_memory(daemon.pid());
    let name = format!("{WRITABLE}/big:latest");
    let mut most = 0;
    let watched = async {
        loop {
            most = most.max(own_memory(daemon.pid()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        pulled = daemon.cri.pull(&name) => drop(pulled.unwrap()),
        () = watched => unreachable!(),
    }
    let over = most.saturating_sub(idle);
    println!("{over} KiB over the idle {idle} KiB");
    assert!(over <= LIMIT, "the pull took {over} KiB over the idle {idle} KiB");
    daemon.finish().await;
}
