//! `wharf run`: a container in a pod of its own, over plain CRI.

pub(super) mod flags;
mod network;
mod plan;

use wharf_proto::cri;

use super::attach::{self, Wanted};
use super::client::{Client, Owner};
use super::error::{DAEMON_FAILED, Error, Outcome, Result};
use super::exec::{exit_code, need_terminal};
use super::logfile::Show;
use super::resolve::{self, RUN_LABEL};
use super::stream::{End, Ended, Proxy, Relay, Signals};
use super::{logs, output, pull, rm, version, wait};

use flags::PullPolicy;
pub use flags::{Arguments, label};
use plan::Plan;

/// Runs the container; without `-d` its exit code becomes ours.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    if !arguments.detach {
        need_terminal(arguments.interactive, arguments.tty)?;
    }
    let failed = |error: Error| error.code(DAEMON_FAILED);
    if arguments.detach && arguments.rm {
        removes(client).await.map_err(failed)?;
    }
    let image = image(client, arguments).await.map_err(failed)?;
    let plan = Plan::new(arguments, &image).map_err(failed)?;
    if arguments.name.is_some() {
        must_be_free(client, &plan.name).await.map_err(failed)?;
    }
    // From here on Ctrl-C must not leave half a container behind.
    let mut signals = Signals::new().map_err(failed)?;
    let id = create(client, &plan).await.map_err(failed)?;
    let started = begin(client, &id, &plan.name, arguments).await;
    let relay = match started {
        Ok(relay) => relay,
        Err(error) => {
            let code = error.exec_failure().unwrap_or(DAEMON_FAILED);
            finish(client, &id, arguments.rm).await.unwrap_or_else(|problem| {
                problem.report();
            });
            return Err(error.code(code));
        }
    };
    if arguments.detach {
        output::line(&id)?;
        return Ok(0);
    }
    let proxy = Proxy {
        client,
        id: &id,
        name: &plan.name,
    };
    let outcome = match relay {
        Some(relay) => converse(&proxy, relay, &mut signals, arguments).await,
        None => attend(&proxy, &mut signals, arguments.sig_proxy).await,
    };
    if !matches!(outcome, Ok(Attended::LeftRunning(_))) {
        finish(client, &id, arguments.rm).await?;
    }
    match outcome? {
        Attended::Ended(code) | Attended::LeftRunning(code) => Ok(code),
    }
}

/// Fails when the daemon is not one that removes containers when they have ended.
async fn removes(client: &Client) -> Result<()> {
    let name = version::server(client).await?.runtime_name;
    if name == "wharf" {
        return Ok(());
    }
    Err(Error::new(format!(
        "{name} does not remove containers that have ended, so -d and --rm don't go together"
    ))
    .hint("Leave out --rm and use `wharf rm` when the container has ended."))
}

/// Starts the container; with `-i` or `-t` its streams are open before it runs where the runtime allows that.
async fn begin(client: &Client, id: &str, name: &str, arguments: &Arguments) -> Result<Option<Relay>> {
    if arguments.detach || !arguments.interactive && !arguments.tty {
        start(client, id, name).await?;
        return Ok(None);
    }
    let wanted = Wanted {
        stdin: arguments.interactive,
        tty: arguments.tty,
        keys: Some(arguments.detach_keys.clone()),
    };
    match attach::open(client, id, name, &wanted).await {
        Ok(mut relay) => {
            relay.established().await;
            start(client, id, name).await?;
            Ok(Some(relay))
        }
        Err(problem) if attach::must_run_first(&problem) => {
            start(client, id, name).await?;
            attach::open(client, id, name, &wanted).await.map(Some)
        }
        Err(problem) => Err(problem),
    }
}

/// The id of the image, which is pulled if need be.
async fn image(client: &Client, arguments: &Arguments) -> Result<String> {
    let text = &arguments.image;
    if arguments.pull != PullPolicy::Always
        && let Some(image) = resolve::image(client, text, false)
            .await?
            .and_then(|status| status.image)
    {
        return Ok(image.id);
    }
    if arguments.pull == PullPolicy::Never {
        return Err(resolve::absent("image", text, "wharf images"));
    }
    Ok(pull::pull(client, text, None, arguments.quiet).await?.image_id)
}

async fn must_be_free(client: &Client, name: &str) -> Result<()> {
    let label_selector = [(RUN_LABEL.to_owned(), "true".to_owned())].into();
    let filter = cri::PodSandboxFilter {
        label_selector,
        ..Default::default()
    };
    let pods = client.pods(Some(filter)).await?.items;
    if pods.iter().any(|pod| resolve::pod_name(pod) == name) {
        return Err(Error::new(format!("the name \"{name}\" is taken")).hint(format!(
            "Choose another, or remove the container first: `wharf rm {name}`."
        )));
    }
    Ok(())
}

