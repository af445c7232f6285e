//! A thread that has the host provide memory before somebody waits for it.
//!
//! The host clears a page when it is first written, which on a virtual machine goes at less than a byte a nanosecond. Whoever
//! knows what will be written next can have that done on another processor.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

type Job = Box<dyn FnOnce() + Send>;

/// Does jobs on a thread of its own, in their order. Clones share it; it ends with the last of them.
#[derive(Clone, Default)]
pub struct Provider {
    /// To the thread, once there was something to do.
    requests: Arc<OnceLock<Sender<Job>>>,
}

impl Provider {
    /// `None` where no other processor could do it, or the host cannot be asked.
    pub fn new() -> Option<Provider> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (cfg!(target_os = "linux") && processors > 1).then(Provider::default)
    }

    /// Has a job done that asks the host for memory. It must not matter whether it ever is.
    pub fn ask(&self, job: impl FnOnce() + Send + 'static) {
        let requests = self.requests.get_or_init(|| {
            let (sender, jobs) = channel::<Job>();
            // Without a thread, or when it has ended, whoever writes waits as before.
            let thread = std::thread::Builder::new().name("memory".into());
            let _ = thread.spawn(move || jobs.into_iter().for_each(|job| job()));
            sender
        });
        let _ = requests.send(Box::new(job));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_done_in_their_order_by_another_thread() {
        let provider = Provider::default();
        let (sender, done) = channel();
        for number in 0..3 {
            let sender = sender.clone();
            let provider = provider.clone();
            provider.ask(move || sender.send((number, std::thread::current().id())).unwrap());
        }
        drop((sender, provider));
        let done: Vec<_> = done.iter().collect();
        let here = std::thread::current().id();
        assert!(done.iter().map(|&(number, _)| number).eq(0..3));
        assert!(done.iter().all(|&(_, thread)| thread != here));
    }
}
