//! Threads that read and write files for the file system that the daemon serves. They are its own: the threads that the rest of
//! the daemon shares may all be waiting for this file system.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
    thread,
};

use tokio::sync::oneshot;

/// How many there are.
const COUNT: usize = 2;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; made with the first work, ended with the last clone.
#[derive(Clone, Default)]
pub(in crate::images) struct Workers(Arc<OnceLock<Mutex<mpsc::Sender<Job>>>>);

impl Workers {
    /// What `work` gives; none when it panicked, or no thread could be made.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(move || {
            // Whoever asked may have gone.
            let _ = sender.send(work());
        });
        let jobs = self.0.get_or_init(|| Mutex::new(start()));
        let sent = jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        sent.ok()?;
        receiver.await.ok()
    }
}

fn start() -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..COUNT {
        let jobs = receiver.clone();
        let serve = move || {
            loop {
                let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = job else { return };
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
        };
        if let Err(error) = thread::Builder::new().name("lazy".into()).spawn(serve) {
            tracing::error!(%error, "a thread for images that are not complete can't be started");
        }
    }
    sender
}
