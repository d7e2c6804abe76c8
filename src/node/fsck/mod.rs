//! Whether what lies on disk and in the kernel fits together: every record, layer and recipe, mounts, namespaces, cgroups
//! and addresses (feature row J11).
//!
//! A look changes nothing. A repair moves what is broken aside, into `state_dir/set-aside`, where it can be looked at; only what
//! can't be anybody's data (mounts, empty cgroups, leases, empty directories) is removed, and said. While a daemon runs it
//! looks itself, twice, and tells what stood both times and belongs to nothing that is under way; without one [`offline`] does.

mod kernel;
mod leases;
mod records;
mod repair;

use std::{collections::HashSet, path::PathBuf};

use wharf_proto::api::{FsckFinding, FsckResponse};

use super::{Error, Node, Result};
use crate::{
    config::Config,
    images::check::{self, Broken},
    sandbox::Roots,
    store::{self, StateLock},
};

/// Something that is wrong, and what a repair does about it.
#[derive(Debug, Clone)]
struct Found {
    finding: FsckFinding,
    /// The file that is concerned, or the id: what is gone by the end of the look was never wrong.
    path: Option<PathBuf>,
    remedy: Remedy,
}

/// What a repair does.
#[derive(Debug, Clone)]
enum Remedy {
    /// Nothing: a person must decide.
    None,
    /// Nothing: only the newer version that has written it may.
    Newer,
    /// Moves it aside.
    Aside(PathBuf),
    /// Makes the image with this id invisible and moves its record aside.
    Image(String),
    /// The same for a layer by the name of its directory, with all images that have it.
    Layer(String),
    /// Unmounts it.
    Unmount(PathBuf),
    /// Removes the file: a lease, which is nothing but its name.
    Remove(PathBuf),
    /// Unmounts what is mounted in the run directory of a pod, and removes it.
    RunDirectory(PathBuf),
    /// Removes an empty cgroup.
    Cgroup(String),
    /// Makes root own it, and nobody else write it.
    Own(PathBuf),
}

/// What a look has seen.
#[derive(Debug, Default)]
struct Seen {
    known: records::Known,
    found: Vec<Found>,
    leases: u64,
}

fn found(kind: &str, object: impl Into<String>, problem: impl Into<String>, advice: &str, remedy: Remedy) -> Found {
    Found {
        finding: FsckFinding {
            kind: kind.to_owned(),
            object: object.into(),
            problem: problem.into(),
            advice: advice.to_owned(),
            ..Default::default()
        },
        path: None,
        remedy,
    }
}

fn roots(config: &Config) -> Roots {
    Roots {
        state: config.state_dir.clone(),
        run: config.run_dir.clone(),
    }
}

/// Pods, containers, addresses and what the kernel holds for them. Blocking; takes milliseconds.
fn look(config: &Config) -> Result<Seen> {
    let roots = roots(config);
    let mut seen = Seen::default();
    records::look(&roots, &mut seen)?;
    leases::look(&roots, &mut seen)?;
    kernel::look(&roots, &config.cgroups.slice, &mut seen)?;
    Ok(seen)
}

/// The images. Blocking; reads all of every layer.
fn images(config: &Config) -> Result<(check::Report, Vec<Found>)> {
    let report = check::check(&config.state_dir.join("images"))?;
    let all = report.faults.iter().map(|fault| {
        let (kind, object, remedy) = match &fault.what {
            Broken::Image(id) => ("image", id.clone(), Remedy::Image(id.clone())),
            Broken::Layer(name) => ("layer", name.clone(), Remedy::Layer(name.clone())),
            Broken::Stray => (
                "file",
                fault.path.display().to_string(),
                Remedy::Aside(fault.path.clone()),
            ),
            Broken::Newer => ("record", fault.path.display().to_string(), Remedy::Newer),
        };
        let advice = match (&fault.what, fault.names.as_slice()) {
            (Broken::Newer, _) => "run the newer version again".to_owned(),
            (Broken::Stray, _) => String::new(),
            (_, []) => "make or load the image again".to_owned(),
            (_, names) => {
                let pulls: Vec<_> = names.iter().map(|name| format!("wharf pull {name}")).collect();
                format!("repair, then: {}", pulls.join("; "))
            }
        };
        let mut found = found(kind, object, fault.problem.clone(), &advice, remedy);
        found.path = Some(fault.path.clone());
        found
    });
    let all = all.collect();
    Ok((report, all))
}

