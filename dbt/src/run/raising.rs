//! Exceptions on their way to the guest: what is the same for every kind of processor loop.

use crate::guest::{Exception, flags};
use crate::interpret::Context;
use crate::interpret::system::deliver;

/// When the last exception happened.
///
/// A handler whose own first instruction faults completes nothing. Such an exception counts as an
/// instruction, or a budget would never end and time would stand still.
pub(super) struct LastException(u64);

impl LastException {
    /// None yet.
    pub(super) fn none() -> LastException {
        LastException(u64::MAX)
    }

    /// Notes an exception at an instruction count; whether none was completed since the last.
    pub(super) fn follows_another(&mut self, now: u64) -> bool {
        std::mem::replace(&mut self.0, now) == now
    }
}

/// Delivers an exception of the instruction at RIP. With CR0.NE clear, a floating-point error
/// (SDM volume 3, 2.5) goes to the machine, which interrupts instead; the instruction waits.
pub(super) fn raise(cx: &mut Context<'_>, exception: Exception) -> Result<(), deliver::Shutdown> {
    if exception.vector == Exception::MF && cx.cpu.control.cr0 & flags::CR0_NE == 0 {
        cx.platform.floating_point_error();
        return Ok(());
    }
    deliver::exception(cx, exception).map(drop)
}

#[cfg(test)]
mod tests {
    use super::LastException;

    #[test]
    fn only_an_exception_without_progress_follows_another() {
        let mut last = LastException::none();
        let counts = [0, 0, 1, 1, 1, 5];
        let found = counts.map(|count| last.follows_another(count));
        assert_eq!(found, [false, true, false, true, true, false]);
    }
}
