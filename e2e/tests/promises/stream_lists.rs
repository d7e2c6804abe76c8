//! Lists as streams (KEP-5825).

use wharf_e2e::Daemon;
use wharf_e2e::cri::Answer;
use wharf_proto::cri as pb;

/// All items of a stream; every message must hold some.
async fn gather<R, I>(answer: Answer<tonic::Response<tonic::Streaming<R>>>, items: fn(R) -> Vec<I>) -> Vec<I> {
    let mut stream = answer.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        let part = items(message);
        assert!(!part.is_empty(), "a message without items");
        all.extend(part);
    }
    all
}

#[tokio::test]
async fn streams_hold_what_lists_hold() {
    let daemon = Daemon::start().await;
    let mut runtime = daemon.cri.runtime.clone();
    let mut images = daemon.cri.images.clone();
    let none = gather(
        runtime.stream_containers(pb::StreamContainersRequest::default()).await,
        |part| part.containers,
    );
    assert!(none.await.is_empty());
    let (pod, id) = daemon.running("one", "sleep 1000").await;
    daemon.running("two", "sleep 1000").await;
    daemon.pull("user-uid:latest").await;

    let pods = gather(
        runtime
            .stream_pod_sandboxes(pb::StreamPodSandboxesRequest::default())
            .await,
        |part| part.pod_sandboxes,
    );
    assert_eq!(pods.await, daemon.cri.pods(None).await.unwrap());
    let all = gather(
        runtime.stream_containers(pb::StreamContainersRequest::default()).await,
        |part| part.containers,
    );
    assert_eq!(all.await, daemon.cri.containers(None).await.unwrap());
    let filter = Some(pb::ContainerFilter {
        pod_sandbox_id: pod.clone(),
        ..Default::default()
    });
    let one = gather(
        runtime.stream_containers(pb::StreamContainersRequest { filter }).await,
        |part| part.containers,
    );
    assert_eq!(
        one.await.into_iter().map(|one| one.id).collect::<Vec<_>>(),
        [id.as_str()]
    );
    let all = gather(images.stream_images(pb::StreamImagesRequest::default()).await, |part| {
        part.images
    })
    .await;
    assert_eq!((all.len(), &all), (2, &daemon.cri.image_list().await.unwrap()));
    let filter = Some(pb::ImageFilter {
        image: Some(wharf_e2e::cri::image_spec(&all[0].id)),
    });
    let one = gather(images.stream_images(pb::StreamImagesRequest { filter }).await, |part| {
        part.images
    })
    .await;
    assert_eq!(one, all[..1]);

    let filter = Some(pb::ContainerStatsFilter {
        id: id.clone(),
        ..Default::default()
    });
    let one = gather(
        runtime
            .stream_container_stats(pb::StreamContainerStatsRequest { filter })
            .await,
        |part| part.container_stats,
    );
    assert_eq!(
        one.await
            .into_iter()
            .map(|one| one.attributes.unwrap().id)
            .collect::<Vec<_>>(),
        [id]
    );
    let filter = Some(pb::PodSandboxStatsFilter {
        id: pod.clone(),
        ..Default::default()
    });
    let one = gather(
        runtime
            .stream_pod_sandbox_stats(pb::StreamPodSandboxStatsRequest { filter })
            .await,
        |part| part.pod_sandbox_stats,
    );
    assert_eq!(
        one.await
            .into_iter()
            .map(|one| one.attributes.unwrap().id)
            .collect::<Vec<_>>(),
        [pod]
    );
    let all = gather(
        runtime
            .stream_pod_sandbox_metrics(pb::StreamPodSandboxMetricsRequest {})
            .await,
        |part| part.pod_sandbox_metrics,
    );
    assert_eq!(all.await.len(), 2);
    daemon.finish().await;
}
