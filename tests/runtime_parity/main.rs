//! What runc does, the built-in runtime must do: the same bundles under each handler, looked at from the inside.
//!
//! Runs as root, on one thread, because handlers fork. `cargo test --test runtime_parity [NAME]` runs the tests whose
//! name contains NAME.

mod behaviour;
mod compare;
mod fixture;
mod hostile;
mod probe;
mod speed;

use std::path::{Path, PathBuf};
use wharf::runtime::{Handler, handler};

/// A handler under test.
pub struct Subject {
    pub name: &'static str,
    pub handler: Box<dyn Handler>,
}

type Test = (&'static str, fn(&Subject));

fn main() {
    if !nix::unistd::geteuid().is_root() {
        println!("runtime_parity: skipped, needs root");
        return;
    }
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    // runc hands on what its caller ignores.
    wharf::sys::reset_signals();
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let state = tempdir();
    let builtin = Subject {
        name: "builtin",
        handler: handler("", "", Vec::new()),
    };
    let runc = find("runc").map(|path| Subject {
        name: "runc",
        handler: handler(
            &path.to_string_lossy(),
            &state.join("runc").to_string_lossy(),
            Vec::new(),
        ),
    });
    let subjects: Vec<&Subject> = std::iter::once(&builtin).chain(&runc).collect();

    let mut failed = 0;
    let mut report = |name: String, run: &dyn Fn()| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        println!("test {name} ... {}", if result.is_ok() { "ok" } else { "FAILED" });
        failed += usize::from(result.is_err());
        fixture::reap();
    };
    for (name, test) in behaviour::TESTS {
        for subject in subjects.iter().filter(|_| chosen(name)) {
            report(format!("{name} [{}]", subject.name), &|| test(subject));
        }
    }
    for (name, test) in hostile::TESTS.iter().filter(|(name, _)| chosen(name)) {
        report((*name).to_string(), &|| test(&builtin));
    }
    match &runc {
        Some(runc) => {
            for case in compare::cases().iter().filter(|case| chosen(case.name)) {
                report(format!("parity: {}", case.name), &|| {
                    compare::compare(case, &builtin, runc)
                });
            }
        }
        None => println!("runc is not installed: nothing to compare with"),
    }
    if chosen("speed") {
        subjects.iter().for_each(|subject| speed::measure(subject));
    }
    fixture::remove_cgroups();
    let _ = std::fs::remove_dir_all(state);
    if failed > 0 {
        println!("{failed} failed");
        std::process::exit(1);
    }
}

fn tempdir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("wharf-parity-state-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn find(program: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(program))
        .find(|path| path.exists())
}
