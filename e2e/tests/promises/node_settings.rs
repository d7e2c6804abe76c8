//! What the node's administrator lays down for all containers.

use wharf_e2e::{Daemon, Options, container, specs::mount};

#[tokio::test]
async fn settings_for_all_containers_reach_each() {
    let laid_down = tempfile::tempdir().unwrap();
    let at = |name: &str| laid_down.path().join(name);
    let dir = laid_down.path().display();
    std::fs::write(
        at("base.json"),
        r#"{"ociVersion":"1.0.2","process":{"user":{"uid":5,"gid":5},"cwd":"/x","env":["BASE=yes"],
            "rlimits":[{"type":"RLIMIT_CORE","soft":0,"hard":0}]},"annotations":{"from":"base"},
            "mounts":[{"destination":"/scratch","type":"tmpfs","source":"tmpfs","options":["nosuid","size=64k"]}]}"#,
    )
    .unwrap();
    std::fs::create_dir(at("hooks")).unwrap();
    let options = Options {
        tables: format!(
            "[runtimes.builtin]\nbase_runtime_spec = '{dir}/base.json'\n\
             [containers]\nimage_volumes = 'ignore'\nulimits = ['nofile=123:456']\nenv = ['NODE=here']\n\
             hooks_dirs = ['{dir}/hooks']\nshm_size = '1MiB'\nsysctls = ['net.core.somaxconn=777']\ndevices = ['/dev/full:/dev/brimful:rw']\n\
             missing_host_paths = 'refuse'\ntimezone = 'Asia/Kathmandu'"
        ),
        ..Default::default()
    };
    let daemon = Daemon::with(options).await;
    let image = daemon.pull("volumes:latest").await;
    let sandbox = daemon.pod("ignored");
    let pod = daemon.cri.run_pod(&sandbox, "").await.unwrap();
    let config = container("main", &image, "sleep 1000");
    let main = daemon.started(&pod, &sandbox, &config).await;
    let shell = async |line: &str| daemon.cri.shell(&main, line).await.unwrap();
    // The image's volumes are left in its root filesystem.
    assert_eq!(shell("cat /data/file; test ! -e /absent").await, "from the image");
    assert_eq!(
        shell("ulimit -Sn; ulimit -Hn; ulimit -Hc; echo $NODE $BASE").await,
        "123\n456\n0\nhere yes\n"
    );
    assert_eq!(shell("id -u; pwd").await, "0\n/\n");
    let zone = std::fs::read("/usr/share/zoneinfo/Asia/Kathmandu").unwrap();
    let sum = shell("wc -c < /etc/localtime; touch /etc/localtime 2>/dev/null || echo sealed").await;
    assert_eq!(sum, format!("{}\nsealed\n", zone.len()));
    assert_eq!(shell("cat /proc/sys/net/core/somaxconn").await, "777\n");
    let size = "| tail -n 1 | tr -s ' ' | cut -d ' ' -f 2";
    assert_eq!(
        shell(&format!("df -k /dev/shm {size}; df -k /scratch {size}")).await,
        "1024\n64\n"
    );
    let full = daemon
        .cri
        .shell(&main, "echo x > /dev/brimful")
        .await
        .unwrap_err()
        .to_string();
    assert!(full.contains("No space left"), "{full}");
    let mut missing = config.clone();
    missing.metadata.get_or_insert_default().name = "missing".into();
    let absent = daemon.dir().join("absent");
    missing.mounts = vec![mount(&absent.to_string_lossy(), "/x", false)];
    let error = daemon.cri.create(&pod, &missing, &sandbox).await.unwrap_err();
    assert!(error.message().contains("absent") && !absent.exists(), "{error:?}");

    // A hook laid down meanwhile runs for those that it means.
    std::fs::write(
        at("hooks/hook.json"),
        format!(
            r#"{{"version":"1.0.0","hook":{{"path":"/bin/sh","args":["sh","-c","cat > {dir}/state"]}},
            "when":{{"annotations":{{"^example\\.com/hook$":"^yes$"}}}},"stages":["createRuntime"]}}"#
        ),
    )
    .unwrap();
    let mut hooked = config.clone();
    hooked.metadata.get_or_insert_default().name = "plain".into();
    daemon.started(&pod, &sandbox, &hooked).await;
    assert!(!at("state").exists());
    hooked.metadata.get_or_insert_default().name = "hooked".into();
    hooked.annotations.insert("example.com/hook".into(), "yes".into());
    let hooked = daemon.started(&pod, &sandbox, &hooked).await;
    let state = std::fs::read_to_string(at("state")).unwrap();
    assert!(state.contains(&hooked), "{state}");
    // One that makes no sense may be there for safety.
    std::fs::write(at("hooks/hook.json"), "{").unwrap();
    let mut after = config.clone();
    after.metadata.get_or_insert_default().name = "after".into();
    let refused = daemon.cri.create(&pod, &after, &sandbox).await.unwrap_err();
    assert!(refused.message().contains("hook.json"), "{refused:?}");
    daemon.gone(&pod).await;
    daemon.finish().await;
}
