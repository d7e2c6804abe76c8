//! SELinux: what containers are labelled with, and that labels keep pods apart. These tests run on a kernel that has it
//! (`VM_STEPS=selinux make vm-test`); elsewhere they say so.

use std::{ffi::CString, fs, os::unix::ffi::OsStrExt as _, path::Path};

use tonic::Code;
use wharf_e2e::{Daemon, Options, container, cri::code, specs};
use wharf_proto::cri as pb;

/// True, with a word, where there is nothing to test.
fn skipped() -> bool {
    let skipped = !Path::new("/sys/fs/selinux/enforce").exists();
    if skipped {
        println!("skipped: this kernel runs without SELinux");
    }
    skipped
}

/// What is not allowed fails, and is not only noted.
fn enforcing() -> bool {
    let enforcing = fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1");
    println!("SELinux is {}", if enforcing { "enforcing" } else { "permissive" });
    enforcing
}

fn labelled(handler: &str, more: &str) -> Options {
    let mut options = Options::handler(handler);
    options.settings = format!("selinux = true\n{more}");
    options
}

fn of_file(path: &Path) -> String {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut value = [0u8; 256];
    // SAFETY: names are C strings; the buffer is told with its length.
    let length = unsafe {
        libc::lgetxattr(
            path.as_ptr(),
            c"security.selinux".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    let text = String::from_utf8_lossy(&value[..usize::try_from(length).unwrap_or(0)]);
    text.trim_end_matches('\0').to_owned()
}

fn volume(host: &Path, relabel: bool) -> pb::Mount {
    let mut mount = specs::mount(&host.to_string_lossy(), "/vol", false);
    mount.selinux_relabel = relabel;
    mount
}

fn options(level: &str, kind: &str) -> pb::SeLinuxOption {
    pb::SeLinuxOption {
        level: level.into(),
        r#type: kind.into(),
        ..Default::default()
    }
}

/// The label of a container's first process, and of a command in it.
async fn labels_of(daemon: &Daemon, id: &str) -> (String, String) {
    let line = "tr -d '\\0' < /proc/1/attr/current; echo; tr -d '\\0' < /proc/self/attr/current";
    let seen = daemon.cri.shell(id, line).await.unwrap();
    let (first, second) = seen.trim().split_once('\n').expect("two labels");
    (first.to_owned(), second.to_owned())
}

/// Rows C8 and C9: type by the policy, level by the pod; what belongs to a container has its level too.
#[tokio::test]
async fn each_pod_has_a_level_and_its_containers_share_it() {
    if skipped() {
        return;
    }
    let enforcing = enforcing();
    for handler in crate::handlers() {
        println!("---- handler {handler}");
        let daemon = Daemon::with(labelled(&handler, "")).await;
        let image = daemon.busybox().await;
        let data = daemon.dir().join("data");
        fs::create_dir_all(data.join("deep")).unwrap();
        fs::write(data.join("deep/word"), "secret\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", data.join("way out")).unwrap();
        let outside = of_file(Path::new("/etc/hostname"));

        let config = daemon.pod("first");
        let first = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &image, "exec sleep 1000");
        main.mounts = vec![volume(&data, true)];
        let main = daemon.started(&first, &config, &main).await;
        let side = container("side", &image, "exec sleep 1000");
        let side = daemon.started(&first, &config, &side).await;
        let (label, command) = labels_of(&daemon, &main).await;
        let level = label.strip_prefix("system_u:system_r:container_t:").expect(&label);
        assert!(level.starts_with("s0:c"), "{label}");
        assert_eq!(command, label, "{handler}: a command in it");
        assert_eq!(
            labels_of(&daemon, &side).await.0,
            label,
            "{handler}: another of the pod"
        );

        // Its files, and the volume that was to be its own; nothing beyond.
        let files = format!("system_u:object_r:container_file_t:{level}");
        for path in ["", "deep", "deep/word", "way out"] {
            assert_eq!(of_file(&data.join(path)), files, "{handler}: {path}");
        }
        assert_eq!(of_file(Path::new("/etc/hostname")), outside);
        let line = "echo mine > /vol/deep/new; cat /vol/deep/word; echo x > /root-file; echo x > /dev/shm/x; \
                    cat /etc/hosts > /dev/null; grep -c \" / .*container_file_t:LEVEL\" /proc/mounts";
        let seen = daemon.cri.shell(&main, &line.replace("LEVEL", level)).await.unwrap();
        assert_eq!(seen, "secret\n1\n", "{handler}");
        assert_eq!(of_file(&data.join("deep/new")), files);
        // Layers are everybody's to read.
        let images = daemon.state_dir.join("images");
        assert_eq!(of_file(&images), "system_u:object_r:container_ro_file_t:s0");
        let layers = fs::read_dir(images.join("layers"))
            .unwrap()
            .flatten()
            .map(|layer| layer.path());
        let labels: Vec<_> = layers.map(|layer| of_file(&layer)).collect();
        assert!(
            !labels.is_empty() && labels.iter().all(|label| label.contains(":container_ro_file_t:")),
            "{labels:?}"
        );

        // Another pod has another level, and with it no way to the files of the first.
        let config = daemon.pod("second");
        let second = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut thief = container("thief", &image, "exec sleep 1000");
        thief.mounts = vec![volume(&data, false)];
        let thief = daemon.started(&second, &config, &thief).await;
        let (other, _) = labels_of(&daemon, &thief).await;
        assert!(
            other.starts_with("system_u:system_r:container_t:s0:c") && other != label,
            "{other}"
        );
        let stolen = daemon.cri.shell(&thief, "cat /vol/deep/word").await;
        match enforcing {
            true => {
                let text = stolen.unwrap_err().to_string();
                assert!(text.contains("ermission denied"), "{handler}: {text}");
            }
            false => assert_eq!(stolen.unwrap(), "secret\n"),
        }

        // Nothing confines who is privileged.
        let mut config = daemon.pod("free");
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
        let free = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut open = container("open", &image, "exec sleep 1000");
        specs::security(&mut open).privileged = true;
        open.mounts = vec![volume(&data, false)];
        let open = daemon.started(&free, &config, &open).await;
        assert!(!labels_of(&daemon, &open).await.0.contains("container_t"));
        assert_eq!(daemon.cri.shell(&open, "cat /vol/deep/word").await.unwrap(), "secret\n");
        daemon.finish().await;
    }
}

/// A pod may name its level, and thereby share with others; what is no label of this policy is refused.
#[tokio::test]
async fn what_a_pod_asks_for_goes_first_and_nonsense_is_refused() {
    if skipped() {
        return;
    }
    let daemon = Daemon::with(labelled("", "")).await;
    let image = daemon.busybox().await;
    let data = daemon.dir().join("shared");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("word"), "ours\n").unwrap();
    for name in ["one", "two"] {
        let mut config = daemon.pod(name);
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().selinux_options = Some(options("s0:c5,c6", ""));
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &image, "exec sleep 1000");
        main.mounts = vec![volume(&data, name == "one")];
        let id = daemon.started(&pod, &config, &main).await;
        let (label, _) = labels_of(&daemon, &id).await;
        assert_eq!(label, "system_u:system_r:container_t:s0:c5,c6");
        assert_eq!(daemon.cri.shell(&id, "cat /vol/word").await.unwrap(), "ours\n");
        for (at, (wrong, word)) in [
            (options("s0:c9999", ""), "level"),
            (options("", "no_such_type_t"), "no_such_type_t"),
            (options("", "a:b"), "type"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut bad = container(&format!("bad{at}"), &image, "true");
            specs::security(&mut bad).selinux_options = Some(wrong);
            let error = daemon.cri.create(&pod, &bad, &config).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(word), "{error}");
        }
        // The node's own directories keep their labels.
        let mut bad = container("etc", &image, "true");
        bad.mounts = vec![volume(Path::new("/etc"), true)];
        let error = daemon.cri.create(&pod, &bad, &config).await.unwrap_err();
        assert!(error.message().contains("/etc"), "{error}");
    }
    daemon.finish().await;

    // Switched off, who asks for a label is not given none.
    let daemon = Daemon::start().await;
    let config = daemon.pod("off");
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = container("main", &daemon.busybox().await, "true");
    specs::security(&mut main).selinux_options = Some(options("s0:c1,c2", ""));
    assert_eq!(
        code(daemon.cri.create(&pod, &main, &config).await),
        Code::InvalidArgument
    );
    daemon.finish().await;
}

/// There are only so many levels; a daemon that is started anew knows which are taken.
#[tokio::test]
async fn levels_are_of_one_pod_each_and_given_back() {
    if skipped() {
        return;
    }
    let mut daemon = Daemon::with(labelled("", "selinux_categories = 2\n")).await;
    let first = daemon.cri.run_pod(&daemon.pod("first"), "").await.unwrap();
    for what in ["before the daemon's end", "after it"] {
        let answer = daemon.cri.run_pod(&daemon.pod("second"), "").await;
        assert_eq!(code(answer), Code::ResourceExhausted, "{what}");
        daemon.crash().await;
    }
    daemon.gone(&first).await;
    let second = daemon.cri.run_pod(&daemon.pod("second"), "").await.unwrap();
    daemon.gone(&second).await;
    daemon.finish().await;
}
