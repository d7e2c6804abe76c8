//! Debian's docker-registry inside a lab.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Child;

use crate::Result;
use crate::lab::Lab;

/// Where the lab's registry listens, in the lab's network namespace.
pub const ADDRESS: &str = "127.0.0.1:5000";
/// Where the one that asks for a password listens.
pub const PRIVATE: &str = "127.0.0.1:5001";
/// Where the one listens that takes what it is sent.
pub const WRITABLE: &str = "127.0.0.1:5002";
/// Who may read from [`PRIVATE`].
pub const USER: &str = "person";
/// The password of [`USER`].
pub const PASSWORD: &str = "secret";

const PASSWORD_HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// Full reference of a fixture image.
pub fn reference(name: &str) -> String {
    format!("{ADDRESS}/{name}")
}

/// Starts a registry on `address` over `storage`; `dir` receives its configuration and its log.
///
/// # Errors
/// When docker-registry is not installed or does not listen in time.
pub async fn start(lab: &Lab, dir: &Path, storage: &Path, address: &str) -> Result<Child> {
    let port = address.rsplit(':').next().unwrap_or_default();
    let mut config = format!(
        "version: 0.1\nlog: {{ level: warn }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  maintenance:\n    \
         readonly: {{ enabled: {} }}\n    uploadpurging: {{ enabled: false }}\nhttp:\n  addr: {address}\n",
        storage.display(),
        address != WRITABLE,
    );
    if address == PRIVATE {
        let passwords = dir.join("htpasswd");
        std::fs::write(&passwords, format!("{USER}:{PASSWORD_HASH}\n"))?;
        config += &format!("auth:\n  htpasswd: {{ realm: e2e, path: {} }}\n", passwords.display());
    }
    let file = dir.join(format!("registry-{port}.yml"));
    std::fs::write(&file, config)?;
    let log = std::fs::File::create(dir.join(format!("registry-{port}.log")))?;
    let child = lab
        .command("docker-registry")
        .arg("serve")
        .arg(&file)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let end = std::time::Instant::now() + crate::PATIENCE;
    let hex = format!("0100007F:{:04X} 00000000:0000 0A", port.parse::<u16>()?);
    // The kernel's table of listeners says when it is ready; connecting would need to be inside.
    while !std::fs::read_to_string(format!("/proc/{}/net/tcp", lab.init))?.contains(&hex) {
        if std::time::Instant::now() > end {
            return Err(format!("docker-registry does not listen on {address}; see {}", dir.display()).into());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    Ok(child)
}
