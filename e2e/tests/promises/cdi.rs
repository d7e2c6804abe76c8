//! Devices that vendors describe, and the hooks that come with them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::TempDir;
use tonic::Code;
use wharf_e2e::{Daemon, Options, container, specs};
use wharf_proto::cri as pb;

/// A directory of spec files, and a daemon for each handler that reads it.
async fn on_each<F: AsyncFn(Daemon, &Path, &str)>(body: F) {
    let names = std::env::var("WHARF_HANDLERS").unwrap_or_else(|_| "builtin runc crun".into());
    for name in names.split_whitespace() {
        println!("---- handler {name}");
        let dir = TempDir::with_prefix("we.cdi.").unwrap();
        // Hooks of containers with other users look in here.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut options = Options::handler(name);
        let at = dir.path().display();
        options.tables = format!("[cdi]\nspec_dirs = ['{at}/etc', '{at}/run']\n");
        body(Daemon::with(options).await, dir.path(), name).await;
    }
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A program that notes the moment, what it is told of the container, and what it sees of it.
fn hook_program(dir: &Path) {
    let program = dir.join("hook.sh");
    put(
        &program,
        r#"#!/bin/sh
PATH=/usr/bin:/bin
state=$(cat)
status=$(echo "$state" | sed 's/.*"status": *"\([a-z]*\)".*/\1/')
bundle=$(echo "$state" | sed 's/.*"bundle": *"\([^"]*\)".*/\1/')
case "$1" in
  createContainer) echo "from the hook, and $(cat "$bundle/rootfs/given/word")" > "$bundle/rootfs/made" ;;
esac
echo "$1 $status" >> "$LOG"
if [ "$1" = "$FAIL" ]; then echo "it went wrong"; exit 7; fi
if [ "$1" = "$HANG" ]; then exec sleep 600; fi
exit 0
"#,
    );
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.join("log"), "").unwrap();
    std::fs::set_permissions(dir.join("log"), std::fs::Permissions::from_mode(0o666)).unwrap();
}

const MOMENTS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// Hooks of each moment; those that run inside see the directory at /hooks.
fn hooks(dir: &Path, more: &str) -> String {
    let at = dir.display().to_string();
    let hook = |moment: &&str| {
        let base = if *moment == "startContainer" { "/hooks" } else { &at };
        format!(
            "    - hookName: {moment}\n      path: {base}/hook.sh\n      args: [hook.sh, {moment}]\n      \
             timeout: 5\n      env: [LOG={base}/log{more}]\n"
        )
    };
    let hooks: String = MOMENTS.iter().map(hook).collect();
    format!(
        "    hooks:\n{hooks}    mounts:\n    - hostPath: {at}\n      containerPath: /hooks\n      options: [rbind, rw]\n    \
         - hostPath: {at}\n      containerPath: /given\n      options: [rbind, ro]\n"
    )
}

fn file(kind: &str, device: &str, edits: &str) -> String {
    format!("cdiVersion: 0.7.0\nkind: {kind}\ndevices:\n- name: {device}\n  containerEdits:\n{edits}")
}

fn with_device(mut config: pb::ContainerConfig, name: &str) -> pb::ContainerConfig {
    config.cdi_devices = vec![pb::CdiDevice { name: name.into() }];
    config
}

