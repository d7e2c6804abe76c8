//! The image service: every call of CRI.

use tonic::{Request, Response, Status, async_trait};
use wharf_proto::cri::{
    ImageFilter, ImageFsInfoRequest, ImageFsInfoResponse, ImageStatusRequest, ImageStatusResponse, ListImagesRequest,
    ListImagesResponse, PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse,
    StreamImagesRequest, StreamImagesResponse, image_service_server::ImageService,
};

use super::{
    Face,
    streams::{Stream, chunks},
};

/// The reference that a list is about; empty for all.
fn image_filter(filter: Option<ImageFilter>) -> String {
    filter.and_then(|filter| filter.image).unwrap_or_default().image
}

#[async_trait]
impl ImageService for Face {
    type StreamImagesStream = Stream<StreamImagesResponse>;

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let filter = image_filter(request.into_inner().filter);
        let images = self.list_images(&filter)?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = image_filter(request.into_inner().filter);
        let wrap = |images| StreamImagesResponse { images };
        Ok(Response::new(chunks(self.list_images(&filter)?, wrap)))
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
