//! Hands the command line over.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a monitor is small only if nothing else has run in it.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == "monitor") {
        return wharf::monitor::main(args);
    }
    wharf::cli::main(std::env::args_os())
}