#[tokio::test]
async fn devices_bring_what_their_files_say() {
    on_each(async |daemon, dir, _| {
        let edits = format!(
            "    env: [COLOUR=red]\n    additionalGids: [4242]\n    deviceNodes:\n    - path: /dev/cdi-zero\n      \
             hostPath: /dev/zero\n      permissions: rw\n      fileMode: 0640\n    mounts:\n    - hostPath: {}\n      containerPath: /given\n      \
             options: [rbind, ro]\n",
            dir.display()
        );
        put(&dir.join("word"), "a word\n");
        put(&dir.join("etc/one.yaml"), &file("acme.org/zero", "a", &edits));
        put(
            &dir.join("run/two.json"),
            r#"{"cdiVersion":"1.0.0","kind":"acme.org/word","devices":[{"name":"b","containerEdits":{"env":["SIZE=large"]}}]}"#,
        );
        let config = daemon.pod("devices");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = with_device(
            container("main", &daemon.busybox().await, "exec sleep 1000"),
            "acme.org/zero=a",
        );
        main.envs.push(specs::env("COLOUR", "green"));
        main.annotations = specs::map("cdi.k8s.io/more", "acme.org/word=b");
        let security = specs::security(&mut main);
        security.run_as_user = Some(pb::Int64Value { value: 1002 });
        let id = daemon.started(&pod, &config, &main).await;
        let line = "echo $COLOUR $SIZE; head -c 3 /dev/cdi-zero | wc -c; cat /given/word; \
                    touch /given/new 2>/dev/null || echo read-only; id -G; stat -c '%u %t:%T %a' /dev/cdi-zero";
        let seen = daemon.cri.shell(&id, line).await.unwrap();
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[..4], ["red large", "3", "a word", "read-only"], "{seen}");
        assert!(lines[4].split(' ').any(|gid| gid == "4242"), "{seen}");
        assert_eq!(lines[5], "1002 1:5 640", "{seen}");
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn hooks_run_at_their_moments_with_the_state() {
    on_each(async |daemon, dir, handler| {
        hook_program(dir);
        put(&dir.join("word"), "a word");
        put(
            &dir.join("etc/hooks.yaml"),
            &file("acme.org/hooks", "all", &hooks(dir, "")),
        );
        let config = daemon.pod("hooks");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let main = with_device(
            container("main", &daemon.busybox().await, "exec sleep 1000"),
            "acme.org/hooks=all",
        );
        let id = daemon.started(&pod, &config, &main).await;
        assert_eq!(
            daemon.cri.shell(&id, "cat /made").await.unwrap(),
            "from the hook, and a word\n"
        );
        daemon.cri.stop(&id, 0).await.unwrap();
        daemon.cri.remove(&id).await.unwrap();
        let log = std::fs::read_to_string(dir.join("log")).unwrap();
        let told: Vec<_> = log.lines().collect();
        let right = [
            "prestart creating",
            "createRuntime creating",
            "createContainer creating",
            "startContainer created",
            "poststart running",
            "poststop stopped",
        ];
        if handler == "builtin" {
            assert_eq!(told, right);
        } else {
            // Their words for the state differ, and poststart hooks may begin before the program.
            let mut moments: Vec<_> = told.iter().filter_map(|line| line.split(' ').next()).collect();
            moments.sort_by_key(|moment| MOMENTS.iter().position(|known| known == moment));
            assert_eq!(moments, MOMENTS);
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn hooks_of_a_container_with_users_of_its_own_run_on_the_node_and_inside() {
    let dir = TempDir::with_prefix("we.cdi.").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = Daemon::with(Options {
        tables: format!("[cdi]\nspec_dirs = ['{}/etc']\n", dir.path().display()),
        ..Default::default()
    })
    .await;
    let program = dir.path().join("hook.sh");
    put(
        &program,
        "#!/bin/sh\ncat > /dev/null\nread -r _ first _ < /proc/self/uid_map\necho \"$1 $first\" >> \"$LOG\"\n",
    );
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(dir.path().join("log"), "").unwrap();
    std::fs::set_permissions(dir.path().join("log"), std::fs::Permissions::from_mode(0o666)).unwrap();
    put(
        &dir.path().join("etc/hooks.yaml"),
        &file("acme.org/hooks", "all", &hooks(dir.path(), "")),
    );
    let range = pb::IdMapping {
        host_id: 200_000,
        container_id: 0,
        length: 65_536,
    };
    let users = Some(pb::UserNamespace {
        mode: pb::NamespaceMode::Pod.into(),
        uids: vec![range],
        gids: vec![range],
    });
    let mut config = daemon.pod("hooks");
    specs::namespaces(&mut config).userns_options = users.clone();
    let pod = daemon.cri.run_pod(&config, "").await.unwrap();
    let mut main = with_device(
        container("main", &daemon.busybox().await, "exec sleep 1000"),
        "acme.org/hooks=all",
    );
    let namespaces = specs::security(&mut main).namespace_options.get_or_insert_default();
    namespaces.userns_options = users;
    let id = daemon.started(&pod, &config, &main).await;
    daemon.cri.stop(&id, 0).await.unwrap();
    daemon.cri.remove(&id).await.unwrap();
    let log = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let told: Vec<_> = log.lines().collect();
    let right = [
        "prestart 0",
        "createRuntime 0",
        "createContainer 200000",
        "startContainer 200000",
        "poststart 0",
        "poststop 0",
    ];
    assert_eq!(told, right);
    daemon.finish().await;
}

#[tokio::test]
async fn a_hook_that_fails_or_hangs_keeps_the_container_from_running() {
    on_each(async |daemon, dir, handler| {
        hook_program(dir);
        put(&dir.join("word"), "a word");
        let config = daemon.pod("failing");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        for moment in ["createRuntime", "createContainer", "startContainer", "poststart"] {
            // What the others do when later hooks fail differs by version.
            if handler != "builtin" && !moment.starts_with("create") {
                continue;
            }
            for (word, said) in [("FAIL", "went wrong"), ("HANG", "")] {
                std::fs::write(dir.join("log"), "").unwrap();
                let edits = hooks(dir, &format!(", {word}={moment}"));
                put(&dir.join("etc/hooks.yaml"), &file("acme.org/hooks", "all", &edits));
                let name = format!("{moment}-{word}").to_lowercase();
                let main = with_device(container(&name, &image, "exec sleep 1000"), "acme.org/hooks=all");
                let id = daemon.cri.create(&pod, &main, &config).await.unwrap();
                let error = daemon.cri.start(&id).await.unwrap_err();
                if handler == "builtin" {
                    let text = error.message();
                    assert!(
                        text.contains(&format!("{moment} hook")) && text.contains(said),
                        "{text}"
                    );
                }
                let status = daemon.cri.status(&id).await.unwrap();
                assert_eq!(
                    (status.state(), status.exit_code, status.reason.as_str()),
                    (pb::ContainerState::ContainerExited, 128, "StartError"),
                    "{moment} {word}"
                );
                daemon.cri.remove(&id).await.unwrap();
                if handler == "builtin" {
                    let log = std::fs::read_to_string(dir.join("log")).unwrap();
                    assert!(log.ends_with("poststop stopped\n"), "{moment} {word}: {log}");
                    assert_eq!(log.matches("poststop").count(), 1, "{log}");
                }
            }
        }
        daemon.finish().await;
    })
    .await;
}

#[tokio::test]
async fn what_can_not_be_resolved_is_named_and_found_when_it_comes() {
    on_each(async |daemon, dir, handler| {
        if handler != "builtin" {
            return daemon.finish().await;
        }
        let config = daemon.pod("unresolved");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let image = daemon.busybox().await;
        let main = with_device(container("main", &image, "exec sleep 1000"), "acme.org/gpu=0");
        let create = async || daemon.cri.create(&pod, &main, &config).await;
        let error = create().await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            error.message().contains("unresolvable CDI devices acme.org/gpu=0"),
            "{}",
            error.message()
        );
        let good = file("acme.org/gpu", "'0'", "    env: [A=1]\n");
        put(&dir.join("etc/a.yaml"), &good);
        put(&dir.join("etc/b.yaml"), &good);
        let text = create().await.unwrap_err().message().to_owned();
        assert!(text.contains("etc/a.yaml") && text.contains("etc/b.yaml"), "{text}");
        put(&dir.join("etc/b.yaml"), "kind: [\n");
        put(&dir.join("etc/a.yaml"), &good.replace("'0'", "'1'"));
        let text = create().await.unwrap_err().message().to_owned();
        assert!(text.contains("etc/b.yaml is not usable"), "{text}");
        // The later directory wins; the wrong file spoils nothing.
        put(&dir.join("etc/a.yaml"), &good);
        put(&dir.join("run/c.yaml"), &good.replace("A=1", "A=2"));
        let id = create().await.unwrap();
        daemon.cri.start(&id).await.unwrap();
        assert_eq!(daemon.cri.shell(&id, "echo $A").await.unwrap(), "2\n");
        let bad = with_device(container("bad", &image, "true"), "no-such-form");
        let error = daemon.cri.create(&pod, &bad, &config).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("no-such-form"), "{}", error.message());
        daemon.finish().await;
    })
    .await;
}