fn response(seen: &Seen, report: &check::Report, findings: Vec<FsckFinding>) -> FsckResponse {
    FsckResponse {
        findings,
        pods: seen.known.pods.len() as u64,
        containers: seen.known.containers.len() as u64,
        images: report.images,
        layers: report.layers,
        leases: seen.leases,
    }
}

/// Checks, and with `repair` repairs, the state of a daemon that does not run. Its pods may run on. Blocking.
///
/// # Errors
/// When a daemon runs, or something can't be looked at.
pub fn offline(config: &Config, repair: bool) -> Result<FsckResponse> {
    let _lock = StateLock::acquire(&config.state_dir)?;
    let found_schema = store::schema_on_disk(&config.state_dir)?;
    let mut seen = look(config)?;
    let (report, of_images) = images(config)?;
    let mut all = std::mem::take(&mut seen.found);
    all.extend(of_images);
    // State of a newer version is looked at as far as it is understood, and never changed.
    let foreign = found_schema.is_some_and(|found| found > store::schema())
        || all.iter().any(|found| matches!(found.remedy, Remedy::Newer));
    if repair && foreign {
        return Err(Error::State(
            "a newer version of wharf has written this state: only that one may repair it".to_owned(),
        ));
    }
    let mut findings = Vec::new();
    for found in all {
        let mut finding = found.finding.clone();
        if repair {
            repair::told(&mut finding, repair::offline(config, &found.remedy));
        }
        findings.push(finding);
    }
    Ok(response(&seen, &report, findings))
}

impl Found {
    /// Whether both are the same finding.
    fn key(&self) -> (String, String, String) {
        let finding = &self.finding;
        (finding.kind.clone(), finding.object.clone(), finding.problem.clone())
    }
}

impl Node {
    /// Checks, and with `repair` repairs, all that this node has on disk and in the kernel. Pods go on meanwhile.
    ///
    /// # Errors
    /// When something can't be looked at.
    pub async fn fsck(&self, repair: bool) -> Result<FsckResponse> {
        let node = self.clone();
        self.own(async move {
            let config = node.config();
            let (first, report, of_images, second) = blocking(move || {
                let first = look(&config)?;
                let (report, of_images) = images(&config)?;
                Ok((first, report, of_images, look(&config)?))
            })
            .await?;
            let before: HashSet<_> = first.found.iter().map(Found::key).collect();
            let under_way = node.under_way();
            let lasting = second.found.iter().filter(|found| before.contains(&found.key()));
            let lasting = lasting.filter(|found| !under_way.iter().any(|id| found.finding.object.contains(id)));
            let all = lasting.cloned().chain(of_images);
            let mut findings = Vec::new();
            for found in all.filter(Found::is_there) {
                let mut finding = found.finding.clone();
                if repair {
                    repair::told(&mut finding, node.mend(found.remedy).await?);
                }
                findings.push(finding);
            }
            Ok(response(&second, &report, findings))
        })
        .await
    }

    /// Ids of pods and containers that somebody is making, starting or taking down.
    fn under_way(&self) -> Vec<String> {
        let pods = self
            .inner
            .pods
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let containers = self
            .inner
            .containers
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let pods = pods.values().filter(|pod| pod.teardown.try_lock().is_err());
        let containers = containers.values().filter(|container| container.is_busy());
        let mut ids: Vec<String> = pods.map(|pod| pod.id.clone()).collect();
        ids.extend(containers.map(|container| container.id.clone()));
        ids.extend(self.operations().into_iter().map(|operation| operation.id));
        ids
    }
}

impl Found {
    fn is_there(&self) -> bool {
        self.path.as_ref().is_none_or(|path| path.symlink_metadata().is_ok())
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Internal(format!("check the state: {error}"))),
    }
}
