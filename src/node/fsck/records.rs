//! The records of pods and containers, and what lies beside them.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use prost::Message as _;
use wharf_proto::record;

use super::{Found, Remedy, Result, Seen, found};
use crate::{
    sandbox::{Roots, container_exit, container_record},
    store,
};

/// What the state directory may have in it.
const TOP: [&str; 8] = [
    "lock",
    "schema",
    "pods",
    "images",
    "ipam",
    NETWORKS,
    store::SET_ASIDE,
    "lost+found",
];

/// Definitions of named networks, a file each.
const NETWORKS: &str = "networks";

/// Pods and containers whose records can be read, by id.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub pods: HashMap<String, record::Pod>,
    pub containers: HashMap<String, record::Container>,
    /// All ids that have a directory, whatever is in it.
    pub directories: HashSet<String>,
}

pub(super) fn look(roots: &Roots, seen: &mut Seen) -> Result<()> {
    top(roots, seen);
    networks(roots, seen);
    for id in store::list_dirs(&roots.pods())? {
        let paths = roots.pod(&id);
        seen.known.directories.insert(id.clone());
        let pod = read::<record::Pod>(&paths.record(), "pod", &id, &paths.state, seen);
        if let Some(pod) = pod {
            if pod.id == id {
                seen.known.pods.insert(id.clone(), pod);
            } else {
                let problem = format!("its record is that of pod {}", pod.id);
                seen.found.push(aside("pod", &id, problem, &paths.state));
            }
        }
        for container in store::list_dirs(&paths.containers())? {
            let directory = paths.container(&container);
            seen.known.directories.insert(container.clone());
            let file = container_record(&directory);
            let record = read::<record::Container>(&file, "container", &container, &directory, seen);
            let Some(record) = record else { continue };
            if record.id != container || record.pod_id != id {
                let problem = format!("its record is that of container {} in pod {}", record.id, record.pod_id);
                seen.found.push(aside("container", &container, problem, &directory));
                continue;
            }
            exit(&directory, &container, seen);
            seen.known.containers.insert(container, record);
        }
    }
    Ok(())
}

/// What lies in the state directory itself.
fn top(roots: &Roots, seen: &mut Seen) {
    owned(&roots.state, seen);
    for name in names(&roots.state) {
        let path = roots.state.join(&name);
        if !TOP.contains(&name.as_str()) && !name.ends_with(".new") {
            seen.found.push(stray(path));
        } else if name != "lost+found" {
            owned(&path, seen);
        }
    }
    for name in names(&roots.pods()) {
        let path = roots.pods().join(&name);
        if !path.is_dir() {
            seen.found.push(stray(path));
        }
    }
    if let Ok(None) = store::schema_on_disk(&roots.state) {
        seen.found.push(found(
            "record",
            roots.state.join("schema").display().to_string(),
            "it says no schema, or is missing",
            "the next start writes it anew",
            Remedy::None,
        ));
    }
}

/// The definitions of named networks.
fn networks(roots: &Roots, seen: &mut Seen) {
    let directory = roots.state.join(NETWORKS);
    // What begins with a dot is being written.
    for name in names(&directory).into_iter().filter(|name| !name.starts_with('.')) {
        let path = directory.join(&name);
        owned(&path, seen);
        let read = fs::read(&path).map_err(|error| error.to_string());
        let read =
            read.and_then(|bytes| record::NamedNetwork::decode(bytes.as_slice()).map_err(|error| error.to_string()));
        let problem = match read {
            Ok(network) if network.schema > store::schema() => {
                let problem = format!("its schema is {}, of a newer version", network.schema);
                let advice = "run the newer version again";
                seen.found.push(found("network", &name, problem, advice, Remedy::Newer));
                continue;
            }
            Ok(network) if network.name == name => continue,
            Ok(network) => format!("its definition is that of network {:?}", network.name),
            Err(error) => format!("its definition can't be read: {error}"),
        };
        let mut found = aside("network", &name, problem, &path);
        found.finding.advice = "repair, start the daemon again, and make the network again".to_owned();
        seen.found.push(found);
    }
}

/// The record at `file`, if it is one.
fn read<M: store::Versioned>(file: &Path, kind: &str, id: &str, directory: &Path, seen: &mut Seen) -> Option<M> {
    owned(directory, seen);
    match store::read_versioned::<M>(file) {
        Ok(Some(record)) => {
            owned(file, seen);
            Some(record)
        }
        Ok(None) => {
            seen.found.push(aside(kind, id, "it has no record", directory));
            None
        }
        Err(error @ store::Error::Newer { .. }) => {
            let advice = "run the newer version again";
            seen.found
                .push(found(kind, id, error.to_string(), advice, Remedy::Newer));
            None
        }
        Err(error) => {
            seen.found.push(aside(kind, id, error.to_string(), directory));
            None
        }
    }
}

/// How a container ended.
fn exit(directory: &Path, id: &str, seen: &mut Seen) {
    let file = container_exit(directory);
    if let Err(error) = store::read_record::<record::Exit>(&file) {
        let mut found = aside("container", id, format!("how it ended can't be read: {error}"), &file);
        found.finding.advice = "its end is Unknown then".to_owned();
        seen.found.push(found);
    }
}

/// Records say what root does: nobody else may write them, or put others in their place.
fn owned(path: &Path, seen: &mut Seen) {
    let Ok(meta) = path.symlink_metadata() else { return };
    let mode = meta.mode() & 0o7777;
    let problem = match (meta.uid(), mode & 0o022) {
        (0, 0) => return,
        (0, _) => format!("others than root may write it (mode {mode:o})"),
        (uid, _) => format!("it belongs to user {uid} instead of root"),
    };
    let object = path.display().to_string();
    let mut found = found(
        "file",
        object,
        problem,
        "look who has changed it",
        Remedy::Own(path.to_owned()),
    );
    found.path = Some(path.to_owned());
    seen.found.push(found);
}

fn aside(kind: &str, id: &str, problem: impl Into<String>, path: &Path) -> Found {
    let advice = "what it stood for is lost; kubelet makes it anew";
    let mut found = found(kind, id, problem, advice, Remedy::Aside(path.to_owned()));
    found.path = Some(path.to_owned());
    found
}

fn stray(path: PathBuf) -> Found {
    let object = path.display().to_string();
    let problem = "no version of wharf puts this there";
    let mut found = found("file", object, problem, "", Remedy::Aside(path.clone()));
    found.path = Some(path);
    found
}

pub(super) fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
