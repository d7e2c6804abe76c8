//! Clients attached to containers of a real monitor. Needs root.

#[allow(dead_code)]
mod monitor_lab;

use std::{
    fs::{self, File},
    io::{PipeReader, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use monitor_lab::{Lab, Pod, within};
use wharf::monitor::{
    Client, Event, Events,
    client::passing::{Word, hear},
};
use wharf_proto::monitor as proto;

/// A client without a daemon.
struct Guest {
    control: UnixStream,
    stdout: PipeReader,
    stderr: PipeReader,
}

impl Guest {
    async fn attach(client: &Client, id: &str, early: bool) -> Guest {
        let (control, theirs) = UnixStream::pair().unwrap();
        let (stdout, out) = std::io::pipe().unwrap();
        let (stderr, err) = std::io::pipe().unwrap();
        let request = proto::Attach {
            container_id: id.into(),
            stdin: true,
            stdout: true,
            stderr: true,
            early,
        };
        within(client.attach(request, vec![theirs.into(), out.into(), err.into()]))
            .await
            .unwrap();
        Guest {
            control,
            stdout,
            stderr,
        }
    }

    fn hear(&self) -> Word {
        hear(self.control.as_fd()).unwrap()
    }

    fn input(&self) -> File {
        match self.hear() {
            Word::Input(fd) | Word::Terminal(fd) => fd.into(),
            other => panic!("no input but {other:?}"),
        }
    }

    async fn expect(&mut self, text: &str) {
        let mut reader = self.stdout.try_clone().unwrap();
        let length = text.len();
        let read = tokio::task::spawn_blocking(move || {
            let mut got = vec![0; length];
            reader.read_exact(&mut got).map(|()| got)
        });
        let got = within(read).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// All that comes until the end of both streams.
    async fn rest(self) -> (String, String) {
        let (mut stdout, mut stderr) = (self.stdout, self.stderr);
        let read = tokio::task::spawn_blocking(move || {
            let (mut out, mut err) = (String::new(), String::new());
            stdout.read_to_string(&mut out).unwrap();
            stderr.read_to_string(&mut err).unwrap();
            (out, err)
        });
        within(read).await.unwrap()
    }
}

async fn ended(events: &mut Events) -> i32 {
    match within(events.recv()).await {
        Some(Event::ContainerExited(exited)) => exited.code,
        other => panic!("no end of the container but {other:?}"),
    }
}

async fn over(client: &Client, id: &str) {
    within(client.delete(id)).await.unwrap();
    within(client.shutdown()).await.unwrap();
}

#[tokio::test]
async fn clients_see_what_comes_from_now_on_and_share_stdin() {
    let lab = Lab::new("attach");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let script = "echo before; while read line; do echo \"out $line\"; echo \"err $line\" >&2; test $line != end || exit 4; done";
    let mut start = lab.container("c", script);
    start.stdin = true;
    within(client.start(start)).await.unwrap();
    lab.wait_for_log("c", "stdout F before").await;

    let mut first = Guest::attach(&client, "c", false).await;
    let mut second = Guest::attach(&client, "c", false).await;
    first.input().write_all(b"one\n").unwrap();
    first.expect("out one\n").await;
    second.expect("out one\n").await;
    // Stdin stays open when a client has gone, also over a new connection.
    drop(first);
    let mut input = second.input();
    input.write_all(b"two\n").unwrap();
    second.expect("out two\n").await;
    let (client, _, mut events) = {
        drop(client);
        while within(events.recv()).await.is_some() {}
        Client::connect(&lab.socket(), monitor_lab::LIMIT).await.unwrap()
    };
    input.write_all(b"end\n").unwrap();
    assert_eq!(ended(&mut events).await, 4);
    let (out, err) = second.rest().await;
    assert_eq!(
        (out.as_str(), err.as_str()),
        ("out end\n", "err one\nerr two\nerr end\n")
    );
    assert_eq!(lab.log_lines("c").len(), 7);
    over(&client, "c").await;
}

#[tokio::test]
async fn stdin_once_is_the_first_clients_and_ends_with_it() {
    let lab = Lab::new("once");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let mut start = lab.container(
        "c",
        "while read line; do echo got $line; done; echo over; read more || exit 6",
    );
    (start.stdin, start.stdin_once) = (true, true);
    // Attached before it runs, so that nothing is missed.
    let mut first = Guest::attach(&client, "c", true).await;
    within(client.start(start)).await.unwrap();
    let mut input = first.input();
    let second = Guest::attach(&client, "c", false).await;
    assert!(matches!(second.hear(), Word::NoInput));
    input.write_all(b"a\n").unwrap();
    first.expect("got a\n").await;
    drop(input);
    assert_eq!(ended(&mut events).await, 6);
    assert_eq!(first.rest().await.0, "over\n");
    assert_eq!(second.rest().await.0, "got a\nover\n");
    over(&client, "c").await;
}

#[tokio::test]
async fn a_terminal_is_one_stream_with_a_size() {
    let lab = Lab::new("terminal");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let mut start = lab.container_with(
        "c",
        &["/bin/sh", "-c", "read line; echo size $(busybox stty size); exit 3"],
        |config| config["process"]["terminal"] = true.into(),
    );
    start.terminal = true;
    let mut guest = Guest::attach(&client, "c", true).await;
    within(client.start(start)).await.unwrap();
    let mut master = guest.input();
    let size = libc::winsize {
        ws_row: 33,
        ws_col: 111,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: a valid winsize.
    assert_eq!(
        unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) },
        0
    );
    master.write_all(b"go\r").unwrap();
    guest.expect("go\r\nsize 33 111\r\n").await;
    assert_eq!(ended(&mut events).await, 3);
    assert_eq!(guest.rest().await, (String::new(), String::new()));
    assert_eq!(lab.log_lines("c"), ["stdout F go\r", "stdout F size 33 111\r"]);
    over(&client, "c").await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_nobody_else() {
    let lab = Lab::new("stuck");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let mut start = lab.container("c", "read go; busybox seq 1 400000");
    start.stdin = true;
    within(client.start(start)).await.unwrap();
    let stuck = Guest::attach(&client, "c", false).await;
    let reader = Guest::attach(&client, "c", false).await;
    reader.input().write_all(b"go\n").unwrap();
    let reading = tokio::spawn(reader.rest());
    assert_eq!(ended(&mut events).await, 0);
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(
        within(reading).await.unwrap().0 == expected,
        "the other client missed something"
    );
    let log = lab.log_lines("c");
    assert_eq!(log.len(), 400_000);
    assert!(
        log.iter()
            .enumerate()
            .all(|(at, line)| *line == format!("stdout F {}", at + 1))
    );
    drop(stuck.input());
    assert!(matches!(stuck.hear(), Word::CutOff), "it is told why it was cut off");
    assert!(matches!(stuck.hear(), Word::Closed));
    let beginning = stuck.rest().await.0;
    assert!(expected.starts_with(&beginning) && beginning.len() > 64 << 10);
    over(&client, "c").await;
}

#[tokio::test]
async fn a_slow_client_gets_everything() {
    let lab = Lab::new("slow");
    let Pod { client, mut events, .. } = lab.monitor(false).await;
    let guest = Guest::attach(&client, "c", true).await;
    within(client.start(lab.container("c", "busybox seq 1 300000; echo end >&2")))
        .await
        .unwrap();
    let slow = tokio::task::spawn_blocking(move || {
        let (mut text, mut stdout) = (Vec::new(), guest.stdout);
        let mut block = vec![0; 100_000];
        loop {
            std::thread::sleep(std::time::Duration::from_millis(20));
            match stdout.read(&mut block).unwrap() {
                0 => return text,
                count => text.extend_from_slice(&block[..count]),
            }
        }
    });
    let text = within(slow).await.unwrap();
    let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert!(text == expected.as_bytes());
    assert_eq!(ended(&mut events).await, 0);
    over(&client, "c").await;
}

#[tokio::test]
async fn a_thousand_clients_and_execs_leave_nothing_behind() {
    let lab = Lab::new("thousand");
    let Pod {
        client,
        hello,
        mut events,
    } = lab.monitor(false).await;
    let mut start = lab.container("c", "while :; do echo tick; busybox usleep 2000; done");
    start.stdin = true;
    within(client.start(start)).await.unwrap();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", hello.pid)).unwrap().count();
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let mut before = None;
    for round in 0..1000 {
        let mut guest = Guest::attach(&client, "c", false).await;
        if round % 3 == 0 {
            guest.expect("tick\n").await;
        }
        if round % 10 == 0 {
            let id = format!("e{round}");
            let exec = proto::Exec {
                bound: true,
                ..lab.exec(&id, "c", "sleep 100 & true")
            };
            within(client.exec(exec, vec![null(), null(), null()])).await.unwrap();
            if round % 20 == 0 {
                within(client.kill_exec(&id)).await.unwrap();
            }
            assert!(matches!(within(events.recv()).await, Some(Event::ExecExited(_))));
        }
        drop(guest);
        if round == 100 {
            lab.wait(|| descriptors() < 24).await;
            before = Some((descriptors(), lab.anonymous_kib(hello.pid)));
        }
    }
    let (files, memory) = before.unwrap();
    lab.wait(|| descriptors() <= files).await;
    lab.wait(|| lab.anonymous_kib(hello.pid) <= memory + 16).await;
    within(client.kill("c", libc::SIGKILL, true)).await.unwrap();
    ended(&mut events).await;
    over(&client, "c").await;
}

#[tokio::test]
async fn a_bound_exec_ends_with_its_connection() {
    let lab = Lab::new("bound");
    let Pod { client, .. } = lab.monitor(false).await;
    within(client.start(lab.container("c", "while :; do sleep 1; done")))
        .await
        .unwrap();
    let (mut output, writer) = std::io::pipe().unwrap();
    let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
    let exec = proto::Exec {
        bound: true,
        ..lab.exec("e", "c", "sleep 99 & wait")
    };
    within(client.exec(exec, vec![null(), writer.into(), null()]))
        .await
        .unwrap();
    drop(client);
    let rest = tokio::task::spawn_blocking(move || output.read(&mut [0; 8]));
    assert_eq!(within(rest).await.unwrap().unwrap(), 0, "it runs without its daemon");
    let (client, _, mut events) = Client::connect(&lab.socket(), monitor_lab::LIMIT).await.unwrap();
    within(client.kill("c", libc::SIGKILL, true)).await.unwrap();
    while !matches!(within(events.recv()).await, Some(Event::ContainerExited(_))) {}
    over(&client, "c").await;
}
