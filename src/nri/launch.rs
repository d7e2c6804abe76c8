//! Plugins that the daemon starts: executable files `NN-name` of a directory, each with one end of a socket pair as its
//! descriptor 3.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream as StdUnixStream},
    },
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{net::UnixStream, process::Child};

use super::plugin::Identity;

/// The descriptor of its socket.
const SOCKET: i32 = 3;

/// A plugin's file.
#[derive(Debug, PartialEq, Eq)]
pub struct Installed {
    /// By its name.
    pub identity: Identity,
    /// The program.
    pub path: PathBuf,
    /// What it is configured with; empty without a file.
    pub config: String,
}

/// The plugins in `directory`, in the order in which they are asked. What can't be one is logged. Blocking.
pub fn installed(directory: &Path, configs: &Path) -> Vec<Installed> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(directory = %directory.display(), %error, "the directory of NRI plugins can't be read");
            return Vec::new();
        }
    };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let program = std::fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0);
        if !program {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let plugin = Identity::parse(&name).and_then(|identity| {
            let config = config(configs, &identity)?;
            Ok(Installed {
                identity,
                path: path.clone(),
                config,
            })
        });
        match plugin {
            Ok(plugin) => found.push(plugin),
            Err(error) => tracing::error!(plugin = name, %error, "an NRI plugin is not started"),
        }
    }
    found.sort_by_key(|plugin| plugin.identity.name());
    found
}

/// The plugin's own file before one for all of its name.
fn config(directory: &Path, identity: &Identity) -> Result<String, String> {
    for name in [identity.name(), identity.base.clone()] {
        let path = directory.join(format!("{name}.conf"));
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("read {}: {error}", path.display())),
        }
    }
    Ok(String::new())
}

/// Starts the plugin; its process and the daemon's end of its socket.
///
/// # Errors
/// When it can't be run.
pub fn start(plugin: &Installed) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let mut command = tokio::process::Command::new(&plugin.path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &plugin.identity.base)
        .env("NRI_PLUGIN_IDX", &plugin.identity.index)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        // Into the daemon's own log.
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    inherit(&mut command, theirs.into());
    Ok((command.spawn()?, ours))
}

/// Has the program find the socket as its descriptor 3.
fn inherit(command: &mut tokio::process::Command, socket: OwnedFd) {
    let give = move || {
        let from = socket.as_raw_fd();
        // SAFETY: plain system calls on descriptors of this process, which is the child: allowed between fork and exec.
        let done = unsafe {
            match from == SOCKET {
                // As it is, but not closed by exec.
                true => libc::fcntl(from, libc::F_SETFD, 0),
                false => libc::dup2(from, SOCKET),
            }
        };
        match done {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: `give` allocates nothing and takes no lock.
    unsafe { command.pre_exec(give) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_with_fitting_names_are_plugins_and_find_their_configuration() {
        let dir = std::env::temp_dir().join(format!("wharf-nri-{}", std::process::id()));
        let (plugins, configs) = (dir.join("plugins"), dir.join("conf.d"));
        std::fs::create_dir_all(&plugins).unwrap();
        std::fs::create_dir_all(&configs).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o700), ("30-c", 0o644), ("nothing", 0o755)] {
            std::fs::write(plugins.join(name), "").unwrap();
            std::fs::set_permissions(plugins.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir(plugins.join("40-d")).unwrap();
        std::fs::write(configs.join("a.conf"), "for all").unwrap();
        std::fs::write(configs.join("b.conf"), "for all").unwrap();
        std::fs::write(configs.join("20-b.conf"), "its own").unwrap();
        let found = installed(&plugins, &configs);
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.identity.name(), one.config.as_str()))
            .collect();
        assert_eq!(told, [("10-a".to_owned(), "for all"), ("20-b".to_owned(), "its own")]);
        assert!(installed(&dir.join("absent"), &configs).is_empty());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
