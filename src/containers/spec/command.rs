//! What the container runs: arguments, environment, working directory.

use std::path::PathBuf;

use super::{Result, SpecInput, invalid};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Contract rule 43: command replaces the entrypoint and drops the image's cmd; args replace cmd.
pub(super) fn args(input: &SpecInput) -> Result<Vec<String>> {
    let (config, image) = (input.config, input.image);
    let (head, tail) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let args: Vec<String> = head.iter().chain(tail).cloned().collect();
    if args.is_empty() {
        return invalid("no command: neither the container nor its image says what to run");
    }
    match args.iter().position(|a| a.contains('\0')) {
        Some(at) => invalid(format!("argument {at} contains a NUL byte")),
        None => Ok(args),
    }
}

/// Contract rule 42: defaults, then the image's, then CRI's, each replacing an earlier value of the same name in place.
pub(super) fn env(input: &SpecInput) -> Result<Vec<String>> {
    let hostname = match input.pod.hostname.as_str() {
        "" => &input.facts.hostname,
        name => name,
    };
    let mut env = Env(Vec::new());
    env.set("PATH", DEFAULT_PATH)?;
    env.set("HOSTNAME", hostname)?;
    if input.config.tty {
        env.set("TERM", "xterm")?;
    }
    env.set("HOME", &input.user.home)?;
    let base = input.base.and_then(|spec| spec.process().as_ref()?.env().as_ref());
    for entry in base.into_iter().flatten().chain(&input.settings.env) {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        env.set(name, value)?;
    }
    for entry in &input.image.env {
        // Docker's meaning of a name without a value is "from the client"; an image has no client.
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        env.set(name, value)?;
    }
    for pair in &input.config.envs {
        match std::str::from_utf8(&pair.value) {
            Ok(value) => env.set(&pair.key, value)?,
            Err(_) => {
                return invalid(format!(
                    "environment variable {}: not UTF-8, which an OCI spec cannot carry",
                    pair.key
                ));
            }
        }
    }
    Ok(env.0)
}

struct Env(Vec<String>);

impl Env {
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return invalid(format!(
                "environment variable {name:?}: empty name, \"=\" in the name, or a NUL byte"
            ));
        }
        let entry = format!("{name}={value}");
        let same = |e: &&mut String| e.split('=').next() == Some(name);
        match self.0.iter_mut().find(same) {
            Some(old) => *old = entry,
            None => self.0.push(entry),
        }
        Ok(())
    }
}

/// Absolute; the runtime makes it if it is not there.
pub(super) fn cwd(input: &SpecInput) -> Result<PathBuf> {
    let dir = match (input.config.working_dir.as_str(), input.image.working_dir.as_str()) {
        ("", "") => "/",
        ("", image) => image,
        (own, _) => own,
    };
    if dir.contains('\0') {
        return invalid("the working directory contains a NUL byte");
    }
    Ok(PathBuf::from("/").join(dir))
}
