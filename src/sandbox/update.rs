//! Changing a pod's limits.

use oci_spec::runtime::LinuxResources;
use wharf_proto::cri::LinuxContainerResources;

use super::{Error, Mechanisms, Result, Sandbox, start::blocking};
use crate::cgroups::Cgroup;

/// A pod's new limits, as CRI gives them.
#[derive(Debug, Default, Clone)]
pub struct Limits {
    /// Of the pod itself.
    pub overhead: Option<LinuxContainerResources>,
    /// The sum of its containers'.
    pub resources: Option<LinuxContainerResources>,
}

/// Sets `limits` on the pod's cgroup, if `cgroup` names one and it is there, and notes what was asked for.
///
/// # Errors
/// When a limit can't be set. Nothing is then changed.
pub async fn update(
    mechanisms: &Mechanisms,
    sandbox: &Sandbox,
    cgroup: Option<String>,
    asked: Limits,
    limits: LinuxResources,
) -> Result<()> {
    let hierarchies = mechanisms.cgroups.clone();
    let undo = blocking(sandbox, move || {
        let Some(path) = cgroup else { return Ok(None) };
        let failed = |error: crate::cgroups::Error| Error::Invalid(format!("limit the pod's cgroup {path}: {error}"));
        let cgroup = Cgroup::new(&hierarchies, &path).map_err(failed)?;
        if !cgroup.exists() {
            return Ok(None);
        }
        cgroup.update(&limits).map(Some).map_err(failed)
    })
    .await?;
    let applied = undo.is_some();
    let noted = sandbox
        .record
        .change(|record| {
            record.overhead = asked.overhead.or(record.overhead.take());
            record.resources = asked.resources.or(record.resources.take());
            record.limits_applied = applied;
        })
        .await;
    match (noted, undo) {
        (Err(error), Some(undo)) => {
            blocking(sandbox, move || {
                undo.take_back()
                    .map_err(|error| Error::Invalid(format!("take back limits of a pod: {error}")))
            })
            .await?;
            Err(error.into())
        }
        (noted, _) => Ok(noted.map(drop)?),
    }
}
