//! Stats of containers and pods in CRI's words.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tonic::{Request, Status};
use wharf_proto::{
    cri::{
        ContainerAttributes, ContainerConfig, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier,
        FilesystemUsage, IoUsage, LinuxPodSandboxStats, ListContainerStatsRequest, ListPodSandboxStatsRequest,
        MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes, PodSandboxConfig, PodSandboxStats,
        PodSandboxStatsFilter, ProcessUsage, PsiData, PsiStats, SwapUsage, UInt64Value,
    },
    record,
};

use super::{
    Face,
    filters::{id_matches, labels_match, whole_id},
    lists::{Holder, field_len, put_head},
    owners,
    status::status,
};
use crate::{
    cgroups::{Psi, Stall},
    images::FsUsage,
    netns::Counters,
    node::{
        Listed,
        stats::{ContainerStats as Read, PodStats},
    },
    sandbox::{Sandbox, Taken, usage::Sample},
};

/// Number of the field `linux` in PodSandboxStats.
const LINUX_OF_POD: u32 = 2;
/// Number of the field `containers` in LinuxPodSandboxStats.
const CONTAINERS_OF_POD: u32 = 5;
/// What CNI calls a pod's first device, and Wharf's own network too.
const DEFAULT_INTERFACE: &str = "eth0";

impl Face {
    /// Stats of one container. One that does not run has only a writable layer.
    pub(super) async fn container_stats(&self, id: &str) -> Result<ContainerStats, Status> {
        let node = self.node()?;
        let container = node.container(id).map_err(|error| status(&error))?;
        Ok(container_stats(&node.container_stats(container).await))
    }

