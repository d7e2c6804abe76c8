//! What Wharf promises, one test each. The modules follow the parts of the house; `rule_NN_` names a rule of the behaviour
//! contract between kubelet and a runtime.
//!
//! `WHARF_HANDLERS="builtin runc crun"` says on which runtime handlers the pod's life is tested (default: all).

mod archives;
mod artifacts;
mod bad_calls;
mod bad_input;
mod bad_requests;
mod cdi;
mod checkpoint;
mod cli;
mod cni_plugins;
mod commits;
mod compare;
mod copying;
mod cpus;
mod crash;
mod daemon;
mod detached;
mod disk_usage;
mod events;
mod exec;
mod exits;
mod fail_points;
mod forward;
mod fsck;
mod full_disk;
mod handler_settings;
mod history;
mod ids;
mod images;
mod inout;
mod lazy;
mod lazy_faults;
mod life;
mod limits;
mod logs;
mod meddled;
mod metrics;
mod migrate;
mod monitor_points;
mod monitors;
mod mounts;
mod net_devices;
mod network;
mod networks;
mod node_settings;
mod nri;
mod observability;
mod operations;
mod overload;
mod pod_checkpoint;
mod policy;
mod power_loss;
mod profiles;
mod pull_memory;
mod pulls;
mod quotas;
mod races;
mod reads;
mod reboot;
mod recovery;
mod registries;
mod restores;
mod rules;
mod rules_more;
mod rules_network;
mod rules_node;
mod rules_start;
mod security;
mod selinux;
mod several_hosts;
mod soak;
mod stats;
mod stops;
mod stream_lists;
mod streaming;
mod streaming_attach;
mod streaming_hostile;
mod streaming_leaks;
mod streaming_tls;
mod stuck;
mod syscalls;
mod systemd;
mod terminal;
mod traces;
mod traffic;
mod trust;
mod unclaimed;
mod update;
mod upgrade;
mod userns;
mod volumes;

/// Runs a test's body on each runtime handler that was asked for.
///
/// A daemon is started for each; the body gets it and ends it with `finish()`.
async fn on_each_handler<F: AsyncFn(wharf_e2e::Daemon)>(body: F) {
    for name in handlers() {
        println!("---- handler {name}");
        body(wharf_e2e::Daemon::with(wharf_e2e::Options::handler(&name)).await).await;
    }
}

/// The runtime handlers that were asked for.
fn handlers() -> impl Iterator<Item = String> {
    let names = std::env::var("WHARF_HANDLERS").unwrap_or_else(|_| "builtin runc crun".into());
    names
        .split_whitespace()
        .map(str::to_owned)
        .collect::<Vec<_>>()
        .into_iter()
}
