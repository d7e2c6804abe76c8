//! Ending a process with all its descendants, however fast it makes new ones.

use std::{fs, path::PathBuf};

use super::sys;

/// Rounds through the tree before the rest is left alone.
const MAX_ROUNDS: usize = 64;
/// Processes after which the rest is left alone.
const MAX_PROCESSES: usize = 32 << 10;

/// Kills `root`, every descendant that is still linked to it, and of `others` (processes of its container) those of its
/// session, which have lost their parent, with theirs. All are stopped first, parents before children, until
/// a round finds nobody new: then no one is left who could fork, and none of the pids can be used anew because their
/// parents are stopped and do not wait for them. `root` must be a child of the caller that was not waited for.
pub fn kill(root: i32, others: impl Fn() -> Vec<i32>) {
    let _ = sys::kill(root, libc::SIGSTOP);
    let mut stopped = vec![root];
    for _ in 0..MAX_ROUNDS {
        let before = stopped.len();
        for pid in others() {
            if !stopped.contains(&pid) && session(pid) == Some(root) {
                let _ = sys::kill(pid, libc::SIGSTOP);
                stopped.push(pid);
            }
        }
        let mut at = 0;
        while at < stopped.len() && stopped.len() < MAX_PROCESSES {
            for child in children(stopped[at]) {
                if !stopped.contains(&child) {
                    let _ = sys::kill(child, libc::SIGSTOP);
                    stopped.push(child);
                }
            }
            at += 1;
        }
        if stopped.len() == before {
            break;
        }
    }
    for pid in stopped {
        let _ = sys::kill(pid, libc::SIGKILL);
    }
}

/// The session of `pid`, which its first process gave its number (proc(5), "stat").
fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // State, parent, group, session; the name before them may be anything.
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

/// Children of all threads of `pid`.
fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let files = threads
        .flatten()
        .map(|thread| -> PathBuf { thread.path().join("children") });
    files
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead as _, process::Stdio};

    use super::*;

    #[test]
    fn a_tree_ends_with_its_root() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "sh -c 'sleep 100 & echo $!; sleep 100 & echo $!; wait' & wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut pids = Vec::new();
        for _ in 0..2 {
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            pids.push(line.trim().parse::<i32>().unwrap());
        }
        kill(i32::try_from(child.id()).unwrap(), Vec::new);
        child.wait().unwrap();
        // The pipe closes when the last one has gone.
        assert_eq!(output.read_line(&mut String::new()).unwrap(), 0);
    }

    #[test]
    fn a_session_ends_with_its_first_process() {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", "(sleep 100 & echo $!); sleep 100"])
            .stdout(Stdio::piped());
        // SAFETY: setsid touches no memory.
        let mut child = unsafe { command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?)) }
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let orphan: i32 = line.trim().parse().unwrap();
        let bystander = i32::try_from(std::process::id()).unwrap();
        kill(i32::try_from(child.id()).unwrap(), || vec![orphan, bystander]);
        child.wait().unwrap();
        assert_eq!(
            output.read_line(&mut String::new()).unwrap(),
            0,
            "the pipe closes with the last one"
        );
    }
}
