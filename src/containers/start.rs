//! Starting a container, and rotating its log.
//!
//! The runtime's create and start both happen here, not in CreateContainer: a command that does not exist must leave
//! an EXITED container (contract rule 16) with every handler, an update before the start is a change of the spec and
//! nothing else, and a container that is never started costs no process.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use sha2::Digest as _;
use wharf_proto::{
    cri::ContainerConfig,
    monitor::{self, ErrorKind},
    record::{self, ContainerState, Exit},
};

use super::{Container, Error, Result, Tools, checkpoint::program, cpus, create, ending, is_gone, restore};
use crate::{runtime::seccomp_compile, sandbox, store};

/// Exit code of a container that could not be started (feature row B3).
const START_FAILED_CODE: i32 = 128;

/// How long it may take to settle a container whose monitor ended while it was started.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// Starts a created container. `others` are the pod's other containers.
///
/// # Errors
/// [`Error::State`] when it is not in state CREATED, its pod is not ready or its target does not run any more; [`Error::Start`] when its process could
/// not be started, after which it is EXITED.
pub async fn start(tools: &Tools, container: &Container, others: &[Arc<Container>]) -> Result<()> {
    let _one_at_a_time = container.operation.lock().await;
    let record = container.record.get();
    if record.state() != ContainerState::ContainerCreated {
        let state = record.state().as_str_name().trim_start_matches("CONTAINER_");
        return Err(Error::State(format!(
            "container {} is {state}, only a created one can be started",
            container.id
        )));
    }
    if !container.sandbox.is_ready() {
        return Err(Error::State(format!(
            "pod sandbox {} is not ready",
            container.sandbox.id
        )));
    }
    // The target of a PID namespace may have ended since: its number in the spec can be another process's by now.
    create::pid_namespace(container, &record.config.clone().unwrap_or_default(), others)?;
    let monitor = container.monitor()?;
    container.fail_point("start.begin").await?;
    container.stage.enter("log and seccomp filter");
    container
        .record
        .change(|record| record.state = ContainerState::ContainerStarting.into())
        .await?;
    container.fail_point("start.noted").await?;
    let mut changes = container.record.subscribe();
    let started = match prepared(tools, container, &record).await {
        Ok(request) => {
            container.stage.enter("monitor and runtime");
            monitor.start(request).await.map_err(Failure::from)
        }
        Err(error) => Err(Failure::Refused(error.to_string())),
    };
    if record.restore {
        forget_dump(container).await;
    }
    match started {
        Ok(started) => {
            container.set_pid(started.pid);
            let edit = |record: &mut record::Container| {
                record.started_at = started.started_at;
                // A short-lived process may have ended, and been recorded, already.
                if record.state() == ContainerState::ContainerStarting {
                    record.state = ContainerState::ContainerRunning.into();
                }
            };
            let noted = match container.fail_point("start.started").await {
                Ok(()) => container.record.change(edit).await.map_err(Error::from),
                Err(error) => Err(error),
            };
            if noted.is_err() {
                container.record.publish_unwritten(edit);
            }
            noted.map(drop)
        }
        Err(Failure::MonitorGone(message)) => {
            let settled = changes.wait_for(|record| record.state() != ContainerState::ContainerStarting);
            let _ = tokio::time::timeout(SETTLE_LIMIT, settled).await;
            Err(Error::Start {
                id: container.id.clone(),
                message,
            })
        }
        Err(Failure::Refused(message)) => {
            let exit = Exit {
                code: START_FAILED_CODE,
                reason: "StartError".into(),
                message: message.clone(),
                finished_at: store::now(),
                ..Default::default()
            };
            ending::finish(container, exit).await?;
            if let Err(error) = ending::release(tools, container).await {
                tracing::warn!(container = container.id, %error, "could not release all of a container that failed to start");
            }
            Err(Error::Start {
                id: container.id.clone(),
                message,
            })
        }
    }
}

