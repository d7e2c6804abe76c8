//! Descriptors that a monitor holds for a daemon that may come later.

use std::os::fd::{AsFd as _, OwnedFd};

use wharf_proto::monitor::{self as proto, reply::Result as Answer, request::Op};

use super::{
    super::{Error, Result},
    ANSWER_LIMIT, Client, io_error, passing, unexpected,
};

impl Client {
    /// Has the monitor hold `descriptor`, with a `note`, under a container's id, so that a later daemon finds it with
    /// [`Client::give_back`].
    ///
    /// # Errors
    /// Kind `UNKNOWN_OPERATION` by an older monitor.
    pub async fn keep(&self, container_id: &str, descriptor: OwnedFd, note: Vec<u8>) -> Result<()> {
        const ATTEMPT: &str = "keep a descriptor for container";
        let keep = Op::Keep(proto::Keep {
            container_id: container_id.to_owned(),
            note,
        });
        let asked = self.ask(ATTEMPT, container_id, keep, vec![descriptor]);
        match self.in_time(ATTEMPT, asked).await? {
            Answer::Done(_) => Ok(()),
            _ => Err(unexpected(ATTEMPT, container_id)),
        }
    }

    /// What [`Client::keep`] has brought, and its note.
    ///
    /// # Errors
    /// Kind `NOT_FOUND` when nothing is held, `UNKNOWN_OPERATION` by an older monitor.
    pub async fn give_back(&self, container_id: &str) -> Result<(OwnedFd, Vec<u8>)> {
        const ATTEMPT: &str = "take back a descriptor of container";
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(io_error(ATTEMPT, &self.socket))?;
        let back = Op::GiveBack(proto::GiveBack {
            container_id: container_id.to_owned(),
        });
        let asked = self.ask(ATTEMPT, container_id, back, vec![theirs.into()]);
        match self.in_time(ATTEMPT, asked).await? {
            Answer::Kept(kept) => {
                let descriptor = passing::terminal(ours.as_fd()).map_err(io_error(ATTEMPT, &self.socket))?;
                Ok((descriptor, kept.note))
            }
            _ => Err(unexpected(ATTEMPT, container_id)),
        }
    }

    async fn in_time(&self, attempt: &'static str, asked: impl Future<Output = Result<Answer>>) -> Result<Answer> {
        tokio::time::timeout(ANSWER_LIMIT, asked).await.unwrap_or_else(|_| {
            Err(Error::Timeout {
                attempt,
                path: self.socket.clone(),
                seconds: ANSWER_LIMIT.as_secs_f32(),
            })
        })
    }
}