    /// Stats of the running containers that `filter` lets through.
    pub(super) async fn list_container_stats<T>(
        &self,
        request: &Request<T>,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<ContainerStats>, Status> {
        Ok(self
            .read_containers(request, filter)
            .await?
            .iter()
            .map(container_stats)
            .collect())
    }

    /// As [`Face::list_container_stats`], each item encoded.
    pub(super) async fn encoded_container_stats(
        &self,
        request: &Request<ListContainerStatsRequest>,
    ) -> Result<Vec<Bytes>, Status> {
        let filter = request.get_ref().filter.clone();
        Ok(self
            .read_containers(request, filter)
            .await?
            .iter()
            .map(encoded_container)
            .collect())
    }

    async fn read_containers<T>(
        &self,
        request: &Request<T>,
        filter: Option<ContainerStatsFilter>,
    ) -> Result<Vec<Read>, Status> {
        let filter = filter.unwrap_or_default();
        let node = self.node()?;
        let wanted = |(container, record): &Listed| {
            id_matches(&filter.id, &container.id)
                && id_matches(&filter.pod_sandbox_id, &container.sandbox.id)
                && record
                    .config
                    .as_ref()
                    .is_some_and(|config| labels_match(&filter.label_selector, &config.labels))
        };
        let listed = node.listed(owners(request), whole_id(&filter.pod_sandbox_id));
        let mut wanted: Vec<_> = listed
            .into_iter()
            .filter(wanted)
            .map(|(container, _)| container)
            .collect();
        wanted.sort_unstable_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(node.running_stats(wanted).await)
    }

    /// Stats of one pod. One that has been stopped has only its attributes.
    pub(super) async fn sandbox_stats(&self, id: &str) -> Result<PodSandboxStats, Status> {
        let node = self.node()?;
        let pod = node.pod(id).map_err(|error| status(&error))?;
        let stats = node.pod_stats_now(pod).await;
        let stats = stats.ok_or_else(|| Status::internal("the pod's stats got lost"))?;
        Ok(pod_stats(&stats))
    }

    /// Stats of the ready pods that `filter` lets through.
    pub(super) async fn list_sandbox_stats<T>(
        &self,
        request: &Request<T>,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodSandboxStats>, Status> {
        Ok(self
            .read_sandboxes(request, filter)
            .await?
            .iter()
            .map(pod_stats)
            .collect())
    }

    /// As [`Face::list_sandbox_stats`], each item encoded.
    pub(super) async fn encoded_sandbox_stats(
        &self,
        request: &Request<ListPodSandboxStatsRequest>,
    ) -> Result<Vec<Holder>, Status> {
        let filter = request.get_ref().filter.clone();
        Ok(self
            .read_sandboxes(request, filter)
            .await?
            .iter()
            .map(encoded_pod)
            .collect())
    }

    async fn read_sandboxes<T>(
        &self,
        request: &Request<T>,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Result<Vec<PodStats>, Status> {
        let filter = filter.unwrap_or_default();
        let mut wanted = self.ready_pods(request)?;
        wanted.retain(|pod| {
            let record = pod.record.get();
            id_matches(&filter.id, &pod.id)
                && record
                    .config
                    .as_ref()
                    .is_some_and(|config| labels_match(&filter.label_selector, &config.labels))
        });
        Ok(self.node()?.pod_stats(wanted).await)
    }

    /// Pods that use something, newest first.
    pub(super) fn ready_pods<T>(&self, request: &Request<T>) -> Result<Vec<Arc<Sandbox>>, Status> {
        let mut pods = self.node()?.pods(owners(request));
        pods.retain(|pod| pod.is_ready());
        pods.sort_unstable_by_key(|pod| std::cmp::Reverse(pod.created_at));
        Ok(pods)
    }
}

pub(super) fn number(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn container_stats(read: &Read) -> ContainerStats {
    let record = read.container.record.get();
    let none = ContainerConfig::default();
    let config = record.config.as_ref().unwrap_or(&none);
    let sample = read.sample.as_ref().map(|taken| (&taken.value, taken.at));
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
        }),
        cpu: sample.and_then(|(sample, at)| cpu(sample, at)),
        memory: sample.and_then(|(sample, at)| memory(sample, at)),
        writable_layer: read
            .layer
            .as_ref()
            .map(|taken| filesystem(&taken.value.layer, taken.at)),
        swap: sample.and_then(|(sample, at)| swap(sample, at)),
        io: sample.and_then(|(sample, at)| io(sample, at)),
    }
}

fn encoded_container(read: &Read) -> Bytes {
    let record = read.container.record.get();
    let (Some(sample), Some(layer)) = (&read.sample, &read.layer) else {
        return container_stats(read).encode_to_vec().into();
    };
    let told = (record, Arc::clone(sample), Arc::clone(layer));
    read.container
        .stats_listed
        .of(&told, |_| container_stats(read).encode_to_vec())
}

fn encoded_pod(read: &PodStats) -> Holder {
    let record = read.pod.record.get();
    let attributes = read.pod.attributes.of(&record, |record| {
        let attributes = Some(pod_attributes(record));
        let only = PodSandboxStats {
            attributes,
            ..Default::default()
        };
        only.encode_to_vec()
    });
    let containers: Vec<_> = read.containers.iter().map(encoded_container).collect();
    let figures = pod_figures(read, &record);
    let linux = figures.encoded_len() + containers.iter().map(|one| field_len(one.len())).sum::<usize>();
    let mut head = attributes.to_vec();
    put_head(LINUX_OF_POD, linux, &mut head);
    // A vector grows: there is always room.
    let _ = figures.encode(&mut head);
    Holder::new(head, CONTAINERS_OF_POD, containers)
}

fn pod_stats(read: &PodStats) -> PodSandboxStats {
    let record = read.pod.record.get();
    PodSandboxStats {
        attributes: Some(pod_attributes(&record)),
        linux: Some(LinuxPodSandboxStats {
            containers: read.containers.iter().map(container_stats).collect(),
            ..pod_figures(read, &record)
        }),
        windows: None,
    }
}

fn pod_attributes(record: &record::Pod) -> PodSandboxAttributes {
    let none = PodSandboxConfig::default();
    let config = record.config.as_ref().unwrap_or(&none);
    PodSandboxAttributes {
        id: record.id.clone(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

/// All but the containers'.
fn pod_figures(read: &PodStats, record: &record::Pod) -> LinuxPodSandboxStats {
    let ready = record.state() == record::PodState::PodReady;
    let (sample, at) = (&read.sample, read.at);
    LinuxPodSandboxStats {
        cpu: cpu(sample, at),
        memory: memory(sample, at),
        network: read.network.as_ref().and_then(|taken| network(taken)),
        process: ready.then(|| ProcessUsage {
            timestamp: at,
            process_count: number(sample.usage.processes.unwrap_or(0)),
        }),
        containers: Vec::new(),
        io: io(sample, at),
    }
}

fn cpu(sample: &Sample, timestamp: i64) -> Option<CpuUsage> {
    let cpu = sample.usage.cpu?;
    Some(CpuUsage {
        timestamp,
        usage_core_nano_seconds: number(cpu.usage_ns),
        // Unset at the first sample: kubelet then computes it itself, and takes a zero for the truth.
        usage_nano_cores: sample.nano_cores.and_then(number),
        psi: sample.usage.cpu_pressure.map(psi),
    })
}

fn memory(sample: &Sample, timestamp: i64) -> Option<MemoryUsage> {
    let memory = sample.usage.memory?;
    Some(MemoryUsage {
        timestamp,
        working_set_bytes: number(memory.working_set),
        // Unset where there is no limit.
        available_bytes: memory
            .limit
            .and_then(|limit| number(limit.saturating_sub(memory.working_set))),
        usage_bytes: number(memory.usage),
        rss_bytes: number(memory.rss),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: sample.usage.memory_pressure.map(psi),
    })
}

fn swap(sample: &Sample, timestamp: i64) -> Option<SwapUsage> {
    let swap = sample.usage.swap?;
    Some(SwapUsage {
        timestamp,
        swap_available_bytes: swap.limit.and_then(|limit| number(limit.saturating_sub(swap.usage))),
        swap_usage_bytes: number(swap.usage),
    })
}

fn io(sample: &Sample, timestamp: i64) -> Option<IoUsage> {
    Some(IoUsage {
        timestamp,
        psi: Some(psi(sample.usage.io_pressure?)),
    })
}

fn psi(psi: Psi) -> PsiStats {
    let data = |stall: Stall| PsiData {
        // The kernel counts microseconds, CRI nanoseconds.
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    PsiStats {
        full: Some(data(psi.full)),
        some: Some(data(psi.some)),
    }
}

/// Usage of a filesystem.
pub(super) fn filesystem(usage: &FsUsage, timestamp: i64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp,
        fs_id: Some(FilesystemIdentifier {
            mountpoint: usage.mountpoint.display().to_string(),
        }),
        used_bytes: number(usage.used_bytes),
        inodes_used: number(usage.inodes_used),
    }
}

/// None without a device: kubelet reads the default interface unchecked.
fn network(taken: &Taken<Vec<Counters>>) -> Option<NetworkUsage> {
    let usage = |device: &Counters| NetworkInterfaceUsage {
        name: device.name.clone(),
        rx_bytes: number(device.received.bytes),
        rx_errors: number(device.received.errors),
        tx_bytes: number(device.sent.bytes),
        tx_errors: number(device.sent.errors),
    };
    let devices = &taken.value;
    let default = devices
        .iter()
        .position(|device| device.name == DEFAULT_INTERFACE)
        .unwrap_or(0);
    Some(NetworkUsage {
        timestamp: taken.at,
        default_interface: Some(usage(devices.get(default)?)),
        interfaces: devices
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != default)
            .map(|(_, device)| usage(device))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::{Cpu, Memory, Swap, Usage};

    fn sample() -> Sample {
        Sample {
            usage: Usage {
                cpu: Some(Cpu {
                    usage_ns: 7,
                    ..Cpu::default()
                }),
                memory: Some(Memory {
                    usage: 100,
                    working_set: 60,
                    limit: Some(200),
                    ..Memory::default()
                }),
                swap: Some(Swap { usage: 10, limit: None }),
                io_pressure: Some(Psi {
                    some: Stall {
                        total_us: 3,
                        avg10: 0.5,
                        ..Stall::default()
                    },
                    full: Stall::default(),
                }),
                ..Usage::default()
            },
            nano_cores: None,
        }
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_unset_and_not_zero() {
        let sample = sample();
        let cpu = cpu(&sample, 5).unwrap();
        assert_eq!((cpu.usage_core_nano_seconds, cpu.usage_nano_cores), (number(7), None));
        let memory = memory(&sample, 5).unwrap();
        assert_eq!((memory.available_bytes, memory.psi), (number(140), None));
        let swap = swap(&sample, 5).unwrap();
        assert_eq!((swap.swap_usage_bytes, swap.swap_available_bytes), (number(10), None));
        let some = io(&sample, 5).unwrap().psi.unwrap().some.unwrap();
        assert_eq!((some.total, some.avg10), (3000, 0.5));
        assert_eq!(io(&Sample::default(), 5), None);
    }
}
