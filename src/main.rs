//! Hands the command line over.

use std::process::ExitCode;

fn main() -> ExitCode {
    wharf::cli::main(std::env::args_os())
}
