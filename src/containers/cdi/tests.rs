//! Files in directories, and what becomes of them.

use std::{fs, path::Path};

use oci_spec::runtime::Spec;
use wharf_proto::cri;

use super::*;

struct Dirs {
    base: PathBuf,
    registry: Registry,
}

impl Dirs {
    fn new(name: &str) -> Dirs {
        let base = std::env::temp_dir().join(format!("wharf-cdi-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).unwrap();
        let registry = Registry::new(vec![base.join("etc/cdi"), base.join("run/cdi")]);
        Dirs { base, registry }
    }

    fn put(&self, path: &str, text: &str) -> PathBuf {
        let path = self.base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn resolve(&self, names: &[&str]) -> Result<Injection, Error> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        self.registry.resolve(&names)
    }

    fn error(&self, names: &[&str]) -> String {
        self.resolve(names).unwrap_err().to_string()
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

fn spec_file(kind: &str, device: &str, env: &str) -> String {
    format!(
        "cdiVersion: \"0.6.0\"\nkind: {kind}\ndevices:\n- name: {device}\n  containerEdits:\n    env:\n    - {env}\n"
    )
}

#[test]
fn directories_that_come_and_change_are_noticed() {
    let dirs = Dirs::new("watch");
    let text = dirs.error(&["vendor.com/gpu=0"]);
    assert!(
        text.contains("unresolvable CDI devices vendor.com/gpu=0: no CDI spec file defines it"),
        "{text}"
    );
    let file = dirs.put("etc/cdi/a.yaml", &spec_file("vendor.com/gpu", "0", "A=1"));
    assert_eq!(dirs.resolve(&["vendor.com/gpu=0"]).unwrap().env, ["A=1"]);
    dirs.put("etc/cdi/a.yaml", &spec_file("vendor.com/gpu", "0", "A=2"));
    assert_eq!(dirs.resolve(&["vendor.com/gpu=0"]).unwrap().env, ["A=2"]);
    fs::remove_file(file).unwrap();
    assert!(dirs.resolve(&["vendor.com/gpu=0"]).is_err());
}

#[test]
fn a_later_directory_wins_and_equals_make_a_device_unusable() {
    let dirs = Dirs::new("priority");
    dirs.put("etc/cdi/a.yaml", &spec_file("vendor.com/gpu", "0", "A=low"));
    dirs.put("run/cdi/b.yaml", &spec_file("vendor.com/gpu", "0", "A=high"));
    assert_eq!(dirs.resolve(&["vendor.com/gpu=0"]).unwrap().env, ["A=high"]);
    dirs.put("run/cdi/c.yaml", &spec_file("vendor.com/gpu", "0", "A=rival"));
    let text = dirs.error(&["vendor.com/gpu=0"]);
    assert!(
        text.contains("run/cdi/b.yaml") && text.contains("run/cdi/c.yaml"),
        "{text}"
    );
}

#[test]
fn a_wrong_file_is_named_and_spoils_no_other() {
    let dirs = Dirs::new("faults");
    dirs.put(
        "etc/cdi/good.json",
        r#"{"cdiVersion":"1.0.0","kind":"v.com/d","devices":[{"name":"a","containerEdits":{"env":["X=1"]}}]}"#,
    );
    for (text, reason) in [
        (spec_file("novendor", "0", "A=1"), "vendor/class"),
        (spec_file("v.com/d", "a b", "A=1"), "device name"),
        (spec_file("v.com/d", "z", "noequals"), "NAME=value"),
        (spec_file("v.com/d", "z", "A=1").replace("0.6.0", "9.9.9"), "cdiVersion"),
        (
            spec_file("v.com/d", "z", "A=1").replace("env", "environment"),
            "environment",
        ),
        (
            "cdiVersion: 0.6.0\nkind: v.com/d\ndevices: []\n".to_owned(),
            "no devices",
        ),
        ("{".to_owned(), ""),
    ] {
        let bad = dirs.put("etc/cdi/bad.yaml", &text);
        let error = dirs.error(&["v.com/d=nothing"]);
        assert!(
            error.contains(&bad.display().to_string()) && error.contains(reason),
            "{error}"
        );
        assert_eq!(dirs.resolve(&["v.com/d=a"]).unwrap().env, ["X=1"]);
    }
}

#[test]
fn what_is_not_supported_is_refused_with_device_and_file() {
    let dirs = Dirs::new("refused");
    for (edit, word) in [
        ("intelRdt:\n      closID: x", "intelRdt"),
        ("deviceNodes:\n    - path: /dev/no-such-node", "/dev/no-such-node"),
        ("deviceNodes:\n    - path: /dev/null\n      type: b", "not of type"),
        (
            "mounts:\n    - hostPath: /no/such/path\n      containerPath: /x",
            "/no/such/path",
        ),
    ] {
        let text = format!("cdiVersion: 0.7.0\nkind: v.com/d\ndevices:\n- name: a\n  containerEdits:\n    {edit}\n");
        let file = dirs.put("etc/cdi/a.yaml", &text);
        let error = dirs.error(&["v.com/d=a"]);
        assert!(
            error.contains("v.com/d=a") && error.contains(&file.display().to_string()) && error.contains(word),
            "{error}"
        );
    }
}

#[test]
fn edits_are_written_into_the_spec_in_their_order() {
    let dirs = Dirs::new("apply");
    dirs.put(
        "etc/cdi/a.json",
        r#"{"cdiVersion":"0.7.0","kind":"v.com/d",
            "containerEdits":{"env":["A=file","B=file"],"hooks":[{"hookName":"createContainer","path":"/bin/h","args":["h","x"],"timeout":3}]},
            "devices":[
              {"name":"one","containerEdits":{"env":["A=one"],"deviceNodes":[{"path":"/dev/x","hostPath":"/dev/zero","permissions":"r"}]}},
              {"name":"two","containerEdits":{"env":["A=two"],"additionalGids":[0,44,44],
                 "mounts":[{"hostPath":"/etc/hostname","containerPath":"/a/b","options":["ro"]}]}}]}"#,
    );
    let injection = dirs.resolve(&["v.com/d=one", "v.com/d=two"]).unwrap();
    let mut spec = Spec::default();
    apply(&injection, &mut spec);
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert!(env.ends_with(&["A=two".to_owned(), "B=file".to_owned()]), "{env:?}");
    let linux = spec.linux().as_ref().unwrap();
    let device = linux.devices().as_ref().unwrap().last().unwrap();
    assert_eq!(
        (device.path().as_path(), device.major(), device.minor()),
        (Path::new("/dev/x"), 1, 5)
    );
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(rules.last().unwrap().access().as_deref(), Some("r"));
    let mounts = spec.mounts().clone().unwrap();
    let mount = mounts.iter().find(|m| m.destination() == Path::new("/a/b")).unwrap();
    assert_eq!(mount.options().as_ref().unwrap(), &["ro", "rbind"]);
    let hook = &spec.hooks().as_ref().unwrap().create_container().as_ref().unwrap()[0];
    assert_eq!((hook.timeout(), hook.args().as_ref().unwrap().len()), (Some(3), 2));
    let groups = spec
        .process()
        .as_ref()
        .unwrap()
        .user()
        .additional_gids()
        .clone()
        .unwrap();
    assert_eq!(groups.iter().filter(|gid| **gid == 44).count(), 1);
    assert!(!groups.contains(&0));
}

#[test]
fn devices_are_asked_for_by_field_and_annotation_each_once() {
    let config = cri::ContainerConfig {
        cdi_devices: vec![cri::CdiDevice {
            name: "v.com/d=b".into(),
        }],
        annotations: [("cdi.k8s.io/x", "v.com/d=a,v.com/d=b"), ("other", "v.com/d=c")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        ..Default::default()
    };
    assert_eq!(requested(&config).unwrap(), ["v.com/d=b", "v.com/d=a"]);
    for bad in ["", "gpu0", "v.com/d=", "v.com=d", "1v/d=a", "v.com/d=a,"] {
        let config = cri::ContainerConfig {
            annotations: [("cdi.k8s.io/x".to_owned(), bad.to_owned())].into(),
            ..Default::default()
        };
        let text = requested(&config).unwrap_err().to_string();
        assert!(text.contains("cdi.k8s.io/x"), "{bad}: {text}");
    }
}

/// As in YAML 1.1, and as containerd and CRI-O read it.
#[test]
fn modes_with_a_leading_zero_are_octal() {
    let text = "cdiVersion: 0.7.0\nkind: v.com/d\ndevices:\n- name: a\n  containerEdits:\n    deviceNodes:\n    - path: /dev/null\n      \
                fileMode: 0640\n      major: 1\n      minor: 3\n";
    let file = super::format::parse(text, true).unwrap();
    let node = &file.devices[0].container_edits.device_nodes[0];
    assert_eq!((node.file_mode, node.major), (Some(0o640), 1));
}
