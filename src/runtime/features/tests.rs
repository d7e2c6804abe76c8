use std::fs;

use super::*;

const FULL: &str = r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["ro","rro"],
    "linux":{"namespaces":["user","time","of-the-future"],"mountExtensions":{"idmap":{"enabled":true}},"memoryPolicy":{"modes":["MPOL_BIND"],"flags":[]}}}"#;

#[test]
fn what_a_document_leaves_out_is_not_claimed() {
    let full = Features::parse(FULL.as_bytes()).unwrap();
    assert!(full.mount_option("rro") && full.user_namespaces() && !full.mount_option("noexec"));
    assert!(full.priorities() && full.memory_policy);
    // As runc 1.1 answers: it knows user namespaces, but not how to map the owners of files.
    let old = Features::parse(br#"{"mountOptions":["rro"],"linux":{"namespaces":["user"]}}"#).unwrap();
    assert!(old.mount_option("rro") && old.user_namespaces() && !old.idmapped_mounts);
    assert!(!old.priorities() && !old.memory_policy);
    let off = br#"{"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":false}}}}"#;
    assert!(!Features::parse(off).unwrap().idmapped_mounts);
    assert_eq!(Features::parse(b"{}").unwrap(), Features::default());
    assert!(Features::parse(b"runc version 1.0").is_err());
    assert!(Features::parse(br#"{"mountOptions":"rro"}"#).is_err());
}

#[tokio::test]
async fn a_program_older_than_the_question_is_known_by_its_version() {
    let dir = Scratch::new("old");
    for (version, known) in [
        ("crun version 1.8.1\ncommit: f8a096be", true),
        ("runc version 1.0.3", true),
        ("crun version 0.17", false),
        ("kata-runtime  : 3.2.0", false),
    ] {
        let script = format!("test \"$1\" = --version || {{ echo unknown command $1; exit 1; }}; echo '{version}'");
        let answer = ask(&dir.program("old", &script), LIMIT).await;
        assert_eq!(
            answer.is_ok_and(|features| features.user_namespaces()),
            known,
            "{version}"
        );
    }
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("wharf-features-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// A program that does what the script says. A child writes it: a file that this process has open for writing
    /// while another test forks can't be executed (ETXTBSY, execve(2)).
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.0.join(name);
        let write = r#"printf '%s' "$2" > "$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#;
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", write, "sh"])
            .arg(&path)
            .arg(format!("#!/bin/sh\n{script}\n"))
            .status();
        assert!(status.unwrap().success());
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn a_program_is_asked_again_only_when_its_file_has_changed() {
    let dir = Scratch::new("changed");
    let asked = dir.0.join("asked");
    let count = || fs::read_to_string(&asked).unwrap_or_default().len();
    let note = format!("printf x >> {}; test \"$1\" = features || exit 1; ", asked.display());
    let path = dir.program("runtime", &format!("{note}echo '{{}}'"));
    let catalog = Catalog::open([("builtin", None), ("mine", Some(path.as_path()))]).await;
    assert!(catalog.known("builtin").user_namespaces());
    assert!(!catalog.known("mine").mount_option("rro"));
    assert!(!catalog.current("mine").await.mount_option("rro"));
    assert_eq!(count(), 1, "asked twice");
    dir.program("runtime", &format!("{note}echo '{}'", FULL.replace('\n', " ")));
    assert!(!catalog.known("mine").mount_option("rro"));
    assert!(catalog.current("mine").await.mount_option("rro"));
    assert!(catalog.known("mine").mount_option("rro"));
    assert_eq!(count(), 2);
    assert_eq!(*catalog.current("unknown").await, Features::default());
}

#[tokio::test]
async fn programs_that_do_not_answer_can_do_nothing() {
    let dir = Scratch::new("silent");
    let refuses = dir.program("refuses", "echo unknown command features >&2; exit 1");
    let error = ask(&refuses, LIMIT).await.unwrap_err().to_string();
    assert!(
        error.contains("unknown command") && error.contains("refuses"),
        "{error}"
    );
    let babbles = dir.program("babbles", "echo runc 1.0");
    let error = ask(&babbles, LIMIT).await.unwrap_err().to_string();
    assert!(error.contains("no features document"), "{error}");
    let missing = dir.0.join("missing");
    let error = ask(&missing, LIMIT).await.unwrap_err().to_string();
    assert!(error.contains("missing features"), "{error}");
    // A program installed later is asked then.
    let catalog = Catalog::open([("late", Some(missing.as_path()))]).await;
    assert!(!catalog.current("late").await.mount_option("rro"));
    dir.program("missing", &format!("echo '{}'", FULL.replace('\n', " ")));
    assert!(catalog.current("late").await.mount_option("rro"));
}

#[tokio::test]
async fn a_program_that_hangs_is_killed_with_its_children() {
    let dir = Scratch::new("hangs");
    let pipe = dir.0.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let path = dir.program("hangs", &format!("exec 9> {}; sleep 1000 & wait", pipe.display()));
    // Ends when the last of them has ended.
    let writers = tokio::task::spawn_blocking(move || fs::read(&pipe));
    let error = ask(&path, Duration::from_secs(2)).await.unwrap_err();
    assert!(matches!(error, FeaturesError::Timeout { .. }), "{error}");
    let gone = tokio::time::timeout(Duration::from_secs(60), writers).await;
    assert!(gone.expect("a child still runs").unwrap().unwrap().is_empty());
}
