//! Where the hierarchies are mounted, for showing a container its own cgroup.

use std::path::Path;

use super::{Hierarchies, detect::Layout};

impl Hierarchies {
    /// Each v1 hierarchy's controllers and mount point; none where the controllers are on v2.
    pub fn v1_mounts(&self) -> Vec<(&[String], &Path)> {
        match &*self.0 {
            Layout::V1 { mounts, .. } => mounts
                .iter()
                .map(|m| (m.controllers.as_slice(), m.root.as_path()))
                .collect(),
            Layout::V2 { .. } => Vec::new(),
        }
    }
}
