//! The door for images that come from and go to elsewhere than a pull.

use bytes::Bytes;
use tokio::sync::mpsc::{self, UnboundedSender};
use wharf_proto::{api::PushProgress, cri};

use super::{
    Error, Images, Loaded, Reference, Result,
    extract::{Channel, Input},
    load::{self, Origin},
    make::{self, Changed, Order},
    outlet::{Outflow, outflow},
    pull::blocking,
    push,
    save::{self, Format},
};

/// Pieces of an archive that wait to be read.
const WAITING: usize = 4;

/// The feeding end of an archive that is being read. Dropping it without [`Inflow::end`] cuts the archive off.
pub struct Inflow(mpsc::Sender<Input>);

impl Inflow {
    /// Sends the next bytes; false if nobody reads them any more.
    pub async fn send(&self, bytes: Bytes) -> bool {
        bytes.is_empty() || self.0.send(Input::Data(bytes)).await.is_ok()
    }

    /// Says that all bytes have come.
    pub async fn end(self) {
        let _ = self.0.send(Input::End).await;
    }
}

impl Images {
    /// Takes images out of an archive (Docker's or an OCI layout's, also compressed), which is sent through what is
    /// returned first while the second, a future, is awaited. They are reported as pinned: no registry may have them.
    ///
    /// # Errors
    /// The future's: when the archive or an image in it is damaged, hostile or of a kind that is not supported. No image
    /// becomes visible then.
    pub fn load(&self) -> (Inflow, impl Future<Output = Result<Vec<Loaded>>> + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let room = self.room.clone();
        let work = blocking(move || load::load(&room, Channel(receiver), Origin::Archive));
        (Inflow(sender), work)
    }

    /// As [`Images::load`], for images that another runtime had pulled: kubelet's garbage collection may remove them. Their layers
    /// may be uncompressed, in place of the blobs that their manifests name.
    ///
    /// # Errors
    /// As [`Images::load`].
    pub fn migrate(&self) -> (Inflow, impl Future<Output = Result<Vec<Loaded>>> + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let room = self.room.clone();
        let work = blocking(move || load::load(&room, Channel(receiver), Origin::Runtime));
        (Inflow(sender), work)
    }

    /// Sends the image that `spec` names to `name`, or where its own name says if that is empty. `listener` hears how far
    /// it is and, last, the manifest's digest.
    ///
    /// # Errors
    /// When there is no such image, the name has no tag, a layer can't be given back, or the registry does not take it.
    pub async fn push(
        &self,
        spec: &str,
        name: &str,
        auth: Option<cri::AuthConfig>,
        listener: UnboundedSender<PushProgress>,
    ) -> Result<()> {
        let image = self.find(spec).ok_or_else(|| Error::NoImage(spec.to_owned()))?;
        let target = Reference::parse(if name.is_empty() { spec } else { name })?;
        let image = self.whole(image).await?;
        push::push(&self.room, &image, &target, auth.as_ref(), listener).await
    }

    /// Makes an image of one layer of an archive of files, sent as for [`Images::load`]. The future gives its id.
    ///
    /// # Errors
    /// The future's: when the order makes no sense, or the archive can't be unpacked.
    pub fn import(&self, order: Order) -> (Inflow, impl Future<Output = Result<String>> + use<>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        let room = self.room.clone();
        let work = blocking(move || make::import(&room, Channel(receiver), &order));
        (Inflow(sender), work)
    }

    /// Makes an image of what a container was made from and has changed since; returns its id.
    ///
    /// # Errors
    /// When the order makes no sense, or the changes can't be read or said in a layer.
    pub async fn commit(&self, mut changed: Changed, order: Order) -> Result<String> {
        changed.image = self.whole(changed.image).await?;
        let room = self.room.clone();
        blocking(move || make::commit(&room, &changed, &order)).await
    }

    /// A container's root filesystem as an archive.
    ///
    /// # Errors
    /// When it can't be mounted.
    pub async fn export(&self, mut changed: Changed) -> Result<Outflow> {
        changed.image = self.whole(changed.image).await?;
        blocking(move || make::export(&changed)).await
    }

    /// An archive of the images that `specs` name, with the names that they were named by.
    ///
    /// # Errors
    /// When there is no such image, or one can't be given back.
    pub async fn save(&self, specs: &[String], format: Format) -> Result<Outflow> {
        let mut wanted = save::wanted(specs, |spec| self.find(spec))?;
        for one in &mut wanted {
            one.image = self.whole(one.image.clone()).await?;
        }
        let room = self.room.clone();
        blocking(move || {
            save::check(&wanted, format)?;
            Ok(outflow(move |out| save::save(&room, &wanted, format, out)))
        })
        .await
    }
}
