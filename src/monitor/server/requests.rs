//! What each request begins.

use std::{
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{fcntl::OFlag, unistd::pipe2};
use wharf_proto::monitor::{self as proto, Done, ErrorKind, HelloReply, reply::Result as Answer, request::Op};

use super::{
    super::{
        PROTOCOL_VERSION,
        container::{Container, Output, State},
        log::{Journal, Lines, Log, line_limit},
        notifier::Notifier,
        poll::Source,
        sys,
    },
    Monitor, Origin,
    jobs::{Work, error},
};
use crate::runtime::{self, CreateRequest, ExecRequest, RestoreRequest, Stdio};

/// How long Hello waits for containers that are being started.
const GREETING: Duration = Duration::from_secs(2);

/// The outcome of a request that is answered at once; `None`: a job answers.
pub(super) type Outcome = Result<Option<Answer>, Answer>;

impl Monitor {
    pub(super) fn request(&mut self, origin: Origin, op: Option<Op>, descriptors: Vec<OwnedFd>) {
        let outcome = match op {
            Some(Op::Hello(_)) => self.greet(origin),
            Some(Op::Start(start)) => self.start(origin, start),
            Some(Op::Kill(kill)) => self.kill(origin, &kill),
            Some(Op::Exec(exec)) => self.exec(origin, exec, descriptors),
            Some(Op::KillExec(kill)) => Ok(Some(self.kill_exec(&kill.exec_id))),
            Some(Op::ReopenLog(reopen)) => self.reopen_log(&reopen.container_id),
            Some(Op::Delete(delete)) => self.delete(origin, &delete.container_id),
            Some(Op::Shutdown(_)) => self.shutdown(),
            Some(Op::Attach(attach)) => self.attach(&attach, descriptors),
            Some(Op::LogCounters(of)) => self.log_counters(&of.container_id),
            Some(Op::Checkpoint(checkpoint)) => self.checkpoint(origin, &checkpoint),
            Some(Op::Freeze(freeze)) => self.freeze(origin, &freeze.container_id),
            Some(Op::Keep(keep)) => self.keep(keep, descriptors),
            Some(Op::GiveBack(wanted)) => self.give_back(&wanted.container_id, &descriptors),
            Some(Op::Thaw(thaw)) => Ok(Some(self.thaw_by_name(&thaw.container_id))),
            None => Err(error(
                ErrorKind::UnknownOperation,
                "this monitor does not know the operation",
            )),
        };
        if let Ok(Some(answer)) | Err(answer) = outcome {
            self.answer(origin, answer);
        }
    }

    /// A daemon that comes while containers are being started hears how that went; their starts were asked for by
    /// another one, which gets the answers.
    fn greet(&mut self, origin: Origin) -> Outcome {
        if self.is_starting() {
            self.greeting = Some((origin, Instant::now() + GREETING));
            return Ok(None);
        }
        Ok(Some(Answer::Hello(self.hello())))
    }

    /// Answers a Hello that waits, when it need not wait any longer.
    pub(super) fn greet_late(&mut self, now: Instant) {
        if let Some((origin, end)) = self.greeting
            && (end <= now || !self.is_starting())
        {
            self.greeting = None;
            let hello = self.hello();
            self.answer(origin, Answer::Hello(hello));
        }
    }

    fn is_starting(&self) -> bool {
        let settled = |c: &Container| c.is_running() || c.has_exited();
        !self.containers.iter().all(settled)
    }

    fn hello(&self) -> HelloReply {
        HelloReply {
            version: PROTOCOL_VERSION,
            pid: nix::unistd::getpid().as_raw(),
            pod_id: self.pod_id.clone(),
            containers: self.containers.iter().map(Container::describe).collect(),
            pod_init: self.pod_init,
        }
    }

    pub(super) fn find(&self, id: &str) -> Result<&Container, Answer> {
        let found = self.containers.iter().find(|c| c.id == id);
        found.ok_or_else(|| error(ErrorKind::NotFound, format!("no container {id}")))
    }

    fn start(&mut self, origin: Origin, start: proto::Start) -> Outcome {
        if self.find(&start.container_id).is_ok() {
            let message = format!("container {} was started before", start.container_id);
            return Err(error(ErrorKind::WrongState, message));
        }
        self.fail_point("monitor.start");
        let serial = self.serial();
        let handler = start.handler.unwrap_or_default();
        let log_path = PathBuf::from(start.log_path);
        let (mut log, trouble) = match Log::open(&log_path) {
            Ok(log) => (log, None),
            Err(failure) => (
                Log::default(),
                Some(format!("open log {}: {failure}", log_path.display())),
            ),
        };
        log.limit(start.log_rate);
        if !start.journal_fields.is_empty() {
            match Journal::new(start.journal_fields) {
                Ok(journal) => log.copy_to(journal),
                Err(failure) => self.notes.say(&format!("copy a log to the journal: {failure}")),
            }
        }
        let oom_above = self.oom_above(&start.cgroup_path);
        self.containers.push(Container {
            serial,
            id: start.container_id,
            bundle: start.bundle.into(),
            handler: runtime::handler(&handler.path, &handler.root, handler.arguments),
            seccomp_filter: (!start.seccomp_filter.is_empty()).then(|| start.seccomp_filter.into()),
            cgroup_path: start.cgroup_path,
            restore: start.restore,
            frozen_for: None,
            exit_file: start.exit_file.into(),
            log,
            line_limit: line_limit(start.max_log_line),
            outputs: [None, None],
            stdin: None,
            terminal: start.terminal,
            stdin_once: start.stdin_once,
            paused: [false; 2],
            slave: None,
            created: None,
            state: State::Creating,
            init_pid: 0,
            early_end: None,
            oom_before_signal: None,
            oom_above,
            started_at: 0,
            drain_until: None,
            class: (!start.rdt_tasks.is_empty()).then(|| start.rdt_tasks.into()),
            notifier: None,
            start_until: (start.time_limit > 0)
                .then(|| Instant::now() + Duration::from_secs(u64::from(start.time_limit))),
            overdue: false,
            exit_unsaved: false,
        });
        let trouble = trouble.or_else(|| self.open_notifier(serial, &start.notifier?).err());
        self.adopt_early(serial);
        let began = match trouble {
            Some(trouble) => Err(trouble),
            None if start.terminal => self.create(serial, Stdio::Terminal),
            None => self.create_with_pipes(serial, start.stdin),
        };
        match began {
            Ok(pending) => self.add_job(pending, Work::Create { origin, serial }),
            Err(message) => self.start_failed(origin, serial, &message),
        }
        Ok(None)
    }

    fn open_notifier(&mut self, serial: u32, wanted: &proto::Notifier) -> Result<(), String> {
        let own = self.serial();
        let path = Path::new(&wanted.socket);
        let notifier = Notifier::open(path, wanted.stop, own, &self.poll)
            .map_err(|failure| format!("wait for the seccomp filter at {}: {failure}", path.display()))?;
        if let Some(container) = self.container(serial) {
            container.notifier = Some(notifier);
        }
        Ok(())
    }

    fn create(&mut self, serial: u32, stdio: Stdio) -> Result<runtime::Pending, String> {
        let container = self.container(serial).ok_or("the container is gone")?;
        let request = CreateRequest {
            id: &container.id,
            bundle: &container.bundle,
            stdio,
            seccomp_filter: container.seccomp_filter.as_deref(),
            class: container.class.as_deref(),
        };
        let begun = match &container.restore {
            None => container.handler.create(&request),
            Some(restore) => container.handler.restore(
                &request,
                &RestoreRequest {
                    criu: Path::new(&restore.criu),
                    images: Path::new(&restore.images),
                    work: Path::new(&restore.work),
                    cgroup_path: &container.cgroup_path,
                },
            ),
        };
        begun.map_err(|failure| failure.to_string())
    }

    fn create_with_pipes(&mut self, serial: u32, stdin: bool) -> Result<runtime::Pending, String> {
        let failed = |failure: std::io::Error| format!("make the container's standard streams: {failure}");
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()));
        let input: OwnedFd = if stdin {
            let (theirs, ours) = pipe()?;
            if let Some(container) = self.container(serial) {
                container.stdin = Some(ours);
            }
            theirs
        } else {
            File::open("/dev/null").map_err(failed)?.into()
        };
        let (out, their_out) = pipe()?;
        let (err, their_err) = pipe()?;
        for (index, source, name) in [(0, out, "stdout"), (1, err, "stderr")] {
            sys::set_nonblocking(source.as_fd()).map_err(failed)?;
            self.poll.add(&source, Source::Stream(serial, index)).map_err(failed)?;
            if let Some(container) = self.container(serial) {
                container.outputs[index] = Some(Output {
                    source: source.into(),
                    lines: Lines::new(name, container.line_limit),
                });
            }
        }
        self.introduce(serial);
        self.create(
            serial,
            Stdio::Streams([input.as_fd(), their_out.as_fd(), their_err.as_fd()]),
        )
    }

    fn kill(&mut self, origin: Origin, kill: &proto::Kill) -> Outcome {
        self.fail_point("monitor.signal");
        let container = self.find(&kill.container_id)?;
        if container.init_pid == 0 {
            let message = format!("container {} does not run", container.id);
            return Err(error(ErrorKind::WrongState, message));
        }
        let serial = container.serial;
        if container.frozen_for.is_some() {
            // What stands still hears no signal.
            self.thaw(serial);
        }
        let container = self.find(&kill.container_id)?;
        let so_far = self.roots.oom_kills(&container.cgroup_path).unwrap_or(0);
        if let Some(container) = self.container(serial) {
            container.oom_before_signal.get_or_insert(so_far);
        }
        let container = self.find(&kill.container_id)?;
        match container.handler.kill(&container.reference(), kill.signal, kill.all) {
            Ok(None) => Ok(Some(Answer::Done(Done {}))),
            Ok(Some(pending)) => {
                let origin = Some(origin);
                self.add_job(pending, Work::Kill { origin, serial });
                Ok(None)
            }
            Err(failure) => Err(error(ErrorKind::Failed, failure.to_string())),
        }
    }

    fn exec(&mut self, origin: Origin, exec: proto::Exec, mut descriptors: Vec<OwnedFd>) -> Outcome {
        self.fail_point("monitor.exec");
        let wrong = |message: String| Err(error(ErrorKind::WrongState, message));
        let known = self.execs.iter().any(|e| e.id == exec.exec_id) || self.starting_exec(&exec.exec_id).is_some();
        let container = self.find(&exec.container_id)?;
        if known {
            return wrong(format!("exec {} exists", exec.exec_id));
        }
        if !container.is_running() {
            return wrong(format!("container {} does not run", container.id));
        }
        let (stdio, console) = match (exec.terminal, descriptors.as_slice()) {
            (true, [_]) => (Stdio::Terminal, true),
            (false, [input, output, errors]) => {
                (Stdio::Streams([input.as_fd(), output.as_fd(), errors.as_fd()]), false)
            }
            (_, found) => {
                let message = format!("exec came with {} descriptors", found.len());
                return Err(error(ErrorKind::Failed, message));
            }
        };
        let serial = container.serial;
        let request = ExecRequest {
            id: &container.id,
            bundle: &container.bundle,
            init_pid: container.init_pid,
            process_json: &exec.process,
            stdio,
            seccomp_filter: container.seccomp_filter.as_deref(),
            class: container.class.as_deref(),
        };
        let pending = match container.handler.exec(&request) {
            Ok(pending) => pending,
            Err(failure) => return Err(error(ErrorKind::StartFailed, failure.to_string())),
        };
        let console = if console { descriptors.pop() } else { None };
        self.add_job(
            pending,
            Work::Exec {
                origin,
                serial,
                exec_id: exec.exec_id,
                console,
                bound: exec.bound,
                unwanted: false,
            },
        );
        Ok(None)
    }

    fn kill_exec(&mut self, exec_id: &str) -> Answer {
        if let Some(exec) = self.execs.iter().find(|exec| exec.id == exec_id) {
            exec.kill(&self.roots);
        } else if let Some(unwanted) = self.starting_exec(exec_id) {
            *unwanted = true;
        }
        Answer::Done(Done {})
    }

    fn reopen_log(&mut self, id: &str) -> Outcome {
        let serial = self.find(id)?.serial;
        let wrong = |what: &str| Err(error(ErrorKind::WrongState, format!("container {id} {what}")));
        match self.container(serial) {
            Some(container) if container.is_running() => match container.log.reopen() {
                Ok(()) => Ok(Some(Answer::Done(Done {}))),
                Err(failure) => Err(error(
                    ErrorKind::Failed,
                    format!("reopen log of container {id}: {failure}"),
                )),
            },
            _ => wrong("does not run"),
        }
    }

    fn log_counters(&self, id: &str) -> Outcome {
        let counters = self.find(id)?.log.counters;
        Ok(Some(Answer::LogCounters(proto::LogCountersReply {
            bytes_in: counters.bytes_in,
            entries: counters.entries,
            bytes_out: counters.bytes_out,
            partial: counters.partial,
            left_out: counters.left_out,
            lost: counters.lost,
            unjournaled: counters.unjournaled,
        })))
    }

    fn delete(&mut self, origin: Origin, id: &str) -> Outcome {
        self.fail_point("monitor.delete");
        self.kept.retain(|kept| kept.container_id != id);
        let Ok(container) = self.find(id) else {
            return Ok(Some(Answer::Done(Done {})));
        };
        if !container.has_exited() {
            return Err(error(ErrorKind::WrongState, format!("container {id} runs")));
        }
        let serial = container.serial;
        if self.join_deletion(origin, serial) {
            return Ok(None);
        }
        let container = self.find(id)?;
        match container.handler.delete(&container.reference()) {
            Ok(None) => self.deleted(Some(origin), serial, Answer::Done(Done {})),
            Ok(Some(pending)) => {
                let origin = Some(origin);
                self.add_job(pending, Work::Delete { origin, serial });
            }
            Err(failure) => return Err(error(ErrorKind::Failed, failure.to_string())),
        }
        Ok(None)
    }

    fn shutdown(&mut self) -> Outcome {
        self.fail_point("monitor.shutdown");
        if let Some(container) = self.containers.iter().find(|c| !c.has_exited()) {
            return Err(error(ErrorKind::WrongState, format!("container {} runs", container.id)));
        }
        self.ended = true;
        Ok(Some(Answer::Done(Done {})))
    }
}
