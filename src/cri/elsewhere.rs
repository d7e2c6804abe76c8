//! Which thread does a call's work.
//!
//! The face listens on a thread of its own, which the system prefers to others: calls that only read are answered there, and
//! no container that is being made keeps them waiting (contract rules 35 and 36). All other calls, with the streams of
//! their answers, are the business of the daemon's other threads; this thread only passes them on.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use crate::{memory::Work, telemetry::carried};

/// What the services that tonic generates answer with, and those that stand before them.
pub(super) type Answer = BoxFuture<'static, Result<http::Response<Body>, Infallible>>;

/// So long before its deadline a call is answered that has not ended: tonic calls that `Cancelled` when its own time comes, and
/// on a busy machine that may reach a client before it has noticed itself.
const EARLY: Duration = Duration::from_millis(3);

/// Pieces of an answer that may wait to be sent.
const AHEAD: usize = 4;

/// Calls that are answered from memory.
pub(super) const READS: [&str; 19] = [
    "/runtime.v1.RuntimeService/Version",
    "/runtime.v1.RuntimeService/Status",
    "/runtime.v1.RuntimeService/RuntimeConfig",
    "/runtime.v1.RuntimeService/ListPodSandbox",
    "/runtime.v1.RuntimeService/StreamPodSandboxes",
    "/runtime.v1.RuntimeService/PodSandboxStatus",
    "/runtime.v1.RuntimeService/ListContainers",
    "/runtime.v1.RuntimeService/StreamContainers",
    "/runtime.v1.RuntimeService/ContainerStatus",
    "/runtime.v1.RuntimeService/ListContainerStats",
    "/runtime.v1.RuntimeService/StreamContainerStats",
    "/runtime.v1.RuntimeService/ListPodSandboxStats",
    "/runtime.v1.RuntimeService/StreamPodSandboxStats",
    "/runtime.v1.RuntimeService/ListMetricDescriptors",
    "/runtime.v1.RuntimeService/ListPodSandboxMetrics",
    "/runtime.v1.RuntimeService/StreamPodSandboxMetrics",
    "/runtime.v1.ImageService/ListImages",
    "/runtime.v1.ImageService/ImageStatus",
    "/runtime.v1.ImageService/ImageFsInfo",
];

/// Where calls run, and what is told of those that do.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub runtime: Handle,
    pub work: Work,
}

/// A service whose calls run at `place`, but for [`READS`].
#[derive(Debug, Clone)]
pub(super) struct Elsewhere<S> {
    place: Place,
    service: S,
}

impl<S> Elsewhere<S> {
    pub(super) fn new(place: Place, service: S) -> Self {
        Self { place, service }
    }
}

impl<S: NamedService> NamedService for Elsewhere<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Elsewhere<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future = Answer>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_read = READS.contains(&request.uri().path());
        let limit = super::time_limit(request.headers());
        let answer = self.service.call(request);
        if is_read {
            return answer;
        }
        let (runtime, work) = (self.place.runtime.clone(), carried(answer));
        let piece = self.place.work.begin();
        Box::pin(async move {
            let _piece = piece;
            // Whoever cancels the call drops this, and the call with it.
            let work = AbortOnDropHandle::new(runtime.spawn(work));
            let done = match limit {
                None => work.await,
                Some(limit) => match tokio::time::timeout(limit.saturating_sub(EARLY), work).await {
                    Ok(done) => done,
                    Err(_) => {
                        return Ok(Status::deadline_exceeded("the deadline of the call has passed").into_http());
                    }
                },
            };
            match done {
                Ok(answer) => answer.map(|answer| answer.map(|body| Passed::on(&runtime, body))),
                Err(error) => Ok(Status::internal(format!("the call's task ended: {error}")).into_http()),
            }
        })
    }
}

/// A body that comes from another runtime.
struct Passed {
    frames: mpsc::Receiver<Result<Frame<Bytes>, Status>>,
    _work: AbortOnDropHandle<()>,
}

impl Passed {
    fn on(runtime: &Handle, mut body: Body) -> Body {
        // Errors are answers of headers only.
        if hyper::body::Body::is_end_stream(&body) {
            return body;
        }
        let (sender, frames) = mpsc::channel(AHEAD);
        let work = runtime.spawn(async move {
            while let Some(frame) = body.frame().await {
                if sender.send(frame).await.is_err() {
                    break;
                }
            }
        });
        Body::new(Self {
            frames,
            _work: AbortOnDropHandle::new(work),
        })
    }
}

impl hyper::body::Body for Passed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(ready!(self.frames.poll_recv(context)))
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use super::*;

    /// Says in its answer's header on which thread it was made, and in its body on which that was.
    #[derive(Debug, Clone)]
    struct Where;

    impl Service<http::Request<Body>> for Where {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            Box::pin(async {
                let here = || format!("{:?}", std::thread::current().id());
                let body = futures_util::stream::once(async move { Ok::<_, Status>(Frame::data(Bytes::from(here()))) });
                let mut answer = http::Response::new(Body::new(http_body_util::StreamBody::new(body)));
                answer.headers_mut().insert("made", here().parse().unwrap());
                Ok(answer)
            })
        }
    }

    /// Never answers.
    #[derive(Debug, Clone)]
    struct Never;

    impl Service<http::Request<Body>> for Never {
        type Response = http::Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<Body>) -> Self::Future {
            Box::pin(std::future::pending())
        }
    }

    fn at(runtime: Handle) -> Place {
        Place {
            runtime,
            work: Work::default(),
        }
    }

    #[tokio::test]
    async fn a_deadline_that_passes_is_told_as_one() {
        let mut service = Elsewhere::new(at(Handle::current()), Never);
        let request = http::Request::get("/runtime.v1.RuntimeService/RunPodSandbox");
        let request = request.header("grpc-timeout", "20m").body(Body::empty()).unwrap();
        let answer = service.call(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }

    fn threads(runtime: &Handle, path: &str) -> [String; 2] {
        let mut service = Elsewhere::new(at(runtime.clone()), Where);
        let request = http::Request::get(path).body(Body::empty()).unwrap();
        let reader = tokio::runtime::Builder::new_current_thread().build().unwrap();
        reader.block_on(async move {
            let answer = service.call(request).await.unwrap();
            let made = answer.headers()["made"].to_str().unwrap().to_owned();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            [made, String::from_utf8(body.to_vec()).unwrap()]
        })
    }

    #[test]
    fn what_only_reads_stays_and_all_else_goes_elsewhere() {
        let other = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let here = |id: ThreadId| [format!("{id:?}"), format!("{id:?}")];
        let me = here(std::thread::current().id());
        assert_eq!(threads(other.handle(), "/runtime.v1.RuntimeService/Version"), me);
        for path in ["/runtime.v1.RuntimeService/RunPodSandbox", "/wharf.v1.Wharf/PullImage"] {
            let [made, told] = threads(other.handle(), path);
            assert_ne!(made, me[0], "{path}");
            assert_ne!(told, me[1], "{path}");
        }
    }
}
