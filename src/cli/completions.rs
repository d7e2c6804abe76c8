//! `wharf completions`: a script that makes a shell complete the command line.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::error::Outcome;
use super::{Cli, output};

/// Arguments of `wharf completions`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &Arguments) -> Outcome {
    output::text(&script(arguments.shell))?;
    Ok(0)
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_with_all_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in ["serve", "run", "images", "doctor"] {
                assert!(script.contains(command), "{shell} lacks {command}");
            }
        }
    }
}
