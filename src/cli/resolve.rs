//! From what people type (a name, an id, the beginning of an id) to the object that is meant.

use std::collections::HashSet;

use wharf_proto::cri;

use super::client::Client;
use super::error::{Error, Result};
use super::units::short_id;

/// Label of pods and containers that `wharf run` made.
pub const RUN_LABEL: &str = "wharf.run";

/// A container or a pod.
pub enum Object {
    /// A container, found by its id or name.
    Container(Box<cri::Container>),
    /// A pod, found by its id or name.
    Pod(Box<cri::PodSandbox>),
}

/// The container that `text` names.
pub async fn container(client: &Client, text: &str) -> Result<cri::Container> {
    let list = client.containers(None).await?.containers;
    pick_container(list, text)?.ok_or_else(|| absent("container", text, "wharf ps -a"))
}

/// The container or, if there is none, the pod that `text` names.
pub async fn object(client: &Client, text: &str) -> Result<Option<Object>> {
    let list = client.containers(None).await?.containers;
    if let Some(found) = pick_container(list, text)? {
        return Ok(Some(Object::Container(Box::new(found))));
    }
    Ok(pod(client, text).await?.map(|pod| Object::Pod(Box::new(pod))))
}

/// The pod that `text` names.
pub async fn pod(client: &Client, text: &str) -> Result<Option<cri::PodSandbox>> {
    pick_pod(client.pods(None).await?.items, text)
}

/// The error for something that isn't there.
pub fn absent(kind: &str, text: &str, list: &str) -> Error {
    Error::new(format!("there is no {kind} \"{text}\"")).hint(format!("`{list}` lists what there is."))
}

/// A container's name.
pub fn container_name(container: &cri::Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

/// A pod's name.
pub fn pod_name(pod: &cri::PodSandbox) -> &str {
    pod.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

fn pick_container(list: Vec<cri::Container>, text: &str) -> Result<Option<cri::Container>> {
    let attempt = |c: &cri::Container| c.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
    let mut found = select(list, text, |c| &c.id, container_name);
    // Restarts of one container in one pod share its name: the newest is meant.
    found.sort_by_key(|c| std::cmp::Reverse(attempt(c)));
    let mut pods = HashSet::new();
    found.retain(|c| container_name(c) != text || pods.insert(c.pod_sandbox_id.clone()));
    only("container", text, found, |c| (c.id.as_str(), container_name(c)))
}

fn pick_pod(list: Vec<cri::PodSandbox>, text: &str) -> Result<Option<cri::PodSandbox>> {
    only("pod", text, select(list, text, |p| &p.id, pod_name), |p| {
        (p.id.as_str(), pod_name(p))
    })
}

/// A whole id beats a name, a name beats the beginning of an id.
fn select<T>(list: Vec<T>, text: &str, id: fn(&T) -> &String, name: fn(&T) -> &str) -> Vec<T> {
    let whole = list.iter().any(|item| id(item) == text);
    let named = list.iter().any(|item| name(item) == text);
    list.into_iter()
        .filter(|item| match (whole, named) {
            (true, _) => id(item) == text,
            (false, true) => name(item) == text,
            (false, false) => !text.is_empty() && id(item).starts_with(text),
        })
        .collect()
}

fn only<T>(kind: &str, text: &str, mut found: Vec<T>, words: fn(&T) -> (&str, &str)) -> Result<Option<T>> {
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let mut names: Vec<String> = found
        .iter()
        .map(words)
        .take(5)
        .map(|(id, name)| format!("{} ({name})", short_id(id)))
        .collect();
    if found.len() > names.len() {
        names.push("…".to_owned());
    }
    Err(
        Error::new(format!("\"{text}\" fits {} {kind}s: {}", found.len(), names.join(", ")))
            .hint("Give more of the id."),
    )
}

/// The images that `text` names by id, the beginning of an id, tag or digest reference, as the lists spell them.
pub fn images_by_id<'a>(list: &'a [cri::Image], text: &str) -> Vec<&'a cri::Image> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() < 3 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Vec::new();
    }
    list.iter()
        .filter(|image| image.id.trim_start_matches("sha256:").starts_with(digits))
        .collect()
}

/// The image that `text` names: the runtime is asked, which knows how references are completed; it needs not know
/// the beginning of an id, so that is looked up in the list.
pub async fn image(client: &Client, text: &str, verbose: bool) -> Result<Option<cri::ImageStatusResponse>> {
    let answer = client.image_status(text, verbose).await;
    if let Ok(found) = &answer
        && found.image.is_some()
    {
        return answer.map(Some);
    }
    let list = client.images().await?.images;
    match images_by_id(&list, text).as_slice() {
        [] => answer.map(|_| None),
        [image] => client.image_status(&image.id, verbose).await.map(Some),
        several => {
            let ids: Vec<&str> = several.iter().map(|image| short_id(&image.id)).collect();
            Err(
                Error::new(format!("\"{text}\" fits {} images: {}", ids.len(), ids.join(", ")))
                    .hint("Give more of the id."),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(id: &str, pod: &str, name: &str, attempt: u32) -> cri::Container {
        cri::Container {
            id: id.into(),
            pod_sandbox_id: pod.into(),
            metadata: Some(cri::ContainerMetadata {
                name: name.into(),
                attempt,
            }),
            ..Default::default()
        }
    }

    fn list() -> Vec<cri::Container> {
        vec![
            container("aa11", "p1", "web", 0),
            container("aa22", "p1", "web", 1),
            container("bb33", "p2", "db", 0),
            container("bb44", "p3", "db", 0),
            container("cc55", "p4", "aa", 0),
        ]
    }

    fn id(text: &str) -> String {
        pick_container(list(), text)
            .unwrap()
            .map_or_else(|| "none".to_owned(), |c| c.id)
    }

    #[test]
    fn ids_names_and_beginnings_are_accepted() {
        assert_eq!(id("bb33"), "bb33");
        assert_eq!(id("bb3"), "bb33");
        assert_eq!(id("zz"), "none");
        assert_eq!(id(""), "none");
    }

    #[test]
    fn a_name_beats_the_beginning_of_an_id() {
        assert_eq!(id("aa"), "cc55");
    }

    #[test]
    fn the_newest_of_a_pods_restarts_is_meant() {
        assert_eq!(id("web"), "aa22");
    }

    #[test]
    fn what_fits_several_is_refused_by_name() {
        let error = pick_container(list(), "db").unwrap_err().to_string();
        assert!(
            error.starts_with("\"db\" fits 2 containers: bb33 (db), bb44 (db)"),
            "{error}"
        );
        let error = pick_container(list(), "bb").unwrap_err().to_string();
        assert!(error.contains("fits 2 containers"), "{error}");
        let error = pick_container(list(), "aa1").map(|c| c.unwrap().id);
        assert_eq!(error.unwrap(), "aa11");
    }
}
