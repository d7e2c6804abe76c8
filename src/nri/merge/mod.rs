//! What several plugins want of a container, as one wish: each sees what those before it have wanted, and none can set
//! what another has. Pure functions.

mod adjust;
mod owners;
mod resources;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use owners::Owners;
use wharf_proto::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, FieldOwners,
    LinuxContainerUpdate, LinuxResources,
};

/// What is wanted of other containers.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Wishes {
    /// New limits.
    pub updates: Vec<ContainerUpdate>,
    /// To be stopped.
    pub evictions: Vec<ContainerEviction>,
}

/// The wishes of plugins that have been asked so far.
#[derive(Debug, Default)]
pub struct Merge {
    /// Being created or updated; empty when plugins are asked about another's end.
    id: String,
    creating: bool,
    /// The one that is created, as the plugins want it.
    container: Container,
    /// What makes it so.
    adjustment: ContainerAdjustment,
    /// The limits of the one that is updated, as the plugins want them.
    resources: LinuxResources,
    wishes: Wishes,
    owners: Owners,
}

/// What a key, path or type names that asks for removal.
pub fn unmarked(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}

/// A key, path or type that asks for removal of what it names.
pub fn marked(key: &str) -> String {
    format!("-{key}")
}

impl Merge {
    /// Of a container that is to be created.
    pub fn create(container: Container) -> Self {
        Self {
            id: container.id.clone(),
            creating: true,
            container,
            ..Self::default()
        }
    }

    /// Of a container whose limits are to be changed to `wanted`.
    pub fn update(id: String, wanted: LinuxResources) -> Self {
        Self {
            id,
            resources: wanted,
            ..Self::default()
        }
    }

    /// Of a container that has ended.
    pub fn stop() -> Self {
        Self::default()
    }

    /// The container that is created, as those before want it.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The limits of the one that is updated, as those before want them.
    pub fn resources(&self) -> &LinuxResources {
        &self.resources
    }

    /// Takes in what a plugin wants of a container that is created.
    ///
    /// # Errors
    /// When it contradicts another's wish.
    pub fn created(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), String> {
        if let Some(wanted) = answer.adjust {
            self.adjust(plugin, wanted)?;
        }
        self.updated(plugin, answer.update, answer.evict)
    }

    /// Takes in what a plugin wants of containers that are there.
    ///
    /// # Errors
    /// When it contradicts another's wish and says that this may not be ignored.
    pub fn updated(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), String> {
        for update in updates {
            if self.creating && update.container_id == self.id {
                return Err(format!(
                    "plugin {plugin:?} asks for an update of container {} while it is created",
                    self.id
                ));
            }
            let ignored = update.ignore_failure;
            match self.take_update(plugin, update) {
                Err(error) if ignored => {
                    tracing::warn!(plugin, error, "an update that an NRI plugin wants is left out");
                }
                other => other?,
            }
        }
        for eviction in evictions {
            if self.creating && eviction.container_id == self.id {
                return Err(format!(
                    "plugin {plugin:?} asks for the eviction of container {} while it is created: {}",
                    self.id, eviction.reason
                ));
            }
            let known = &mut self.wishes.evictions;
            if !known.iter().any(|known| known.container_id == eviction.container_id) {
                known.push(eviction);
            }
        }
        Ok(())
    }

    fn take_update(&mut self, plugin: &str, update: ContainerUpdate) -> Result<(), String> {
        let id = update.container_id;
        let wanted = update.linux.and_then(|linux| linux.resources).unwrap_or_default();
        if !self.creating && !self.id.is_empty() && id == self.id {
            return resources::take(&mut self.owners, &id, plugin, &wanted, &mut [&mut self.resources]);
        }
        let updates = &mut self.wishes.updates;
        let at = match updates.iter().position(|known| known.container_id == id) {
            Some(at) => {
                updates[at].ignore_failure &= update.ignore_failure;
                at
            }
            None => {
                updates.push(ContainerUpdate {
                    container_id: id.clone(),
                    linux: Some(LinuxContainerUpdate {
                        resources: Some(LinuxResources::default()),
                    }),
                    ignore_failure: update.ignore_failure,
                });
                updates.len() - 1
            }
        };
        let known = updates[at]
            .linux
            .get_or_insert_default()
            .resources
            .get_or_insert_default();
        // Nothing is changed by a wish that is refused in the middle.
        let mut changed = known.clone();
        resources::take(&mut self.owners, &id, plugin, &wanted, &mut [&mut changed])?;
        *known = changed;
        Ok(())
    }

    /// What makes the created container as all want it, what they want of others, and who wants what.
    pub fn finish(self) -> (ContainerAdjustment, Wishes, HashMap<String, FieldOwners>) {
        (self.adjustment, self.wishes, self.owners.finish())
    }

    /// The limits of the updated container, and what is wanted of others.
    pub fn finish_update(self) -> (LinuxResources, Wishes) {
        (self.resources, self.wishes)
    }

    /// What is wanted of others.
    pub fn finish_stop(self) -> Wishes {
        self.wishes
    }
}
