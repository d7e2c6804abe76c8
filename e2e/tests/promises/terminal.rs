//! Interactive sessions of the `wharf` command: terminals, stdin, exit codes, signals.

use std::{os::fd::AsRawFd as _, process::Stdio, time::Duration};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Child,
};
use wharf_e2e::{Daemon, PATIENCE, eventually, registry::reference};

/// A command in a terminal of 80 by 24.
struct Typist {
    child: Child,
    master: tokio::fs::File,
    screen: String,
}

impl Typist {
    fn new(daemon: &Daemon, args: &[&str]) -> Typist {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let side = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = daemon.wharf(args);
        command.stdin(side()).stdout(side()).stderr(side());
        // SAFETY: two system calls on descriptor 0, which is the terminal.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Typist {
            child: command.spawn().unwrap(),
            master: tokio::fs::File::from_std(pty.master.into()),
            screen: String::new(),
        }
    }

    async fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).await.unwrap();
        self.master.flush().await.unwrap();
    }

    /// Waits until `text` stands on the screen after what was expected before.
    async fn expect(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        let wait = async {
            while !self.screen.contains(text) {
                match self.master.read(&mut buffer).await {
                    Ok(count) if count > 0 => self.screen.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    _ => return false,
                }
            }
            true
        };
        let found = tokio::time::timeout(PATIENCE, wait).await;
        let screen = self.screen.clone();
        assert_eq!(found, Ok(true), "{text:?} does not come: {screen:?}");
        let at = self.screen.find(text).unwrap() + text.len();
        self.screen.drain(..at);
    }

    fn resize(&self, width: u16, height: u16) {
        let size = Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: a valid winsize.
        let result = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0);
    }

    async fn code(mut self) -> Option<i32> {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended
            .unwrap_or_else(|_| panic!("it does not end; on the screen: {:?}", self.screen))
            .unwrap()
            .code()
    }
}

/// A command with pipes.
struct Piped(Child);

impl Piped {
    fn new(daemon: &Daemon, args: &[&str]) -> Piped {
        let mut command = daemon.wharf(args);
        let piped = || Stdio::piped();
        Piped(command.stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap())
    }

    async fn write(&mut self, text: &str) {
        self.0.stdin.as_mut().unwrap().write_all(text.as_bytes()).await.unwrap();
    }

    async fn expect(&mut self, text: &str) {
        let mut got = vec![0; text.len()];
        let read = self.0.stdout.as_mut().unwrap().read_exact(&mut got);
        let read = tokio::time::timeout(PATIENCE, read).await;
        assert!(
            matches!(read, Ok(Ok(_))),
            "{text:?} does not come: {:?}",
            String::from_utf8_lossy(&got)
        );
        assert_eq!(String::from_utf8_lossy(&got), text);
    }

    /// Sends a signal to the command itself, which is the only child of what was spawned.
    fn signal(&self, signal: Signal) {
        let outer = self.0.id().unwrap();
        let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        kill(Pid::from_raw(children.trim().parse().unwrap()), signal).unwrap();
    }

