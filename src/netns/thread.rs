//! Work that changes or must not change the namespace of the thread it runs on: one short-lived thread each.

use tokio::sync::oneshot;

use super::{Error, Result};

/// Small: the work needs little, and 200 of them may run at once.
pub(super) const STACK: usize = 256 * 1024;

/// Runs `work` on a thread of its own and waits for its answer. The thread starts in the caller's namespaces and is
/// never used again, so `work` may leave it in any other.
///
/// # Errors
/// When the thread can't be started or panics, and whatever `work` returns.
pub(super) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || {
            // A caller that went away does not want the answer.
            let _ = done.send(work());
        })
        .map_err(|source| Error::Thread(format!("start thread {name}: {source}")))?;
    answer
        .await
        .map_err(|_| Error::Thread(format!("thread {name} ended without an answer")))?
}
