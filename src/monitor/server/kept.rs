//! Descriptors that are held for a daemon that may come later.

use std::os::fd::{AsFd as _, OwnedFd};

use wharf_proto::monitor::{Done, ErrorKind, Keep, Kept as Answered, reply::Result as Answer};

use super::{super::connection, Monitor, jobs::error, requests::Outcome};

/// A descriptor, and what its daemon wants to know of it.
pub(super) struct Kept {
    pub container_id: String,
    note: Vec<u8>,
    descriptor: OwnedFd,
}

impl Monitor {
    pub(super) fn keep(&mut self, keep: Keep, descriptors: Vec<OwnedFd>) -> Outcome {
        let count = descriptors.len();
        let (Some(descriptor), 1) = (descriptors.into_iter().next(), count) else {
            let message = format!("{count} descriptors came to be kept");
            return Err(error(ErrorKind::Failed, message));
        };
        self.kept.retain(|kept| kept.container_id != keep.container_id);
        self.kept.push(Kept {
            container_id: keep.container_id,
            note: keep.note,
            descriptor,
        });
        Ok(Some(Answer::Done(Done {})))
    }

    pub(super) fn give_back(&mut self, id: &str, descriptors: &[OwnedFd]) -> Outcome {
        let [socket] = descriptors else {
            let message = format!("{} descriptors came to ask for one", descriptors.len());
            return Err(error(ErrorKind::Failed, message));
        };
        let Some(kept) = self.kept.iter().find(|kept| kept.container_id == id) else {
            return Err(error(
                ErrorKind::NotFound,
                format!("nothing is kept for container {id}"),
            ));
        };
        connection::send_byte(socket.as_fd(), b'K', Some(kept.descriptor.as_fd()))
            .map_err(|failure| error(ErrorKind::Failed, format!("give a descriptor back: {failure}")))?;
        Ok(Some(Answer::Kept(Answered {
            note: kept.note.clone(),
        })))
    }
}
