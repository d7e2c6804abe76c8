//! Images that are made here: imported from an archive of files, or committed from a container.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{
    Error, Image, Layer, Reference, Result, changes,
    extract::{self, Feed, Source},
    index::Arrival,
    layers::Pin,
    manifest,
    outlet::{Outflow, outflow},
    platform::Host,
    pull::sync_file_system,
    registry::digest_of,
    room::Room,
    save::sent,
    tarball::Tarball,
    tree::{self, Marks, View},
    trust::Evidence,
};

/// What a new image is to be.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// A reference with a tag, or empty.
    pub name: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// Who made it.
    pub author: String,
    /// Kept in its history.
    pub message: String,
}

/// A container whose changes become a layer.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The image that it was made from.
    pub image: Arc<Image>,
    /// Its directory.
    pub directory: PathBuf,
    /// Whose its files are.
    pub owners: Option<super::rootfs::Owners>,
    /// What it ran with: entry point, arguments, variables, working directory; empty ones are the image's.
    pub entrypoint: Vec<String>,
    /// See there.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<(String, String)>,
    /// See there.
    pub working_dir: String,
}

/// Checks what can be checked before anything is unpacked: the name, and the instructions, in a trial.
fn check(order: &Order) -> Result<Option<Reference>> {
    let mut trial = Map::new();
    change(&mut trial, order)?;
    if order.name.is_empty() {
        return Ok(None);
    }
    let name = Reference::parse(&order.name)?;
    if name.tagged().is_none() {
        return Err(Error::InvalidReference {
            reference: order.name.clone(),
            reason: "a name to give can't have a digest",
        });
    }
    Ok(Some(name))
}

fn change(config: &mut Map<String, Value>, order: &Order) -> Result<()> {
    for instruction in &order.changes {
        changes::apply(config, instruction).map_err(|reason| Error::BadContent {
            what: "change".into(),
            reason,
        })?;
    }
    Ok(())
}

/// Makes an image of one layer of the archive `feed`. Blocking.
///
/// # Errors
/// When the order makes no sense, or the archive can't be unpacked.
pub(super) fn import(room: &Arc<Room>, feed: impl Feed, order: &Order) -> Result<String> {
    let name = check(order)?;
    let (layer, pin) = unpack(room, feed)?;
    let mut config = Map::new();
    change(&mut config, order)?;
    let now = now();
    let comment = if order.message.is_empty() {
        "Imported from -"
    } else {
        &order.message
    };
    let value = json!({
        "architecture": Host::current().architecture(), "os": "linux", "created": now, "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
        "history": [{ "created": now, "comment": comment }],
    });
    publish(room, &value, vec![layer], vec![pin], name, "import")
}

/// Makes an image of what `changed` was made from and has changed since. Blocking.
///
/// # Errors
/// When the order makes no sense, or the changes can't be read or said in a layer.
pub(super) fn commit(room: &Arc<Room>, changed: &Changed, order: &Order) -> Result<String> {
    let name = check(order)?;
    let base = room.index.config(&changed.image.id)?;
    let unreadable = |reason: String| Error::BadContent {
        what: format!("image configuration {}", changed.image.id),
        reason,
    };
    let mut value: Value = serde_json::from_slice(&base).map_err(|error| unreadable(error.to_string()))?;
    let (layer, pin) = unpack(room, Flowing(differences(changed)?))?;
    let now = now();
    let root = value
        .as_object_mut()
        .ok_or_else(|| unreadable("it is no object".into()))?;
    let config = object(root, "config");
    for (key, words) in [("Entrypoint", &changed.entrypoint), ("Cmd", &changed.cmd)] {
        if !words.is_empty() {
            config.insert(key.into(), json!(words));
        }
    }
    if !changed.entrypoint.is_empty() && changed.cmd.is_empty() {
        // The image's arguments were meant for its own entry point.
        config.remove("Cmd");
    }
    for (key, value) in &changed.env {
        changes::set_env(config, key, value);
    }
    if !changed.working_dir.is_empty() {
        config.insert("WorkingDir".into(), json!(changed.working_dir));
    }
    change(config, order)?;
    root.insert("created".into(), json!(now));
    if !order.author.is_empty() {
        root.insert("author".into(), json!(order.author));
    }
    list(object(root, "rootfs"), "diff_ids").push(json!(layer.diff_id));
    // Some tools refuse a history that does not account for each layer.
    let history = list(root, "history");
    let told = history.iter().filter(|step| step["empty_layer"] != json!(true)).count();
    for _ in told..changed.image.layers.len() {
        history.push(json!({}));
    }
    let mut step = json!({ "created": now, "created_by": "wharf commit", "comment": order.message });
    if !order.author.is_empty() {
        step["author"] = json!(order.author);
    }
    list(root, "history").push(step);
    let mut layers = changed.image.layers.clone();
    let mut pins = changed.image.pins.clone();
    layers.push(layer);
    pins.push(pin);
    publish(room, &value, layers, pins, name, "commit")
}

