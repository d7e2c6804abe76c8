//! The metrics' values. What the kernel does not tell is left out, except where a zero means "none".

use std::sync::Arc;

use bytes::Bytes;
use prost::{
    Message as _,
    encoding::{int64, message},
};
use wharf_proto::{
    cri::{LinuxContainerResources, UInt64Value},
    record,
};

use super::descriptors::{self as is, Descriptor};
use crate::{
    cgroups::{DeviceIo, Psi, Usage},
    containers::usage::Descriptors,
    cri::lists::{Holder, field_len, put_field, put_head},
    images::rootfs::{ContainerDisk, Space},
    netns::Counters,
    node::stats::{ContainerMetrics as ReadContainer, PodMetrics as ReadPod},
    sandbox::Taken,
    store,
};

/// Numbers of fields in PodSandboxMetrics and ContainerMetrics.
const ID: u32 = 1;
const METRICS: u32 = 2;
const CONTAINERS: u32 = 3;
/// Numbers of fields in Metric.
const NAME: u32 = 1;
const TIMESTAMP: u32 = 2;
const KIND: u32 = 3;
const LABEL: u32 = 4;
const VALUE: u32 = 5;
const SECOND: u64 = 1_000_000_000;
/// Older values carry their time; the others are live, which CRI writes as zero.
const LIVE: i64 = 1_000_000_000;
/// The kernel's period of the CPU quota, microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Metrics of one object, encoded: a thousand containers have 60,000 of them. They share the first labels.
struct Sheet {
    /// The fields of the first labels.
    base: Vec<u8>,
    timestamp: i64,
    /// Fields of the object's message.
    encoded: Vec<u8>,
}

impl Sheet {
    fn new(base: [&str; 5], timestamp: i64) -> Self {
        let mut labels = Vec::new();
        for label in base {
            put_field(LABEL, label.as_bytes(), &mut labels);
        }
        Self {
            base: labels,
            timestamp,
            encoded: Vec::new(),
        }
    }

    fn put(&mut self, metric: &Descriptor, value: u64) {
        self.put_with(metric, &[], value);
    }

    /// A `Metric`, as prost would write it.
    fn put_with(&mut self, metric: &Descriptor, labels: &[&str], value: u64) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{metric:?}");
        let kind = i64::from(metric.kind as i32);
        let value = UInt64Value { value };
        let length = field_len(metric.name.len())
            + number_len(self.timestamp)
            + number_len(kind)
            + self.base.len()
            + labels.iter().map(|label| field_len(label.len())).sum::<usize>()
            + field_len(value.encoded_len());
        let to = &mut self.encoded;
        put_head(METRICS, length, to);
        put_field(NAME, metric.name.as_bytes(), to);
        put_number(TIMESTAMP, self.timestamp, to);
        put_number(KIND, kind, to);
        to.extend_from_slice(&self.base);
        for label in labels {
            put_field(LABEL, label.as_bytes(), to);
        }
        message::encode(VALUE, &value, to);
    }
}

/// Zero is not written.
fn number_len(value: i64) -> usize {
    match value {
        0 => 0,
        value => int64::encoded_len(TIMESTAMP, &value),
    }
}

fn put_number(field: u32, value: i64, to: &mut Vec<u8>) {
    if value != 0 {
        int64::encode(field, &value, to);
    }
}

fn stamp(taken_at: i64) -> i64 {
    if store::now() - taken_at > LIVE { taken_at } else { 0 }
}

/// Metrics of a pod: its network, and its containers.
pub(super) fn pod(read: &ReadPod) -> Holder {
    let record = read.pod.record.get();
    let names = PodNames::of(&record);
    let mut head = Vec::new();
    put_field(ID, record.id.as_bytes(), &mut head);
    if let Some(taken) = &read.network {
        let base = [names.name, names.namespace, "", &record.id, ""];
        let mut sheet = Sheet::new(base, stamp(taken.at));
        for device in &taken.value {
            network(&mut sheet, device);
        }
        head.append(&mut sheet.encoded);
    }
    let containers = read.containers.iter().map(|read| encoded(names, read));
    Holder::new(head, CONTAINERS, containers.collect())
}

/// A `ContainerMetrics`. One that tells of the past is kept with it.
fn encoded(pod: PodNames<'_>, read: &ReadContainer) -> Bytes {
    let timestamp = stamp(read.figures.at);
    if timestamp == 0 {
        return container(pod, read, timestamp).into();
    }
    let told = (
        read.container.record.get(),
        Arc::clone(&read.figures),
        read.layer.clone(),
    );
    let listed = &read.container.metrics_listed;
    listed.of(&told, |_| container(pod, read, timestamp))
}

