//! Programs that are asked about images, called as containerd calls its image verifiers: `-name`, `-digest` and
//! `-stdin-media-type` as arguments, the image's descriptor on stdin; exit code 0 lets the image in, and the reason is on stdout.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::images::registry::{Document, digest_of};

const MEDIA_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// How much of what a program says is repeated.
const MAX_REASON: usize = 500;
/// How much of it is read.
const MAX_OUTPUT: u64 = 64 << 10;

/// Programs, in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verifiers {
    programs: Vec<PathBuf>,
    /// Another one when they change.
    pub fingerprint: String,
}

/// The programs in `directory`; absent is none. Blocking.
///
/// # Errors
/// A sentence about the directory.
pub(super) fn find(directory: &Path) -> Result<Verifiers, String> {
    let failed = |error: io::Error| format!("list {}: {error}", directory.display());
    let mut programs = Vec::new();
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(entries) => {
            for entry in entries {
                programs.push(entry.map_err(failed)?.path());
            }
        }
    }
    programs.sort();
    let mut text = String::new();
    for program in &programs {
        let about = fs::metadata(program).map_err(|error| format!("read {}: {error}", program.display()))?;
        text.push_str(&format!(
            "{}\0{} {} {} {}\0",
            program.display(),
            about.ino(),
            about.size(),
            about.mtime(),
            about.mtime_nsec()
        ));
    }
    Ok(Verifiers {
        programs,
        fingerprint: digest_of(text.as_bytes()),
    })
}

impl Verifiers {
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// Asks all of them about the image `name`, which is `document`; each has `patience`.
    ///
    /// # Errors
    /// Who refuses it and why, or who could not be asked.
    pub async fn ask(&self, name: &str, document: &Document, patience: Duration) -> Result<(), String> {
        for program in &self.programs {
            let shown = program.display();
            match tokio::time::timeout(patience, ask(program, name, document)).await {
                Err(_) => {
                    return Err(format!(
                        "verifier {shown} has not answered within {} s",
                        patience.as_secs()
                    ));
                }
                Ok(Err(error)) => return Err(format!("verifier {shown} can't be asked: {error}")),
                Ok(Ok((status, reason))) if !status.success() => {
                    return Err(format!("verifier {shown} refuses it ({status}): {reason}"));
                }
                Ok(Ok((_, reason))) => tracing::debug!(verifier = %shown, name, reason, "an image is let in"),
            }
        }
        Ok(())
    }
}

async fn ask(program: &Path, name: &str, document: &Document) -> io::Result<(std::process::ExitStatus, String)> {
    let descriptor = serde_json::json!({
        "mediaType": document.media_type, "digest": document.digest, "size": document.bytes.len(),
    });
    let mut child = Command::new(program)
        .args([
            "-name",
            name,
            "-digest",
            &document.digest,
            "-stdin-media-type",
            MEDIA_TYPE,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let told = async {
        if let Some(mut stdin) = stdin {
            // Nobody has to read it.
            let _ = stdin.write_all(descriptor.to_string().as_bytes()).await;
        }
    };
    let heard = async {
        let mut text = Vec::new();
        if let Some(mut stdout) = stdout {
            let _ = (&mut stdout).take(MAX_OUTPUT).read_to_end(&mut text).await;
            // What is more is let through, or the program would wait.
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
        }
        text
    };
    let (status, (), text) = tokio::join!(child.wait(), told, heard);
    let text: String = String::from_utf8_lossy(&text).chars().take(MAX_REASON).collect();
    Ok((status?, text.trim().to_owned()))
}
