//! What can go wrong at the node's door. Errors are cloned to every caller that joined the work.

use std::sync::Arc;

use crate::{containers, images, netns, sandbox, store};

/// Result at the node's door.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the node did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No such object.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// The kind of object.
        what: &'static str,
        /// The id as given.
        id: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The object is not in the state that the operation needs.
    #[error("{0}")]
    State(String),
    /// Another object has this identity and is not what was asked for.
    #[error("{0}")]
    Exists(String),
    /// A listener read so slowly that events had to be dropped.
    #[error("{0} events were lost because they were not read in time; list anew")]
    EventsLost(u64),
    /// Events that were asked for are not kept any more.
    #[error("{0}")]
    Gone(String),
    /// A reader of the history was too slow.
    #[error("{0}")]
    HistoryLost(String),
    /// The daemon ends.
    #[error("wharf is ending")]
    Ending,
    /// A task ended unexpectedly.
    #[error("{0}")]
    Internal(String),
    /// A pod.
    #[error(transparent)]
    Sandbox(Arc<sandbox::Error>),
    /// A container.
    #[error(transparent)]
    Container(Arc<containers::Error>),
    /// An image.
    #[error(transparent)]
    Image(Arc<images::Error>),
    /// The network.
    #[error(transparent)]
    Network(Arc<netns::Error>),
    /// A record.
    #[error(transparent)]
    Store(Arc<store::Error>),
}

macro_rules! from_room {
    ($($room:ident => $variant:ident),*) => {
        $(impl From<$room::Error> for Error {
            fn from(error: $room::Error) -> Self {
                Self::$variant(Arc::new(error))
            }
        })*
    };
}
from_room!(sandbox => Sandbox, containers => Container, images => Image, netns => Network, store => Store);
