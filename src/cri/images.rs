//! Images in CRI's words.

use std::collections::HashMap;

use tonic::Status;
use wharf_proto::cri::{
    Image as Item, ImageFsInfoResponse, ImageSpec, ImageStatusRequest, ImageStatusResponse, Int64Value,
    PullImageRequest,
};

use super::{Face, stats::filesystem, status::status};
use crate::{
    images::Image,
    node::{Error, Pinned},
    store,
};

impl Face {
    pub(super) async fn pull(&self, request: PullImageRequest) -> Result<String, Status> {
        let spec = request.image.unwrap_or_default();
        let image = spec.image;
        if image.is_empty() {
            return Err(Status::invalid_argument("the request names no image"));
        }
        let node = self.node()?;
        // All handlers run the same images; one that is not there would never run this.
        if !node.config().has_handler(&spec.runtime_handler) {
            return Err(Status::invalid_argument(format!(
                "pull {image}: no runtime handler {:?} is configured",
                spec.runtime_handler
            )));
        }
        node.pull(&image, request.auth, None, None)
            .await
            .map_err(|error| status(&error.into()))
    }

    pub(super) fn list_images(&self, filter: &str) -> Result<Vec<Item>, Status> {
        let node = self.node()?;
        let (images, pinned) = (node.images(), node.pinned());
        if filter.is_empty() {
            return Ok(images.list().iter().map(|image| item(image, &pinned)).collect());
        }
        Ok(images.find(filter).iter().map(|image| item(image, &pinned)).collect())
    }

    pub(super) fn image_status(&self, request: &ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        let name = request
            .image
            .as_ref()
            .map(|image| image.image.as_str())
            .unwrap_or_default();
        if name.is_empty() {
            return Err(Status::invalid_argument("the request names no image"));
        }
        let node = self.node()?;
        let Some(image) = node.images().find(name) else {
            return Ok(ImageStatusResponse::default());
        };
        let mut info = HashMap::new();
        if request.verbose {
            let mut details = serde_json::json!({
                "complete": image.is_complete(),
                "bytesHere": image.come().map(|(here, _)| here),
                "layers": image.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
                "imageSpec": {
                    "os": image.config.os,
                    "architecture": image.config.architecture,
                    "created": image.config.created,
                    "config": {
                        "User": image.config.user,
                        "Env": image.config.env,
                        "Entrypoint": image.config.entrypoint,
                        "Cmd": image.config.cmd,
                        "WorkingDir": image.config.working_dir,
                        "Labels": image.config.labels,
                        "StopSignal": image.config.stop_signal,
                        "Volumes": image.config.volumes,
                    },
                },
            });
            if let Some(artifact) = &image.artifact {
                let files = artifact.files.iter().zip(&image.layers);
                details["artifact"] = serde_json::json!({
                    "type": artifact.kind,
                    "files": files.map(|(name, layer)| serde_json::json!({
                        "name": name, "digest": layer.digest, "size": layer.size,
                    })).collect::<Vec<_>>(),
                });
            }
            info.insert("info".to_owned(), details.to_string());
        }
        Ok(ImageStatusResponse {
            image: Some(item(&image, &node.pinned())),
            info,
        })
    }

    pub(super) async fn remove_image(&self, image: Option<ImageSpec>) -> Result<(), Status> {
        let name = image.map(|image| image.image).unwrap_or_default();
        if name.is_empty() {
            return Err(Status::invalid_argument("the request names no image"));
        }
        self.node()?
            .images()
            .remove(&name)
            .await
            .map_err(|error| status(&error.into()))
    }

    pub(super) async fn image_fs_info(&self) -> Result<ImageFsInfoResponse, Status> {
        let node = self.node()?;
        let images = node
            .images()
            .fs_usage()
            .await
            .map_err(|error| status(&Error::from(error)))?;
        let containers = node.containers_usage().await.map_err(|error| status(&error))?;
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![filesystem(&images, store::now())],
            container_filesystems: vec![filesystem(&containers.usage, containers.at)],
        })
    }
}

fn item(image: &Image, pinned: &Pinned) -> Item {
    let (uid, username) = user(&image.config.user);
    Item {
        id: image.id.clone(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(ImageSpec {
            image: image.id.clone(),
            ..Default::default()
        }),
        pinned: pinned.has(image),
    }
}

/// The image's user without its group: a number as uid, else a name (contract rule 25).
fn user(user: &str) -> (Option<Int64Value>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        // An image without a user runs as root.
        Err(_) if name.is_empty() => (Some(Int64Value { value: 0 }), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_and_username_exclude_each_other_and_the_group_is_cut() {
        assert_eq!(user("1003:1004"), (Some(Int64Value { value: 1003 }), String::new()));
        assert_eq!(user("www-data:1004"), (None, "www-data".to_owned()));
        assert_eq!(user(""), (Some(Int64Value { value: 0 }), String::new()));
    }
}
