//! Classes that are about the kernel, and about code that changes.

use std::hint::black_box;
use std::io::{self, Read, Write};
use std::process::Command;
use std::ptr;

use crate::work::{Class, scaled};

pub const CLASSES: &[Class] = &[
    ("syscall", |scale| Some(system_calls(scale))),
    ("pipe", pipes),
    ("fork", |scale| forks(scale)),
    ("exec", executions),
    ("fault", faults),
    ("smc", modified_code),
    ("jit", new_code),
];

/// Natively, too, everything has one processor.
pub fn stay_on_this_processor() {
    // SAFETY: the set is a plain value, and all zeroes is an empty one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let here = libc::sched_getcpu();
        libc::CPU_SET(usize::try_from(here).unwrap_or(0), &mut set);
        // Where it is not allowed the result is less even, no more.
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

fn system_calls(scale: u64) -> u64 {
    let first = std::os::unix::process::parent_id();
    let same = (0..scaled(200_000, scale))
        .filter(|_| std::os::unix::process::parent_id() == first)
        .count();
    same as u64
}

/// A child process that does something, then ends.
fn child(work: impl FnOnce()) -> io::Result<libc::pid_t> {
    // SAFETY: this program has one thread, so the child may do what its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            work();
            // SAFETY: ends the child without anything that its parent has to end.
            unsafe { libc::_exit(0) }
        }
        id => Ok(id),
    }
}

fn await_child(id: libc::pid_t) {
    // SAFETY: no status is asked for.
    unsafe { libc::waitpid(id, ptr::null_mut(), 0) };
}

fn pipes(scale: u64) -> Option<u64> {
    let rounds = scaled(10_000, scale);
    let (mut there_out, mut there_in) = io::pipe().ok()?;
    let (mut back_out, mut back_in) = io::pipe().ok()?;
    let mut byte = [0u8];
    let id = child(|| {
        let mut byte = [0u8];
        for _ in 0..rounds {
            let _ = there_out.read_exact(&mut byte);
            byte[0] = byte[0].wrapping_add(1);
            let _ = back_in.write_all(&byte);
        }
    })
    .ok()?;
    for _ in 0..rounds {
        there_in.write_all(&byte).ok()?;
        back_out.read_exact(&mut byte).ok()?;
    }
    await_child(id);
    Some(u64::from(byte[0]))
}

fn forks(scale: u64) -> Option<u64> {
    let rounds = scaled(400, scale);
    for _ in 0..rounds {
        await_child(child(|| {}).ok()?);
    }
    Some(rounds)
}

fn executions(scale: u64) -> Option<u64> {
    let own = std::env::current_exe().ok()?;
    let own = if own.exists() {
        own
    } else {
        "/usr/bin/guest-bench".into()
    };
    let mut good = 0;
    for _ in 0..scaled(200, scale) {
        let status = Command::new(&own).arg("nothing").status().ok()?;
        good += u64::from(status.success());
    }
    Some(good)
}

/// Fresh memory.
fn map(bytes: usize, protection: i32) -> Option<*mut u8> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a mapping of its own takes nothing away.
    let at = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
    (at != libc::MAP_FAILED).then_some(at.cast())
}

fn faults(scale: u64) -> Option<u64> {
    const BYTES: usize = 16 << 20;
    let mut sum = 0u64;
    for _ in 0..scaled(5, scale) {
        let at = map(BYTES, libc::PROT_READ | libc::PROT_WRITE)?;
        // SAFETY: all within the mapping, which nobody else has, and which is given back once.
        unsafe {
            // One large page instead of 512 small ones would measure something else.
            libc::madvise(at.cast(), BYTES, libc::MADV_NOHUGEPAGE);
            for page in (0..BYTES).step_by(4096) {
                at.add(page).write_volatile(1);
                sum += u64::from(at.add(page).read_volatile());
            }
            libc::munmap(at.cast(), BYTES);
        }
    }
    Some(sum)
}

const EXECUTABLE: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;

/// mov eax, value; ret
fn constant(value: u32) -> [u8; 6] {
    let [a, b, c, d] = value.to_le_bytes();
    [0xb8, a, b, c, d, 0xc3]
}

/// An instruction's operand is changed before each call.
fn modified_code(scale: u64) -> Option<u64> {
    let at = map(4096, EXECUTABLE)?;
    let mut sum = 0u64;
    for round in 0..scaled(20_000, scale) {
        let code = constant(round as u32);
        // SAFETY: the code is within the page, keeps the convention and returns.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), at, code.len());
            let function: extern "C" fn() -> u32 = std::mem::transmute(black_box(at));
            sum = sum.wrapping_mul(3).wrapping_add(u64::from(function()));
        }
    }
    Some(sum)
}

/// Functions are written one behind the other, and called some times each, as by a compiler at
/// run time.
fn new_code(scale: u64) -> Option<u64> {
    const BYTES: usize = 1 << 20;
    let at = map(BYTES, EXECUTABLE)?;
    let mut sum = 0u64;
    let mut from = 0;
    for round in 0..scaled(40_000, scale) {
        // mov eax, edi; eight of: add eax, value; rol eax, 5; then ret
        let mut code = vec![0x89, 0xf8];
        for part in 0..8 {
            code.push(0x05);
            code.extend((round as u32 * 8 + part).to_le_bytes());
            code.extend([0xc1, 0xc0, 5]);
        }
        code.push(0xc3);
        if from + code.len() > BYTES {
            from = 0;
        }
        // SAFETY: the code is within the mapping, keeps the convention and returns.
        unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), at.add(from), code.len());
            let function: extern "C" fn(u32) -> u32 = std::mem::transmute(black_box(at.add(from)));
            for call in 0..20 {
                sum = sum.wrapping_mul(3).wrapping_add(u64::from(function(call)));
            }
        }
        from += code.len().next_multiple_of(64);
    }
    Some(sum)
}
