//! What keeps a container from ending after SIGKILL.

use std::fs;

use crate::cgroups::{Cgroup, Hierarchies};

/// Processes named at most.
const MOST: usize = 8;

/// The processes that are left in the cgroup, as `PID (name) state in kernel function`, for a person. A process in state D
/// waits in the kernel and takes no signal before that is over (proc(5)). Blocking.
pub(super) fn describe(hierarchies: &Hierarchies, cgroup: &str) -> String {
    let Ok(cgroup) = Cgroup::new(hierarchies, cgroup) else {
        return String::new();
    };
    let pids = cgroup.pids();
    let mut texts: Vec<String> = pids.iter().take(MOST).filter_map(|pid| process(*pid)).collect();
    if pids.len() > MOST {
        texts.push(format!("and {} more", pids.len() - MOST));
    }
    texts.join(", ")
}

fn process(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is whatever the process says, so what follows it is found from behind.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once('(').map_or("", |(_, name)| name);
    let state = tail.chars().next()?;
    let place = fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    let place = match place.trim() {
        "" | "0" => String::new(),
        function => format!(" in {function}"),
    };
    Some(format!("{pid} ({name}) {state}{place}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_is_told_with_its_name_and_state() {
        let own = std::process::id().cast_signed();
        let text = super::process(own).unwrap();
        assert!(text.starts_with(&format!("{own} (")), "{text}");
        assert!([") R", ") S"].iter().any(|state| text.contains(state)), "{text}");
        assert_eq!(super::process(i32::MAX), None);
    }
}