#[derive(Debug, Clone, Copy)]
struct PodNames<'a> {
    name: &'a str,
    namespace: &'a str,
}

impl<'a> PodNames<'a> {
    fn of(record: &'a record::Pod) -> Self {
        let metadata = record.config.as_ref().and_then(|config| config.metadata.as_ref());
        Self {
            name: metadata.map_or("", |metadata| &metadata.name),
            namespace: metadata.map_or("", |metadata| &metadata.namespace),
        }
    }
}

fn network(sheet: &mut Sheet, device: &Counters) {
    let labels = [device.name.as_str()];
    let (received, sent) = (device.received, device.sent);
    for (metric, value) in [
        (is::RECEIVE_BYTES, received.bytes),
        (is::RECEIVE_PACKETS, received.packets),
        (is::RECEIVE_DROPPED, received.dropped),
        (is::RECEIVE_ERRORS, received.errors),
        (is::TRANSMIT_BYTES, sent.bytes),
        (is::TRANSMIT_PACKETS, sent.packets),
        (is::TRANSMIT_DROPPED, sent.dropped),
        (is::TRANSMIT_ERRORS, sent.errors),
    ] {
        sheet.put_with(&metric, &labels, value);
    }
}

fn container(pod: PodNames<'_>, read: &ReadContainer, timestamp: i64) -> Vec<u8> {
    let record = read.container.record.get();
    let (name, image) = names(&record);
    let mut sheet = Sheet::new([pod.name, pod.namespace, name, &record.id, image], timestamp);
    put_field(ID, record.id.as_bytes(), &mut sheet.encoded);
    let figures = &read.figures.value;
    let usage = &figures.sample.usage;
    sheet.put(&is::LAST_SEEN, seconds(read.figures.at));
    sheet.put(&is::START_TIME, seconds(record.started_at));
    cpu(&mut sheet, usage);
    memory(&mut sheet, usage);
    for device in &usage.io {
        io(&mut sheet, device);
    }
    for pages in &usage.huge_pages {
        sheet.put_with(&is::HUGETLB_USAGE, &[&pages.size], pages.usage);
        sheet.put_with(&is::HUGETLB_MAX_USAGE, &[&pages.size], pages.peak);
    }
    let blocked = read.container.blocked();
    for call in &blocked {
        sheet.put_with(&is::SECCOMP_BLOCKED, &[&call.name], call.count);
    }
    if blocked.is_empty() {
        // What is described must be given.
        sheet.put_with(&is::SECCOMP_BLOCKED, &[""], 0);
    }
    processes(&mut sheet, usage, &figures.descriptors);
    spec(
        &mut sheet,
        record.resources.as_ref().unwrap_or(&LinuxContainerResources::default()),
    );
    pressure(&mut sheet, usage);
    if let Some(space) = &figures.space {
        disk(&mut sheet, read.layer.as_deref(), &space.value);
    }
    sheet.encoded
}

/// The container's name, and its image as the user named it.
fn names(record: &record::Container) -> (&str, &str) {
    let config = record.config.as_ref();
    let name = config.and_then(|config| config.metadata.as_ref());
    let image = config.and_then(|config| config.image.as_ref());
    let image = image.map_or("", |image| match image.user_specified_image.as_str() {
        "" => &image.image,
        named => named,
    });
    (name.map_or("", |metadata| &metadata.name), image)
}

fn seconds(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0) / SECOND
}

fn cpu(sheet: &mut Sheet, usage: &Usage) {
    if let Some(cpu) = usage.cpu {
        sheet.put_with(&is::CPU_USAGE, &["total"], cpu.usage_ns / SECOND);
        sheet.put(&is::CPU_USER, cpu.user_ns / SECOND);
        sheet.put(&is::CPU_SYSTEM, cpu.system_ns / SECOND);
    }
    if let Some(throttling) = usage.throttling {
        sheet.put(&is::CFS_PERIODS, throttling.periods);
        sheet.put(&is::CFS_THROTTLED, throttling.throttled_periods);
        sheet.put(&is::CFS_THROTTLED_TIME, throttling.throttled_ns / SECOND);
    }
}

