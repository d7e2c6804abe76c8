//! What each handler must do, with the words that the monitor relies on.

use crate::fixture::{Bundle, Container, delete, pipe, run};
use crate::{Subject, Test};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use wharf::runtime::{Error, Stdio};

pub const TESTS: &[Test] = &[
    ("output and exit code come back", output_and_exit_code),
    ("a program that is not there fails to start", missing_program),
    ("a working directory that is a file fails to start", cwd_is_a_file),
    ("a signal ends a container", signal_ends),
    ("kill with all reaches every process, delete is repeatable", kill_all),
    ("a terminal is the container's console", terminal),
    ("exec: exit code, environment, user", exec_basics),
    ("exec: a program that is not there fails to start", exec_missing),
    ("exec with a terminal", exec_terminal),
    ("exec in a user namespace stays in it", exec_userns),
    ("descriptors of the caller stay outside", descriptors),
    ("a container joins namespaces by path", join_namespaces),
];

fn output_and_exit_code(subject: &Subject) {
    let bundle = Bundle::new("exit");
    bundle.write(&bundle.spec(&["sh", "-c", "echo out; echo err >&2; exit 7"]));
    let (code, text) = run(subject.handler.as_ref(), &bundle).unwrap();
    assert_eq!((code, text.as_str()), (7, "out\nerr\n"));
}

fn start_failure(subject: &Subject, spec: &Value, bundle: &Bundle) -> String {
    bundle.write(spec);
    match run(subject.handler.as_ref(), bundle) {
        Err(Error::StartFailed(text)) => text,
        // runc looks for the program when it creates the container, and does not tell its failures apart.
        Err(Error::Failed(text)) if subject.name == "runc" => text,
        other => panic!("not a failure to start: {other:?}"),
    }
}

fn missing_program(subject: &Subject) {
    let bundle = Bundle::new("missing");
    let text = start_failure(subject, &bundle.spec(&["/nope"]), &bundle);
    assert!(
        text.contains(r#"exec "/nope": no such file or directory"#)
            || text.contains(r#"exec: "/nope": stat /nope: no such file or directory"#),
        "{text}"
    );
    let text = start_failure(subject, &bundle.spec(&["nope"]), &bundle);
    assert!(text.contains("executable file not found in $PATH"), "{text}");
}

fn cwd_is_a_file(subject: &Subject) {
    let bundle = Bundle::new("cwd");
    let mut spec = bundle.spec(&["true"]);
    spec["process"]["cwd"] = json!("/etc/passwd");
    let text = start_failure(subject, &spec, &bundle);
    assert!(
        text.contains("/etc/passwd") && text.contains("not a directory"),
        "{text}"
    );
}

fn running<'a>(subject: &'a Subject, bundle: &'a Bundle) -> (Container<'a>, Value) {
    let spec = bundle.spec(&["sleep", "60"]);
    bundle.write(&spec);
    let mut container = Container::create(subject.handler.as_ref(), bundle).unwrap();
    container.start().unwrap();
    (container, spec["process"].clone())
}

fn signal_ends(subject: &Subject) {
    let bundle = Bundle::new("signal");
    // A PID namespace's init ignores what it does not handle.
    bundle.write(&bundle.spec(&[
        "sh",
        "-c",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    ]));
    let mut container = Container::create(subject.handler.as_ref(), &bundle).unwrap();
    container.start().unwrap();
    container.output.read_exact(&mut [0; 6]).unwrap();
    container.signal(libc::SIGTERM, false);
    assert_eq!(container.wait_init(), 9);
    delete(subject.handler.as_ref(), &bundle);
}

fn kill_all(subject: &Subject) {
    let bundle = Bundle::new("killall");
    let (container, _) = running(subject, &bundle);
    container.signal(libc::SIGKILL, true);
    assert_eq!(container.wait_init(), 137);
    delete(subject.handler.as_ref(), &bundle);
    delete(subject.handler.as_ref(), &bundle);
    let cgroup = format!("/sys/fs/cgroup/memory{}", bundle.cgroup());
    assert!(!std::path::Path::new(&cgroup).exists(), "{cgroup} is left");
}

/// What a terminal shows until the text is there.
fn read_until(master: &mut File, wanted: &str) -> String {
    let (mut text, mut part) = (String::new(), [0u8; 1024]);
    while !text.contains(wanted) {
        let mut fds = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
        assert_ne!(
            poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(),
            0,
            "no {wanted:?} in {text:?}"
        );
        match master.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(length) => text.push_str(&String::from_utf8_lossy(&part[..length])),
        }
    }
    assert!(text.contains(wanted), "no {wanted:?} in {text:?}");
    text
}

fn terminal(subject: &Subject) {
    let bundle = Bundle::new("tty");
    let mut spec = bundle.spec(&[
        "sh",
        "-c",
        "tty; stat -c '%F %u' /dev/console /dev/tty; stty size; read x; echo got $x; exit 4",
    ]);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 101});
    bundle.write(&spec);
    let (output, _write) = pipe();
    let mut container = Container::create_with(subject.handler.as_ref(), &bundle, Stdio::Terminal, output).unwrap();
    let mut master = File::from(container.created.console.take().expect("no terminal"));
    container.start().unwrap();
    let text = read_until(&mut master, "33 101");
    assert!(text.contains("/dev/pts/0") || text.contains("/dev/console"), "{text}");
    assert_eq!(text.matches("character special file 0").count(), 2, "{text}");
    master.write_all(b"hello\n").unwrap();
    read_until(&mut master, "got hello");
    assert_eq!(container.wait_init(), 4);
    delete(subject.handler.as_ref(), &bundle);
}

