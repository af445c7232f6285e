//! Where the processor spends its time, by samples: a timer of the host, which runs while the thread does, has emitted code
//! leave at its next entry, and whatever block that is may be worth more than it is. Blocks need no counters for that.

use std::io;
use std::sync::atomic::AtomicU32;
use std::thread::ThreadId;
use std::time::Duration;

use super::thread_timer::{Ring, ThreadTimer};

/// Time of the thread between two samples. Hosts look at such timers with each of their ticks, of which there are 100 to
/// 1,000 in a second.
const EVERY: Duration = Duration::from_millis(1);

/// The timer of the thread that runs a processor.
pub(super) struct Sampler {
    _timer: ThreadTimer,
    thread: ThreadId,
}

impl Sampler {
    /// Samples the calling thread. `request` has to live as long as the result.
    pub fn new(request: *const AtomicU32) -> io::Result<Sampler> {
        let timer = ThreadTimer::new(request, Ring::Sample)?;
        timer.arm(EVERY, EVERY);
        Ok(Sampler {
            _timer: timer,
            thread: std::thread::current().id(),
        })
    }

    /// Whether it is the calling thread that it samples.
    pub fn is_here(&self) -> bool {
        self.thread == std::thread::current().id()
    }
}
