//! Hands the command line over.

use std::process::ExitCode;

fn main() -> ExitCode {
    // First of all: a monitor is small only if nothing else has run in it.
    let mut args = std::env::args_os().skip(1);
    let word = args.next();
    if word.as_deref().is_some_and(|word| word == "monitor") {
        return wharf::monitor::main(args);
    }
    if word
        .as_deref()
        .is_some_and(|word| word == wharf::images::rootfs::apart::WORD)
    {
        return wharf::images::rootfs::apart::main(args);
    }
    wharf::cli::main(std::env::args_os())
}
