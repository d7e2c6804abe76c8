//! Network devices of the node's that a pod's containers are given, by NRI plugins or CDI devices.

use wharf_proto::record;

use super::{Error, Mechanisms, Result, Sandbox, host_network};

/// Moves devices into the pod's network, where they stay until the pod ends. Whatever handler runs the containers, it is done
/// here: the network is the pod's, and a container that is started once more finds what it had.
///
/// # Errors
/// When a device is not on the node, its name in the pod is another's, or the pod has no network of its own.
pub async fn lend(mechanisms: &Mechanisms, sandbox: &Sandbox, wanted: &[record::NetDevice]) -> Result<()> {
    let Some(first) = wanted.first() else { return Ok(()) };
    let pod = sandbox.record.get();
    if host_network(&pod.config.clone().unwrap_or_default()) {
        return Err(Error::Invalid(format!(
            "network device {:?}: pod sandbox {} is on the node's network",
            first.host_name, sandbox.id
        )));
    }
    let is_lent = |device: &&record::NetDevice| pod.lent.iter().any(|lent| lent.device.as_ref() == Some(device));
    let new: Vec<_> = wanted.iter().filter(|device| !is_lent(device)).cloned().collect();
    let networks = &mechanisms.networks;
    if !new.is_empty() {
        let found = networks.look_at(new).await.map_err(sandbox.network_error())?;
        sandbox.record.change(|pod| pod.lent.extend(found)).await?;
    }
    let mut devices = sandbox.record.get().lent.clone();
    devices.retain(|lent| lent.device.as_ref().is_some_and(|device| wanted.contains(device)));
    networks
        .lend(&sandbox.paths.namespaces(), devices)
        .await
        .map_err(sandbox.network_error())
}