/// Makes pod and container; if the container can't be made, the pod goes as well.
async fn create(client: &Client, plan: &Plan) -> Result<String> {
    if let Some(dir) = &plan.make_log_dir {
        // As kubelet does for its pods. A runtime on another machine's socket would have to do it itself.
        let _ = std::fs::create_dir_all(dir);
    }
    let name = &plan.name;
    let message = cri::RunPodSandboxRequest {
        config: Some(plan.pod.clone()),
        runtime_handler: plan.runtime_handler.clone(),
    };
    let answer = client
        .runtime()
        .run_pod_sandbox(client.patient(message, Owner::User))
        .await;
    let answer = answer.map_err(|status| client.error(&format!("create pod {name}"), &status));
    let pod = answer
        .inspect_err(|_| remove_log_dir(plan))?
        .into_inner()
        .pod_sandbox_id;
    let message = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: Some(plan.container.clone()),
        sandbox_config: Some(plan.pod.clone()),
    };
    let answer = client
        .runtime()
        .create_container(client.patient(message, Owner::User))
        .await;
    match answer {
        Ok(answer) => Ok(answer.into_inner().container_id),
        Err(status) => {
            let error = client.error(&format!("create container {name}"), &status);
            if let Err(problem) = client.stop_pod(&pod, name).await {
                problem.report();
            }
            if let Err(problem) = client.remove_pod(&pod, name).await {
                problem.report();
            }
            remove_log_dir(plan);
            Err(error)
        }
    }
}

fn remove_log_dir(plan: &Plan) {
    if let Some(dir) = &plan.make_log_dir {
        let _ = std::fs::remove_dir(dir);
    }
}

async fn start(client: &Client, id: &str, name: &str) -> Result<()> {
    let message = cri::StartContainerRequest {
        container_id: id.to_owned(),
    };
    let answer = client
        .runtime()
        .start_container(client.patient(message, Owner::User))
        .await;
    answer
        .map(|_| ())
        .map_err(|status| client.error(&format!("start container {name}"), &status))
}

/// How a container in the foreground ended for us.
enum Attended {
    /// It ended, with this code.
    Ended(u8),
    /// The person left, with this code for us.
    LeftRunning(u8),
}

/// Joins our streams with the container's until it ends or the person leaves.
async fn converse(proxy: &Proxy<'_>, relay: Relay, signals: &mut Signals, arguments: &Arguments) -> Result<Attended> {
    let (client, id, name) = (proxy.client, proxy.id, proxy.name);
    let end = if arguments.sig_proxy && !arguments.tty {
        proxy.during(relay.run(), signals).await
    } else {
        tokio::select! {
            end = relay.run() => Ok(end),
            number = signals.next() => Err(number),
        }
    };
    match end {
        Err(number) => return Ok(Attended::LeftRunning(exit_code(128 + number))),
        Ok(end) => match end? {
            End::Over(Ended::Code(_)) => {}
            End::Detached => {
                output::note(format_args!("\r\nwharf: left container {name} running"));
                return Ok(Attended::LeftRunning(0));
            }
            End::Over(Ended::Failed(message)) => output::note(format_args!("wharf: {message}")),
            End::Lost(why) => output::note(format_args!("wharf: the connection to container {name} broke: {why}")),
        },
    }
    match proxy.during(wait::exited(client, id), signals).await {
        Err(number) => Ok(Attended::LeftRunning(exit_code(128 + number))),
        Ok(status) => verdict(name, status?),
    }
}

/// Shows what the container writes, by its log, until it ends.
async fn attend(proxy: &Proxy<'_>, signals: &mut Signals, sig_proxy: bool) -> Result<Attended> {
    let (client, id, name) = (proxy.client, proxy.id, proxy.name);
    let status = client.container_status(id, false).await?.status.unwrap_or_default();
    let mut log = logs::open(&status, |_| Ok(0))?;
    let mut printer = logs::printer(Show::default());
    let follow = logs::follow(client, id, &mut log, &mut printer);
    let status = if sig_proxy {
        proxy.during(follow, signals).await
    } else {
        tokio::select! {
            status = follow => Ok(status),
            number = signals.next() => Err(number),
        }
    };
    match status {
        Err(number) => Ok(Attended::LeftRunning(exit_code(128 + number))),
        Ok(status) => verdict(name, status?),
    }
}

fn verdict(name: &str, status: Option<cri::ContainerStatus>) -> Result<Attended> {
    let Some(status) = status else {
        return Err(Error::new(format!("container {name} was removed while it ran")).code(DAEMON_FAILED));
    };
    if status.reason == "StartError" {
        // A runtime that starts first and finds out later.
        let error = Error::new(format!("start container {name}: {}", status.message));
        let code = error.exec_failure().unwrap_or(DAEMON_FAILED);
        return Err(error.code(code));
    }
    if status.reason == "OOMKilled" {
        output::note(format_args!(
            "wharf: container {name} was killed: it needed more memory than its limit"
        ));
    }
    Ok(Attended::Ended(exit_code(status.exit_code)))
}

/// Gives back what a container that has ended still holds, or removes it altogether.
async fn finish(client: &Client, id: &str, remove: bool) -> Result<()> {
    let filter = cri::ContainerFilter {
        id: id.to_owned(),
        ..Default::default()
    };
    let Some(container) = client.containers(Some(filter)).await?.containers.pop() else {
        return Ok(());
    };
    let name = resolve::container_name(&container).to_owned();
    if remove {
        return rm::run_made(client, &container, &name).await;
    }
    client.stop_pod(&container.pod_sandbox_id, &name).await
}