fn memory(sheet: &mut Sheet, usage: &Usage) {
    if let Some(memory) = usage.memory {
        for (metric, value) in [
            (is::MEMORY_CACHE, memory.cache),
            (is::MEMORY_RSS, memory.rss),
            (is::MEMORY_KERNEL, memory.kernel.unwrap_or(0)),
            (is::MEMORY_MAPPED, memory.mapped_file),
            (is::MEMORY_SWAP, usage.swap.map_or(0, |swap| swap.usage)),
            (is::MEMORY_FAILCNT, memory.limit_hits),
            (is::MEMORY_USAGE, memory.usage),
            (is::MEMORY_MAX_USAGE, memory.peak.unwrap_or(memory.usage)),
            (is::MEMORY_WORKING_SET, memory.working_set),
            (is::MEMORY_ACTIVE_FILE, memory.active_file),
            (is::MEMORY_INACTIVE_FILE, memory.inactive_file),
        ] {
            sheet.put(&metric, value);
        }
        // The counters hold those of cgroups below, so both scopes are the same, as in CRI-O.
        for (kind, value) in [
            ("pgfault", memory.page_faults),
            ("pgmajfault", memory.major_page_faults),
        ] {
            for scope in ["container", "hierarchy"] {
                sheet.put_with(&is::MEMORY_FAILURES, &[kind, scope], value);
            }
        }
    }
    if let Some(kills) = usage.oom_kills {
        sheet.put(&is::OOM_EVENTS, kills);
    }
}

fn io(sheet: &mut Sheet, device: &DeviceIo) {
    let name = device.name.as_str();
    let (major, minor) = (device.major.to_string(), device.minor.to_string());
    for (operation, bytes) in &device.bytes {
        sheet.put_with(&is::BLKIO_USAGE, &[name, &major, &minor, operation], *bytes);
    }
    for (list, read, written) in [
        (&device.bytes, is::FS_READ_BYTES, is::FS_WRITTEN_BYTES),
        (&device.operations, is::FS_READS, is::FS_WRITES),
    ] {
        for (operation, value) in list {
            match operation.as_str() {
                "Read" => sheet.put_with(&read, &[name], *value),
                "Write" => sheet.put_with(&written, &[name], *value),
                _ => {}
            }
        }
    }
}

fn processes(sheet: &mut Sheet, usage: &Usage, descriptors: &Descriptors) {
    if let Some(processes) = usage.processes {
        sheet.put(&is::PROCESSES, processes);
    }
    if let Some(tasks) = usage.tasks {
        sheet.put(&is::THREADS, tasks.current);
        sheet.put(&is::THREADS_MAX, tasks.limit.unwrap_or(0));
    }
    sheet.put(&is::FILE_DESCRIPTORS, descriptors.open);
    sheet.put(&is::SOCKETS, descriptors.sockets);
    if let Some(limit) = descriptors.limit {
        sheet.put_with(&is::ULIMITS, &["max_open_files"], limit);
    }
}

fn spec(sheet: &mut Sheet, resources: &LinuxContainerResources) {
    // Negative is CRI's "no limit".
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let period = match positive(resources.cpu_period) {
        0 => CPU_PERIOD,
        period => period,
    };
    sheet.put(&is::SPEC_CPU_PERIOD, period);
    sheet.put(&is::SPEC_CPU_SHARES, positive(resources.cpu_shares));
    if resources.cpu_quota > 0 {
        sheet.put(&is::SPEC_CPU_QUOTA, positive(resources.cpu_quota));
    }
    sheet.put(&is::SPEC_MEMORY_LIMIT, positive(resources.memory_limit_in_bytes));
    sheet.put(&is::SPEC_MEMORY_SWAP, positive(resources.memory_swap_limit_in_bytes));
    let kept = resources.unified.get("memory.min").and_then(|text| text.parse().ok());
    sheet.put(&is::SPEC_MEMORY_RESERVATION, kept.unwrap_or(0));
}

fn pressure(sheet: &mut Sheet, usage: &Usage) {
    let total = |microseconds: u64| microseconds / 1_000_000;
    let mut put = |psi: Option<Psi>, stalled: &Descriptor, waiting: &Descriptor| {
        if let Some(psi) = psi {
            sheet.put(stalled, total(psi.full.total_us));
            sheet.put(waiting, total(psi.some.total_us));
        }
    };
    put(usage.cpu_pressure, &is::PRESSURE_CPU_STALLED, &is::PRESSURE_CPU_WAITING);
    put(
        usage.memory_pressure,
        &is::PRESSURE_MEMORY_STALLED,
        &is::PRESSURE_MEMORY_WAITING,
    );
    put(usage.io_pressure, &is::PRESSURE_IO_STALLED, &is::PRESSURE_IO_WAITING);
}

fn disk(sheet: &mut Sheet, layer: Option<&Taken<ContainerDisk>>, space: &Space) {
    let device = [space.device.as_str()];
    sheet.put_with(&is::FS_LIMIT, &device, space.bytes);
    sheet.put_with(&is::FS_INODES_TOTAL, &device, space.inodes);
    sheet.put_with(&is::FS_INODES_FREE, &device, space.inodes_free);
    if let Some(layer) = layer {
        let live = std::mem::replace(&mut sheet.timestamp, stamp(layer.at));
        sheet.put_with(&is::FS_USAGE, &device, layer.value.layer.used_bytes);
        sheet.timestamp = live;
    }
}

