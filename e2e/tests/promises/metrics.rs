//! Metrics of pods and containers.

use std::collections::{BTreeMap, BTreeSet};

use wharf_e2e::container;
use wharf_proto::cri as pb;

use crate::on_each_handler;
use crate::stats::{MIB, value};

#[tokio::test]
async fn every_metric_that_is_described_is_given_with_its_labels() {
    on_each_handler(async |daemon| {
        let config = daemon.pod("metrics");
        let pod = daemon.cri.run_pod(&config, "").await.unwrap();
        let mut main = container("main", &daemon.busybox().await, "sleep 1000");
        let resources = pb::LinuxContainerResources {
            memory_limit_in_bytes: 64 * MIB as i64,
            cpu_period: 100_000,
            cpu_quota: 20_000,
            cpu_shares: 1024,
            ..Default::default()
        };
        main.linux.get_or_insert_default().resources = Some(resources);
        let id = daemon.started(&pod, &config, &main).await;
        let mut runtime = daemon.cri.runtime.clone();
        let described = runtime
            .list_metric_descriptors(pb::ListMetricDescriptorsRequest {})
            .await
            .unwrap();
        let described: BTreeMap<_, _> = described
            .into_inner()
            .descriptors
            .into_iter()
            .map(|metric| (metric.name, metric.label_keys))
            .collect();
        let given = runtime
            .list_pod_sandbox_metrics(pb::ListPodSandboxMetricsRequest {})
            .await
            .unwrap();
        let given = given.into_inner().pod_metrics;
        assert_eq!((given.len(), given[0].pod_sandbox_id.as_str()), (1, pod.as_str()));
        assert_eq!(given[0].container_metrics[0].container_id, id);
        let of_container = &given[0].container_metrics[0].metrics;
        for metric in given[0].metrics.iter().chain(of_container) {
            let keys = described
                .get(&metric.name)
                .unwrap_or_else(|| panic!("{} is not described", metric.name));
            assert_eq!(metric.label_values.len(), keys.len(), "{metric:?}");
            assert!(metric.value.is_some());
        }
        let label = |metric: &pb::Metric, key: &str| {
            let at = described[&metric.name].iter().position(|known| known == key).unwrap();
            metric.label_values[at].clone()
        };
        let limit = of_container
            .iter()
            .find(|metric| metric.name == "container_spec_memory_limit_bytes")
            .unwrap();
        assert_eq!(value(limit.value), 64 * MIB);
        assert_eq!(
            ["pod", "namespace", "container", "id"].map(|key| label(limit, key)),
            [
                "metrics".into(),
                config.metadata.clone().unwrap().namespace,
                "main".into(),
                id.clone()
            ]
        );
        let received = given[0]
            .metrics
            .iter()
            .find(|metric| metric.name == "container_network_receive_bytes_total");
        assert_eq!(label(received.unwrap(), "interface"), "eth0");
        // What depends on the disk below, and on a kernel that keeps it for each cgroup.
        let optional = |name: &str| {
            [
                "container_blkio_",
                "container_fs_reads_",
                "container_fs_writes_",
                "container_hugetlb_",
                "container_pressure_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
        };
        let names: BTreeSet<_> = given[0]
            .metrics
            .iter()
            .chain(of_container)
            .map(|metric| &metric.name)
            .collect();
        let missing: Vec<_> = described
            .keys()
            .filter(|name| !names.contains(name) && !optional(name))
            .collect();
        assert!(missing.is_empty(), "described and not given: {missing:?}");
        daemon.finish().await;
    })
    .await;
}
