//! `wharf run`: a container in a pod of its own, over plain CRI.

mod flags;
mod plan;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::signal::unix::{Signal, SignalKind, signal};
use wharf_proto::cri;

use super::client::{Client, Owner};
use super::error::{DAEMON_FAILED, Error, Outcome, Result};
use super::exec::{exit_code, interactive};
use super::logfile::Show;
use super::resolve::{self, RUN_LABEL};
use super::stop::GRACE;
use super::{logs, output, pull, rm};

use flags::PullPolicy;
pub use flags::{Arguments, label};
use plan::Plan;

/// Runs the container; without `-d` its exit code becomes ours.
pub async fn run(client: &Client, arguments: &Arguments) -> Outcome {
    if arguments.interactive || arguments.tty {
        return Err(interactive("run"));
    }
    if arguments.detach && arguments.rm {
        return Err(
            Error::new("-d and --rm don't go together yet: nobody would be there to remove the container")
                .hint("Leave out --rm and use `wharf rm` when the container has ended.")
                .code(DAEMON_FAILED),
        );
    }
    let failed = |error: Error| error.code(DAEMON_FAILED);
    let image = image(client, arguments).await.map_err(failed)?;
    let plan = Plan::new(arguments, &image).map_err(failed)?;
    if arguments.name.is_some() {
        must_be_free(client, &plan.name).await.map_err(failed)?;
    }
    // From here on Ctrl-C must not leave half a container behind.
    let mut interrupts = Interrupts::new().map_err(failed)?;
    let id = create(client, &plan).await.map_err(failed)?;
    if let Err(error) = start(client, &id, &plan.name).await {
        let code = error.exec_failure().unwrap_or(DAEMON_FAILED);
        finish(client, &id, arguments.rm).await.unwrap_or_else(|problem| {
            problem.report();
        });
        return Err(error.code(code));
    }
    if arguments.detach {
        output::line(&id)?;
        return Ok(0);
    }
    let outcome = attend(client, &id, &plan.name, &mut interrupts).await;
    if !matches!(outcome, Ok(Attended::LeftRunning)) {
        finish(client, &id, arguments.rm).await?;
    }
    match outcome? {
        Attended::Ended(code) => Ok(code),
        Attended::LeftRunning => Ok(130),
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
    /// The person insisted on leaving.
    LeftRunning,
}

/// Shows what the container writes until it ends. Ctrl-C stops it, again kills it, a third time leaves it alone.
async fn attend(client: &Client, id: &str, name: &str, interrupts: &mut Interrupts) -> Result<Attended> {
    let status = client.container_status(id, false).await?.status.unwrap_or_default();
    let mut log = logs::open(&status, |_| Ok(0))?;
    let mut printer = logs::printer(Show::default());
    let mut follow = std::pin::pin!(logs::follow(client, id, &mut log, &mut printer));
    let mut stops = FuturesUnordered::new();
    let mut presses = 0;
    let status = loop {
        tokio::select! {
            status = &mut follow => break status?,
            () = interrupts.next() => {
                presses += 1;
                match presses {
                    1 => stops.push(client.stop_container(id, name, GRACE)),
                    2 => stops.push(client.stop_container(id, name, std::time::Duration::ZERO)),
                    _ => return Ok(Attended::LeftRunning),
                }
            }
            Some(stopped) = stops.next(), if !stops.is_empty() => {
                if let Err(problem) = stopped {
                    problem.report();
                }
            }
        }
    };
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

/// Ctrl-C, and the polite kill.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let watch = |kind| signal(kind).map_err(|source| Error::new(format!("watch for signals: {source}")));
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