#[cfg(test)]
mod tests {
    use wharf_proto::cri::{ContainerMetrics, Metric};

    use super::*;
    use crate::cgroups::{Memory, Tasks};

    fn sheet() -> Sheet {
        Sheet::new(["p", "ns", "c", "id", "img"], 0)
    }

    /// What a client reads.
    fn metrics(sheet: &Sheet) -> Vec<Metric> {
        ContainerMetrics::decode(sheet.encoded.as_slice()).unwrap().metrics
    }

    /// The values of `name`, with the labels after the common ones.
    fn values(sheet: &Sheet, name: &str) -> Vec<(Vec<String>, u64)> {
        let found = metrics(sheet).into_iter().filter(|metric| metric.name == name);
        found
            .map(|metric| (metric.label_values[5..].to_vec(), metric.value.unwrap().value))
            .collect()
    }

    #[test]
    fn metrics_are_written_as_the_proto_says() {
        for (timestamp, value) in [(0, 0), (5, 0), (i64::MAX, u64::MAX)] {
            let mut sheet = sheet();
            sheet.timestamp = timestamp;
            sheet.put_with(&is::CPU_USAGE, &["total"], value);
            let metric = Metric {
                name: "container_cpu_usage_seconds_total".into(),
                timestamp,
                metric_type: is::CPU_USAGE.kind.into(),
                label_values: ["p", "ns", "c", "id", "img", "total"].map(str::to_owned).into(),
                value: Some(UInt64Value { value }),
            };
            let whole = ContainerMetrics {
                metrics: vec![metric],
                ..Default::default()
            };
            assert_eq!(sheet.encoded, whole.encode_to_vec());
        }
    }

    #[test]
    fn a_limit_of_memory_that_is_none_is_zero() {
        let mut sheet = sheet();
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: 64,
            memory_swap_limit_in_bytes: -1,
            unified: [("memory.min".to_owned(), "7".to_owned())].into(),
            ..Default::default()
        };
        spec(&mut sheet, &resources);
        assert_eq!(values(&sheet, "container_spec_memory_limit_bytes"), [(vec![], 64)]);
        assert_eq!(values(&sheet, "container_spec_memory_swap_limit_bytes"), [(vec![], 0)]);
        assert_eq!(
            values(&sheet, "container_spec_memory_reservation_limit_bytes"),
            [(vec![], 7)]
        );
        assert_eq!(values(&sheet, "container_spec_cpu_period"), [(vec![], 100_000)]);
        assert!(values(&sheet, "container_spec_cpu_quota").is_empty());
    }

    #[test]
    fn devices_and_operations_are_told_apart() {
        let mut sheet = sheet();
        let list = |read, write| {
            vec![
                ("Read".to_owned(), read),
                ("Write".to_owned(), write),
                ("Sync".to_owned(), 1),
            ]
        };
        io(
            &mut sheet,
            &DeviceIo {
                major: 8,
                minor: 1,
                name: "/dev/sda1".into(),
                bytes: list(10, 20),
                operations: list(2, 3),
            },
        );
        let device = vec!["/dev/sda1".to_owned()];
        assert_eq!(values(&sheet, "container_fs_reads_bytes_total"), [(device.clone(), 10)]);
        assert_eq!(values(&sheet, "container_fs_writes_total"), [(device, 3)]);
        let moved = values(&sheet, "container_blkio_device_usage_total");
        assert_eq!(
            moved[1],
            (["/dev/sda1", "8", "1", "Write"].map(str::to_owned).to_vec(), 20)
        );
        assert_eq!(moved.len(), 3);
    }

    #[test]
    fn live_values_have_no_time_and_old_ones_theirs() {
        let mut sheet = sheet();
        let usage = Usage {
            memory: Some(Memory::default()),
            tasks: Some(Tasks {
                current: 3,
                limit: None,
            }),
            ..Usage::default()
        };
        memory(&mut sheet, &usage);
        processes(&mut sheet, &usage, &Descriptors::default());
        assert!(metrics(&sheet).iter().all(|metric| metric.timestamp == 0));
        assert_eq!(values(&sheet, "container_threads_max"), [(vec![], 0)], "no limit");
        assert_eq!(values(&sheet, "container_memory_failures_total").len(), 4);
        assert_eq!(stamp(5), 5);
    }

    #[test]
    fn names_are_given_once_and_have_helps_and_labels() {
        let all = super::super::all();
        let mut names: Vec<_> = all.iter().map(|metric| &metric.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len());
        assert!(
            all.iter()
                .all(|metric| !metric.help.is_empty() && metric.label_keys.len() >= 5)
        );
    }
}
