//! NRI plugins: what they hear, what they change, and what becomes of those that do not behave.

mod changes;
mod coming;
mod life;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;
use wharf_e2e::cri::Answer;
use wharf_e2e::nri::{Behaviour, Plugin, Reply, Told};
use wharf_e2e::{Daemon, Options, container};
use wharf_proto::{cri as pb, nri};

/// A daemon that serves plugins, and where.
struct House {
    daemon: Daemon,
    dir: TempDir,
}

impl House {
    async fn open() -> Self {
        Self::with("", "builtin").await
    }

    /// With more lines in the table, on this handler.
    async fn with(more: &str, handler: &str) -> Self {
        let dir = TempDir::with_prefix("we.nri.").unwrap();
        // Hooks and mounts of containers with other users look in here.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut options = Options::handler(handler);
        let at = dir.path().display();
        options.tables = format!(
            "[nri]\nenable = true\nsocket = '{at}/nri.sock'\nplugin_path = '{at}/plugins'\n\
             plugin_config_path = '{at}/conf.d'\n{more}\n[cdi]\nspec_dirs = ['{at}/cdi']\n"
        );
        Self {
            daemon: Daemon::with(options).await,
            dir,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nri.sock")
    }

    async fn plugin(&self, index: &str, name: &str, behave: Behaviour) -> Plugin {
        Plugin::connect(&self.socket(), index, name, behave).await.unwrap()
    }

    async fn pod(&self, name: &str) -> (String, pb::PodSandboxConfig) {
        let config = self.daemon.pod(name);
        (self.daemon.cri.run_pod(&config, "").await.unwrap(), config)
    }

    async fn create(&self, pod: &(String, pb::PodSandboxConfig), name: &str) -> Answer<String> {
        let config = container(name, &self.daemon.busybox().await, "exec sleep 1000");
        self.daemon.cri.create(&pod.0, &config, &pod.1).await
    }
}

fn quiet() -> Behaviour {
    Box::new(|_| Reply::Agree)
}

/// Does this once, when it is told of that, and agrees otherwise.
fn once(what: &'static str, reply: Reply) -> Behaviour {
    let mut reply = Some(reply);
    Box::new(move |told: &Told| match told.what == what {
        true => reply.take().unwrap_or(Reply::Agree),
        false => Reply::Agree,
    })
}

fn adjusting(adjust: nri::ContainerAdjustment) -> Behaviour {
    Box::new(move |told: &Told| match told.what.as_str() {
        "CreateContainer" => Reply::with(&nri::CreateContainerResponse {
            adjust: Some(adjust.clone()),
            ..Default::default()
        }),
        _ => Reply::Agree,
    })
}

fn env(key: &str, value: &str) -> nri::KeyValue {
    nri::KeyValue {
        key: key.into(),
        value: value.into(),
    }
}

fn memory(bytes: i64) -> nri::LinuxResources {
    nri::LinuxResources {
        memory: Some(nri::LinuxMemory {
            limit: Some(nri::OptionalInt64 { value: bytes }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn update(id: &str, resources: nri::LinuxResources) -> nri::ContainerUpdate {
    nri::ContainerUpdate {
        container_id: id.into(),
        linux: Some(nri::LinuxContainerUpdate {
            resources: Some(resources),
        }),
        ignore_failure: false,
    }
}

async fn limit_of(daemon: &Daemon, id: &str) -> i64 {
    let status = daemon.cri.status(id).await.unwrap();
    let linux = status.resources.and_then(|resources| resources.linux);
    linux.unwrap_or_default().memory_limit_in_bytes
}