/// The root filesystem of a container as an archive. Blocking.
///
/// # Errors
/// When it can't be mounted.
pub(super) fn export(changed: &Changed) -> Result<Outflow> {
    let image = &changed.image;
    let layers: Vec<PathBuf> = image.pins.iter().rev().map(Pin::path).collect();
    let (root, mount) = super::rootfs::view(&layers, &changed.directory, changed.owners.as_ref())?;
    let pins = image.pins.clone();
    let ids = changed.owners.as_ref().map(|owners| (owners.uids, owners.gids));
    Ok(outflow(move |out| {
        let mut tar = Tarball::new(out);
        let view = View {
            ids,
            marks: Marks::None,
        };
        let written = tree::write(root, &mut tar, view).and_then(|()| tar.finish());
        drop((mount, pins));
        written.map(drop).map_err(sent)
    }))
}

/// What a container has changed, as a layer's archive.
fn differences(changed: &Changed) -> Result<Outflow> {
    let upper = changed.directory.join("upper");
    let directory = std::fs::File::open(&upper).map_err(Error::io("open", &upper))?;
    let root = tree::open(&directory.into(), ".").map_err(|errno| Error::io("open", &upper)(errno.into()))?;
    let ids = changed.owners.as_ref().map(|owners| (owners.uids, owners.gids));
    Ok(outflow(move |out| {
        let mut tar = Tarball::new(out);
        let view = View {
            ids,
            marks: Marks::Layer,
        };
        let written = tree::write(root, &mut tar, view).and_then(|()| tar.finish());
        written.map(drop).map_err(sent)
    }))
}

/// Makes the archive a layer of the store.
fn unpack(room: &Room, feed: impl Feed) -> Result<(Layer, Pin)> {
    let unpacked = extract::unpack(&mut Source::new(feed), "of the new image", &room.layers)?;
    let diff_id = unpacked.diff_id.clone();
    let pin = match room.layers.pin(&diff_id) {
        Some(pin) => pin,
        None => room.layers.add(unpacked.directory, &diff_id, unpacked.size)?,
    };
    let layer = Layer {
        digest: diff_id.clone(),
        size: pin.archive()?.length(),
        diff_id,
    };
    Ok((layer, pin))
}

fn publish(
    room: &Arc<Room>,
    config: &Value,
    layers: Vec<Layer>,
    pins: Vec<Pin>,
    name: Option<Reference>,
    action: &'static str,
) -> Result<String> {
    let config: Bytes = config.to_string().into_bytes().into();
    let id = digest_of(&config);
    let manifest = manifest::compose(&id, config.len() as u64, &layers);
    let digest = digest_of(&manifest);
    // The layers must be durable before a record says that they are there.
    sync_file_system(&room.root)?;
    room.index.add(Arrival {
        size: layers.iter().map(|layer| layer.size).sum::<u64>() + config.len() as u64,
        id: id.clone(),
        layers,
        pins,
        config,
        documents: vec![(digest.clone(), manifest.into())],
        names: name.map(|name| (name, digest)).into_iter().collect(),
        pinned: true,
        artifact: None,
        evidence: Evidence::default(),
        action,
    })?;
    Ok(id)
}

fn object<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(key).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        // It was made one just now.
        _ => unreachable!("an object"),
    }
}

fn list<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let value = map.entry(key).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        // It was made one just now.
        _ => unreachable!("a list"),
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

/// An archive that is being made.
struct Flowing(Outflow);

impl Feed for Flowing {
    fn pull(&mut self) -> io::Result<Option<Bytes>> {
        self.0.blocking_recv().transpose().map_err(io::Error::other)
    }
}