    /// Ends stdin and waits for the end.
    async fn rest(mut self) -> (Option<i32>, String, String) {
        drop(self.0.stdin.take());
        let output = tokio::time::timeout(PATIENCE, self.0.wait_with_output()).await;
        let output = output.expect("it does not end").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

async fn image(daemon: &Daemon) -> String {
    daemon.pull("busybox:latest").await;
    reference("busybox:latest")
}

#[tokio::test]
async fn run_it_gives_a_terminal_that_follows_ours() {
    crate::on_each_handler(async |daemon| {
        let image = image(&daemon).await;
        let args = ["run", "-it", "--rm", "--name", "tty", "--log-dir", "/tmp", &image, "sh"];
        let logs = daemon.logs.to_string_lossy().into_owned();
        let args = args.map(|arg| if arg == "/tmp" { logs.as_str() } else { arg });
        let mut typist = Typist::new(&daemon, &args);
        typist.expect("# ").await;
        typist.write("stty size; tty; echo $((6*7)) $TERM\r").await;
        typist.expect("24 80\r\n").await;
        typist.expect("/dev/pts/0\r\n").await;
        typist.expect("42 xterm").await;
        typist.resize(132, 43);
        // The new size is on its way while this is typed.
        typist.write("until stty size | grep 132; do sleep 0.1; done\r").await;
        typist.expect("43 132\r\n").await;
        // Ctrl-C is the foreground process's, not the container's end.
        typist.write("echo waiting; sleep 1000\r").await;
        typist.expect("waiting\r\n").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        typist.write("\x03").await;
        typist.expect("# ").await;
        typist.write("echo after=$?\r").await;
        typist.expect("after=130").await;
        typist.write("exit 7\r").await;
        assert_eq!(typist.code().await, Some(7));
        let list = daemon.wharf(&["ps", "-a"]).output().await.unwrap();
        assert!(
            !String::from_utf8_lossy(&list.stdout).contains("tty"),
            "--rm leaves nothing"
        );
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn a_terminal_is_left_and_come_back_to() {
    let daemon = Daemon::start().await;
    let image = image(&daemon).await;
    let logs = daemon.logs.to_string_lossy().into_owned();
    let mut typist = Typist::new(
        &daemon,
        &["run", "-it", "--name", "stay", "--log-dir", &logs, &image, "sh"],
    );
    typist.expect("# ").await;
    typist.write("A=remembered\r").await;
    typist.expect("# ").await;
    typist.write("\x10\x11").await;
    typist.expect("left container stay running").await;
    assert_eq!(typist.code().await, Some(0));
    let mut typist = Typist::new(&daemon, &["attach", "--detach-keys", "ctrl-x", "stay"]);
    typist.write("echo is $A\r").await;
    typist.expect("is remembered").await;
    typist.write("\x18").await;
    assert_eq!(typist.code().await, Some(0));
    let mut typist = Typist::new(&daemon, &["attach", "-n", "50", "stay"]);
    typist.expect("A=remembered").await;
    typist.write("exit 5\r").await;
    assert_eq!(typist.code().await, Some(5));
    daemon.wharf(&["rm", "-f", "stay"]).output().await.unwrap();
    daemon.finish().await;
}

#[tokio::test]
async fn exec_it_has_a_terminal_and_exec_i_an_end_of_input() {
    crate::on_each_handler(async |daemon| {
        let (_, id) = daemon.running("exec", "sleep 1000").await;
        let mut typist = Typist::new(&daemon, &["exec", "-it", &id, "sh"]);
        typist.expect("# ").await;
        typist.write("stty size; exit 9\r").await;
        typist.expect("24 80").await;
        assert_eq!(typist.code().await, Some(9));
        let mut piped = Piped::new(&daemon, &["exec", "-i", &id, "sh", "-c", "cat; echo end >&2; exit 4"]);
        piped.write("one\n").await;
        piped.expect("one\n").await;
        piped.write("two").await;
        assert_eq!(piped.rest().await, (Some(4), "two".into(), "end\n".into()));
        for (command, code) in [
            (vec!["/no/such"], 127),
            (vec!["/etc/passwd"], 126),
            (vec!["sh", "-c", "kill -9 $$"], 137),
        ] {
            let args: Vec<&str> = ["exec", id.as_str()]
                .into_iter()
                .chain(command.iter().copied())
                .collect();
            let (got, _, stderr) = Piped::new(&daemon, &args).rest().await;
            assert_eq!(got, Some(code), "{command:?}: {stderr}");
        }
        let (code, _, stderr) = Piped::new(&daemon, &["exec", "-it", &id, "sh"]).rest().await;
        assert!(code == Some(1) && stderr.contains("not a TTY"), "{code:?} {stderr}");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn an_exec_ends_with_its_client() {
    let daemon = Daemon::start().await;
    let (_, id) = daemon.running("exec", "sleep 1000").await;
    let mut piped = Piped::new(
        &daemon,
        &["exec", "-i", &id, "sh", "-c", "echo up; sleep 555 & sleep 555"],
    );
    piped.expect("up\n").await;
    piped.signal(Signal::SIGKILL);
    piped.0.wait().await.unwrap();
    eventually("the command and its children end", async || {
        let list = daemon.cri.exec(&id, &["ps"], 10).await.unwrap();
        !String::from_utf8_lossy(&list.stdout).contains("sleep 555")
    })
    .await;
    daemon.finish().await;
}

#[tokio::test]
async fn run_i_is_a_filter() {
    crate::on_each_handler(async |daemon| {
        let image = image(&daemon).await;
        let logs = daemon.logs.to_string_lossy().into_owned();
        let start = ["run", "-i", "--rm", "--log-dir", &logs, &image];
        let run = |rest: &[&str]| {
            let args: Vec<&str> = start.iter().copied().chain(rest.iter().copied()).collect();
            Piped::new(&daemon, &args)
        };
        let mut sort = run(&["sort"]);
        sort.write("c\na\nb\n").await;
        assert_eq!(sort.rest().await, (Some(0), "a\nb\nc\n".into(), String::new()));
        // What it writes before anyone could have attached is not lost.
        assert_eq!(run(&["echo", "at once"]).rest().await.1, "at once\n");
        let (code, _, stderr) = run(&["/no/such"]).rest().await;
        assert_eq!(code, Some(127), "{stderr}");
        let mut trap = run(&[
            "sh",
            "-c",
            "trap 'echo INT; exit 3' INT; echo up; while :; do sleep 0.1; done",
        ]);
        trap.expect("up\n").await;
        trap.signal(Signal::SIGINT);
        trap.expect("INT\n").await;
        let code = tokio::time::timeout(PATIENCE, trap.0.wait())
            .await
            .expect("it does not end");
        assert_eq!(code.unwrap().code(), Some(3));
        daemon.finish().await;
    })
    .await;
}