fn exec_basics(subject: &Subject) {
    let bundle = Bundle::new("exec");
    let (mut container, mut process) = running(subject, &bundle);
    process["args"] = json!(["sh", "-c", "id -u; echo $X; pwd; exit 3"]);
    process["env"] = json!(["PATH=/bin", "X=y"]);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    process["cwd"] = json!("/tmp");
    let (code, text) = container.run(&process).unwrap();
    assert_eq!((code, text.as_str()), (3, "1000\ny\n/tmp\n"));
    container.end();
}

fn exec_missing(subject: &Subject) {
    let bundle = Bundle::new("execmissing");
    let (mut container, mut process) = running(subject, &bundle);
    process["args"] = json!(["/nope"]);
    match container.run(&process) {
        Err(Error::StartFailed(text) | Error::Failed(text)) => {
            assert!(text.contains("/nope") && text.contains("no such file"), "{text}")
        }
        other => panic!("not a failure to start: {other:?}"),
    }
    container.end();
}

fn exec_terminal(subject: &Subject) {
    let bundle = Bundle::new("exectty");
    let (mut container, mut process) = running(subject, &bundle);
    process["args"] = json!(["sh", "-c", "tty; echo done $((40 + 2))"]);
    process["terminal"] = json!(true);
    let executed = container.exec(&process, Stdio::Terminal).unwrap();
    let mut master = File::from(executed.console.expect("no terminal"));
    let text = read_until(&mut master, "done 42");
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert_eq!(container.wait(executed.pid), 0);
    container.end();
}

fn exec_userns(subject: &Subject) {
    let bundle = Bundle::new("execuserns");
    bundle.give_to(100_000);
    let mut spec = bundle.spec(&["sleep", "60"]);
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (map.clone(), map);
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    bundle.write(&spec);
    let mut container = Container::create(subject.handler.as_ref(), &bundle).unwrap();
    container.start().unwrap();
    let mut process = spec["process"].clone();
    process["args"] = json!([
        "sh",
        "-c",
        "cat /proc/self/uid_map; grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status; for n in user mnt pid net ipc uts cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n differs; done"
    ]);
    process["user"] = json!({"uid": 0, "gid": 0});
    let (code, text) = container.run(&process).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let wanted = [
        "0",
        "100000",
        "65536",
        "CapBnd:",
        "00000000a80425fb",
        "NoNewPrivs:",
        "1",
        "Seccomp:",
        "2",
    ];
    assert_eq!((code, words.as_slice()), (0, wanted.as_slice()), "{text}");
    container.end();
}

fn descriptors(subject: &Subject) {
    let bundle = Bundle::new("fds");
    // Descriptors without close-on-exec, as a careless library in the caller would leave them.
    let host = File::open("/").unwrap();
    // SAFETY: dup of an open descriptor; closed below.
    let leaks: Vec<i32> = (0..5)
        .map(|_| unsafe { libc::dup(std::os::fd::AsRawFd::as_raw_fd(&host)) })
        .collect();
    let (mut container, mut process) = running(subject, &bundle);
    process["args"] = json!(["ls", "/proc/1/fd"]);
    assert_eq!(container.run(&process).unwrap().1, "0\n1\n2\n");
    // One more: the directory that is being listed.
    process["args"] = json!(["sh", "-c", "exec ls /proc/self/fd"]);
    assert_eq!(container.run(&process).unwrap().1, "0\n1\n2\n3\n");
    leaks.into_iter().for_each(|fd| nix::unistd::close(fd).unwrap());
    container.end();
}

fn join_namespaces(subject: &Subject) {
    let first = Bundle::new("join1");
    let (container, _) = running(subject, &first);
    let second = Bundle::new("join2");
    let mut spec = second.spec(&[
        "sh",
        "-c",
        "for n in net ipc uts pid mnt; do readlink /proc/self/ns/$n; done; cat /proc/1/comm; hostname",
    ]);
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.created.init_pid);
    spec["linux"]["namespaces"] = json!([
        {"type": "network", "path": path("net")}, {"type": "ipc", "path": path("ipc")},
        {"type": "uts", "path": path("uts")}, {"type": "pid", "path": path("pid")},
        {"type": "mount"}, {"type": "cgroup"}
    ]);
    second.write(&spec);
    let (code, text) = run(subject.handler.as_ref(), &second).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (at, name) in ["net", "ipc", "uts", "pid"].iter().enumerate() {
        let theirs = std::fs::read_link(path(name)).unwrap();
        assert_eq!(lines[at], theirs.to_str().unwrap(), "{text}");
    }
    assert_ne!(lines[4], std::fs::read_link(path("mnt")).unwrap().to_str().unwrap());
    assert_eq!((code, lines[5], lines[6]), (0, "sleep", "parity"), "{text}");
    container.end();
}
