//! The stack of emitted code, on which it predicts returns.
//!
//! A translated CALL pushes its return address and calls on the host's own stack; a translated RET
//! whose target is the address on top returns there, to the host code behind the call, which
//! the host processor has predicted. This stack is not the one of Rust code: it may be dropped at any
//! moment by moving its pointer back to the top, where a pair of address 0 leads out of emitted code.
//!
//! It lies below 4 GiB, so that one compare of the stack pointer with
//! [`at::POLL`](super::at) both polls for exit requests and finds the stack full.

use std::alloc::{Layout, handle_alloc_error};
use std::ptr::NonNull;

/// Bytes of the whole mapping.
const SIZE: usize = 128 << 10;
/// Bytes at its lower end that cannot be accessed.
const GUARD: usize = 4096;
/// Bytes that pushes leave alone: for what is pushed before the next poll, and for the frames of
/// signal handlers, which the kernel puts below the stack pointer.
const RESERVE: usize = 64 << 10;
/// Bytes above the first pair.
const ABOVE: usize = 64;

/// A mapping for one processor.
pub(super) struct ReturnStack {
    base: NonNull<u8>,
}

impl ReturnStack {
    /// # Panics
    ///
    /// If the host has no memory or no address space below 2 GiB left, as any allocation does.
    pub(super) fn new() -> ReturnStack {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_32BIT;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let map = unsafe { libc::mmap(std::ptr::null_mut(), SIZE, protection, flags, -1, 0) };
        let base = NonNull::new(map.cast::<u8>()).filter(|_| map != libc::MAP_FAILED);
        let base = base.unwrap_or_else(|| no_memory());
        // SAFETY: the guard is the mapping's first page.
        if unsafe { libc::mprotect(map, GUARD, libc::PROT_NONE) } != 0 {
            no_memory();
        }
        ReturnStack { base }
    }

    fn start(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Where the stack pointer stands when nothing has been pushed.
    pub(super) fn top(&self) -> u64 {
        self.start() + (SIZE - ABOVE) as u64
    }

    /// Below this address nothing may be pushed after the next poll.
    pub(super) fn limit(&self) -> u32 {
        (self.start() + RESERVE as u64) as u32
    }

    /// Sets the host address to which a return goes that finds the stack empty, and guest address
    /// 0 there.
    pub(super) fn set_bottom(&mut self, host: u64) {
        // SAFETY: two words at the top are within the mapping, and no emitted code runs while this
        // is borrowed.
        unsafe {
            let pair = self.base.as_ptr().add(SIZE - ABOVE).cast::<u64>();
            pair.write(host);
            pair.add(1).write(0);
        }
    }
}

impl Drop for ReturnStack {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this size; nobody refers to it any longer.
        unsafe { libc::munmap(self.base.as_ptr().cast(), SIZE) };
    }
}

fn no_memory() -> ! {
    handle_alloc_error(Layout::new::<[u8; SIZE]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fit_the_poll_word() {
        let stack = ReturnStack::new();
        assert!(stack.top() < 1 << 32);
        assert!(u64::from(stack.limit()) < stack.top());
        assert!(stack.top().is_multiple_of(16));
        assert!(u64::from(stack.limit()) >= stack.start() + GUARD as u64);
    }
}
