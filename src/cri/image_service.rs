//! The image service: every call of CRI.

use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, async_trait};
use wharf_proto::cri::{
    ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse, image_service_server::ImageService,
};

use super::Face;

type Stream<T> = BoxStream<'static, Result<T, Status>>;

fn not_yet<T>(call: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{call} is not implemented yet")))
}

#[async_trait]
impl ImageService for Face {
    type StreamImagesStream = Stream<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let filter = request
            .into_inner()
            .filter
            .and_then(|filter| filter.image)
            .map(|image| image.image);
        let images = self.list_images(&filter.unwrap_or_default())?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        _: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        not_yet("StreamImages")
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        self.image_status(request.get_ref()).map(Response::new)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        let image_ref = self.pull(request.into_inner()).await?;
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        self.remove_image(request.into_inner().image).await?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        self.image_fs_info().await.map(Response::new)
    }
}
