//! The process object of an exec: the container's own process with another command.

use oci_spec::runtime::{Process, Spec};

/// Why there is no process object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to run.
    #[error("exec: the command is empty")]
    NoCommand,
    /// config.json has no process to take after.
    #[error("exec: the container's spec has no process")]
    NoProcess,
    /// An argument that no program can be given.
    #[error("exec: argument {0} contains a NUL byte")]
    Nul(usize),
}

/// A process for `command` in the container of `spec`: same user, environment, working directory, capabilities, limits
/// and profiles as the container's own. With a terminal, `TERM` gets a value if it has none.
///
/// # Errors
/// An empty command, one with a NUL byte, or a spec without a process.
pub fn for_exec(spec: &Spec, command: Vec<String>, terminal: bool) -> Result<Process, Error> {
    if command.is_empty() {
        return Err(Error::NoCommand);
    }
    if let Some(at) = command.iter().position(|arg| arg.contains('\0')) {
        return Err(Error::Nul(at));
    }
    let mut process = spec.process().clone().ok_or(Error::NoProcess)?;
    process
        .set_args(Some(command))
        .set_terminal(Some(terminal))
        .set_console_size(None);
    if terminal {
        let env = process.env_mut().get_or_insert_with(Vec::new);
        if !env.iter().any(|e| e.starts_with("TERM=")) {
            env.push("TERM=xterm".to_owned());
        }
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_differs_from_the_container_in_its_command_only() {
        let mut own = Process::default();
        own.set_args(Some(vec!["init".into()]))
            .set_no_new_privileges(Some(true))
            .set_cwd("/work".into());
        own.set_env(Some(vec!["A=1".into()]));
        let mut spec = Spec::default();
        spec.set_process(Some(own.clone()));
        let got = for_exec(&spec, vec!["true".into()], false).unwrap();
        own.set_args(Some(vec!["true".into()])).set_terminal(Some(false));
        assert_eq!(got, own);
        let got = for_exec(&spec, vec!["sh".into()], true).unwrap();
        assert_eq!(
            got.env().as_deref(),
            Some(&["A=1".to_owned(), "TERM=xterm".to_owned()][..])
        );
    }

    #[test]
    fn impossible_commands_are_refused() {
        assert!(for_exec(&Spec::default(), vec![], false).is_err());
        assert!(for_exec(&Spec::default(), vec!["a\0b".into()], false).is_err());
    }
}