/// All that must be there before the monitor is asked. What fails here fails the start as the runtime's own refusal does
/// (contract rule 16).
async fn prepared(tools: &Tools, container: &Container, record: &record::Container) -> Result<monitor::Start> {
    let mut request = request(tools, container, record).await?;
    if record.restore {
        request.restore = Some(monitor::Restore {
            criu: program::find(container)?.display().to_string(),
            images: restore::images(container).display().to_string(),
            work: restore::directory(container).display().to_string(),
        });
    }
    let devices = sandbox::lend(&tools.mechanisms, &container.sandbox, &record.net_devices);
    devices.await.map_err(|error| Error::State(error.to_string()))?;
    cpus::begin(tools, container).await?;
    Ok(request)
}

/// What was dumped is needed once.
async fn forget_dump(container: &Container) {
    let dir = restore::directory(container);
    if let Err(error) = container.blocking(move || Ok(store::remove_dir(&dir)?)).await {
        tracing::warn!(container = container.id, %error, "could not remove what the container was restored from");
    }
}

async fn request(tools: &Tools, container: &Container, record: &record::Container) -> Result<monitor::Start> {
    let config = record.config.clone().unwrap_or_default();
    let handler = handler(tools, container, record)?;
    let daemon = tools.mechanisms.config.get();
    let create_timeout = daemon.handler_settings(&record.runtime_handler).create_timeout_secs;
    let seccomp_filter = if handler.path.is_empty() {
        compiled_filter(tools, container).await?
    } else {
        None
    };
    let log_path = PathBuf::from(&record.log_path);
    if let Some(parent) = log_path.parent().map(ToOwned::to_owned)
        && !record.log_path.is_empty()
    {
        let failed = container.io(&format!("create log directory {}", parent.display()));
        container
            .blocking(move || std::fs::create_dir_all(&parent).map_err(failed))
            .await?;
    }
    Ok(monitor::Start {
        container_id: container.id.clone(),
        bundle: container.dir.display().to_string(),
        handler: Some(handler),
        log_path: record.log_path.clone(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        terminal: config.tty,
        exit_file: container.exit_file().display().to_string(),
        max_log_line: daemon.max_log_line,
        seccomp_filter: seccomp_filter
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
        cgroup_path: record.cgroup_path.clone(),
        log_rate: daemon.log_rate_limit.into(),
        journal_fields: if daemon.log_to_journald {
            journal_fields(container, &config)
        } else {
            Vec::new()
        },
        restore: None,
        rdt_tasks: record.rdt_tasks.clone(),
        notifier: (!record.seccomp_notifier.is_empty()).then(|| monitor::Notifier {
            socket: container.seccomp_socket().display().to_string(),
            stop: record.seccomp_notifier == "stop",
        }),
        time_limit: u32::try_from(create_timeout).unwrap_or(0),
    })
}

/// What a container's entries in the journal are found by (row H7), with the names that conmon made common.
fn journal_fields(container: &Container, config: &ContainerConfig) -> Vec<u8> {
    let pod = container.sandbox.record.get();
    let pod = pod.config.as_ref().and_then(|config| config.metadata.clone());
    let pod = pod.unwrap_or_default();
    let name = config.metadata.clone().unwrap_or_default().name;
    let id = container.id.as_str();
    let pairs = [
        ("CONTAINER_ID_FULL", id),
        ("CONTAINER_ID", id.get(..12).unwrap_or(id)),
        ("CONTAINER_NAME", name.as_str()),
        ("POD_NAME", pod.name.as_str()),
        ("POD_UID", pod.uid.as_str()),
        ("NAMESPACE", pod.namespace.as_str()),
        ("SYSLOG_IDENTIFIER", name.as_str()),
    ];
    // A line break in a value would begin another field.
    let lines = pairs.map(|(key, value)| format!("{key}={}\n", value.replace('\n', " ")));
    lines.concat().into_bytes()
}

/// The compiled form of the container's seccomp profile: compiled once per profile and kept in the run directory,
/// because compiling is a large part of a start elsewhere (design decision 3).
async fn compiled_filter(tools: &Tools, container: &Container) -> Result<Option<PathBuf>> {
    let spec_path = container.dir.join("config.json");
    let directory = tools.mechanisms.roots.seccomp();
    let failed = container.io("read config.json");
    let id = container.id.clone();
    container
        .blocking(move || {
            let spec =
                oci_spec::runtime::Spec::load(&spec_path).map_err(|error| failed(std::io::Error::other(error)))?;
            let Some(mut profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone()) else {
                return Ok(None);
            };
            // The filter is the same, whoever listens.
            profile.set_listener_path(None);
            let json = serde_json::to_vec(&profile).map_err(|error| Error::Invalid(error.to_string()))?;
            let path = directory.join(format!("{}.bpf", hex::encode(sha2::Sha256::digest(&json))));
            if !path.exists() {
                let filter = seccomp_compile::compile(&profile)
                    .map_err(|error| Error::Invalid(format!("seccomp profile of container {id}: {error}")))?;
                store::create_dir(&directory)?;
                store::write_file(&path, &filter, 0o600)?;
            }
            Ok(Some(path))
        })
        .await
}

/// Makes the monitor continue the log in a new file at the same path (contract rule 22).
///
/// # Errors
/// When the container does not run; no file is then made.
pub async fn reopen_log(container: &Container) -> Result<()> {
    let ended = || {
        Error::State(format!(
            "container {} is not running, its log can't be reopened",
            container.id
        ))
    };
    if container.state() != ContainerState::ContainerRunning {
        return Err(ended());
    }
    match container.monitor()?.reopen_log(&container.id).await {
        // In between, and the event is on its way.
        Err(error) if is_gone(&error) => Err(ended()),
        other => other.map_err(container.monitor_error()),
    }
}

/// The runtime of a container, in the monitor's words.
///
/// # Errors
/// When its handler has no command for the platform that the pod names.
pub(super) fn handler(tools: &Tools, container: &Container, record: &record::Container) -> Result<monitor::Handler> {
    let mechanisms = &tools.mechanisms;
    let pod = container.sandbox.record.get();
    let annotations = pod.config.as_ref().map(|config| &config.annotations);
    let config = mechanisms.config.get();
    let settings = config.handler_settings(&record.runtime_handler);
    let path = settings
        .command(annotations.unwrap_or(&HashMap::new()))
        .map_err(Error::Invalid)?
        .display()
        .to_string();
    let Some(command) = config.handler(&record.runtime_handler) else {
        return Ok(monitor::Handler::default());
    };
    let own_root = || mechanisms.roots.run.join("runtimes").join(&record.runtime_handler);
    let mut arguments = command.arguments.clone();
    // For the form of the path that the spec has then; what was given already is not said twice.
    if !pod.slice.is_empty() && !arguments.iter().any(|argument| argument == SYSTEMD) {
        arguments.push(SYSTEMD.to_owned());
    }
    Ok(monitor::Handler {
        path,
        arguments,
        root: command.root.clone().unwrap_or_else(own_root).display().to_string(),
    })
}

/// Has runc, crun and their like ask systemd for the container's cgroup.
const SYSTEMD: &str = "--systemd-cgroup";

/// Why nothing runs after a start.
enum Failure {
    /// The monitor ended. Nobody knows how far it came: whoever follows it ends what there is of the container and records
    /// that.
    MonitorGone(String),
    /// In the runtime's words, or Wharf's.
    Refused(String),
}

impl From<crate::monitor::Error> for Failure {
    fn from(error: crate::monitor::Error) -> Self {
        match error {
            crate::monitor::Error::Refused {
                kind: ErrorKind::StartFailed,
                message,
                ..
            } => Self::Refused(message),
            gone @ crate::monitor::Error::Closed { .. } => Self::MonitorGone(gone.to_string()),
            other => Self::Refused(other.to_string()),
        }
    }
}
