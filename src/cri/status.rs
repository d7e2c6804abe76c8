//! Errors of the node as gRPC codes and texts (section "Error contract": kubelet tests for `NotFound` by code and for
//! `RegistryUnavailable` and its kind by the beginning of the text, so texts go out unchanged).

use tonic::{Code, Status};

use crate::{containers, images, lsm, netns, node::Error, sandbox};

/// The status that a client gets for `error`.
pub(super) fn status(error: &Error) -> Status {
    Status::new(code(error), text(error))
}

fn code(error: &Error) -> Code {
    match error {
        Error::NotFound { .. } => Code::NotFound,
        Error::Invalid(_) => Code::InvalidArgument,
        Error::State(_) => Code::FailedPrecondition,
        Error::Exists(_) => Code::AlreadyExists,
        Error::EventsLost(_) | Error::HistoryLost(_) => Code::DataLoss,
        Error::Gone(_) => Code::OutOfRange,
        Error::Ending => Code::Unavailable,
        Error::Network(error) => network_code(error),
        Error::Internal(_) | Error::Store(_) => Code::Internal,
        Error::Sandbox(error) => match &**error {
            sandbox::Error::Selinux(lsm::selinux::Error::NoneFree(_)) => Code::ResourceExhausted,
            sandbox::Error::Invalid(_) | sandbox::Error::Selinux(_) => Code::InvalidArgument,
            sandbox::Error::Unsupported(_) => Code::Unimplemented,
            sandbox::Error::Network { source, .. } => network_code(source),
            _ => Code::Internal,
        },
        Error::Container(error) => container_code(error),
        Error::Image(error) => image_code(error),
    }
}

fn network_code(error: &netns::Error) -> Code {
    use netns::Error as E;
    match error {
        E::Sysctl { .. } | E::PortMapping { .. } | E::BadNetwork { .. } => Code::InvalidArgument,
        E::NoSuchNetwork(_) => Code::NotFound,
        E::NetworkExists(_) => Code::AlreadyExists,
        E::NetworkInUse { .. } => Code::FailedPrecondition,
        _ => Code::Internal,
    }
}

fn container_code(error: &containers::Error) -> Code {
    use containers::Error as E;
    match error {
        E::Invalid(_) => Code::InvalidArgument,
        E::Unsupported(_) => Code::Unimplemented,
        E::State(_) => Code::FailedPrecondition,
        E::NoImage(_) => Code::NotFound,
        E::Image(error) => image_code(error),
        E::Deadline(_) => Code::DeadlineExceeded,
        // Not a deadline: the command was in time, so a probe must not count it as one that was not.
        E::HeldOpen(_) => Code::Unknown,
        _ => Code::Internal,
    }
}

fn image_code(error: &images::Error) -> Code {
    match error.kind() {
        images::ErrorKind::NotFound => Code::NotFound,
        images::ErrorKind::InvalidReference => Code::InvalidArgument,
        // Not `Unavailable`: that is the daemon itself, and kubelet looks at the text.
        images::ErrorKind::RegistryUnavailable | images::ErrorKind::Untrusted | images::ErrorKind::Other => {
            Code::Unknown
        }
        images::ErrorKind::Unauthorized => Code::PermissionDenied,
    }
}

/// The error with its causes. Each room's text already names its own cause, so nothing is added here.
fn text(error: &Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_object_is_not_found_and_nothing_else() {
        let status = status(&Error::NotFound {
            what: "container",
            id: "abc".into(),
        });
        assert_eq!(status.code(), Code::NotFound);
        assert!(status.message().contains("abc"));
    }
}
