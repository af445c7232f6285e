//! Runs one instruction on the host processor: registers in, registers or a signal out.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// Where the code is: fixed, so that 32-bit code can be entered and left.
pub const CODE: u64 = 0x1000_0000;
/// Where the instruction under test is.
pub const INSTRUCTION: u64 = CODE + 0x400;
/// Where branches under test go.
pub const TAKEN: u64 = INSTRUCTION + 0x40;
const EXIT: u64 = CODE + 0x500;
const STATE: u64 = CODE + 0x1000;
const CODE_BYTES: usize = 0x2000;

/// Where operands are, on the host and in the guest alike.
pub const DATA: u64 = 0x20_0000;
/// Bytes of operands.
pub const DATA_BYTES: usize = 0x1_0000;

/// Selectors of 64-bit and 32-bit user code and of user data, on Linux.
pub const USER_CODE64: u16 = 0x33;
pub const USER_CODE32: u16 = 0x23;
pub const USER_DATA: u16 = 0x2b;

/// What goes in and what comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub flags: u64,
}

#[repr(C)]
struct State {
    input: Registers,
    output: Registers,
    host_stack: u64,
    instruction: u32,
    selector: u16,
    taken: u32,
}

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static RUNNING: AtomicU64 = AtomicU64::new(0);

/// What the host made of an instruction.
pub struct Ran {
    pub output: Registers,
    /// The signal that a fault raised.
    pub signal: Option<i32>,
    /// Whether a branch went to [`TAKEN`].
    pub taken: bool,
}

/// The host processor, ready to execute; there can be one only.
pub struct Host {
    entry64: extern "C" fn(),
    entry32: extern "C" fn(),
}

struct Emitter {
    at: u64,
}

impl Emitter {
    fn bytes(&mut self, bytes: &[u8]) {
        // SAFETY: the code page is mapped at CODE, writable, and the emitter stays below STATE.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at as *mut u8, bytes.len());
        }
        self.at += bytes.len() as u64;
    }

    /// An instruction that ends in a RIP-relative displacement to a field of the state.
    fn relative(&mut self, opcode: &[u8], offset: usize) {
        self.bytes(opcode);
        let displacement = (STATE + offset as u64).wrapping_sub(self.at + 4) as u32;
        self.bytes(&displacement.to_le_bytes());
    }

    fn jump(&mut self, to: u64) {
        self.bytes(&[0xe9]);
        let displacement = to.wrapping_sub(self.at + 4) as u32;
        self.bytes(&displacement.to_le_bytes());
    }

    fn registers(&mut self, opcode: u8, offset: usize) {
        for number in 0..16u8 {
            let rex = 0x48 | (number >> 3) << 2;
            let operand = 0x05 | (number & 7) << 3;
            self.relative(&[rex, opcode, operand], offset + 8 * usize::from(number));
        }
    }

    /// mov byte [taken], 1: leaves registers and flags alone.
    fn mark_taken(&mut self, bits: u32) {
        let taken = STATE + std::mem::offset_of!(State, taken) as u64;
        self.bytes(&[0xc6, 0x05]);
        let displacement = if bits == 64 {
            taken.wrapping_sub(self.at + 5)
        } else {
            taken
        };
        self.bytes(&(displacement as u32).to_le_bytes());
        self.bytes(&[1]);
    }

    /// A jump to the exit, which is 64-bit code.
    fn leave(&mut self, bits: u32) {
        if bits == 64 {
            self.jump(EXIT);
        } else {
            self.bytes(&[0xea]);
            self.bytes(&(EXIT as u32).to_le_bytes());
            self.bytes(&USER_CODE64.to_le_bytes());
        }
    }

    fn enter(&mut self, prepare: &[u8]) -> u64 {
        let start = self.at;
        // push rbx, rbp, r12 to r15; pushfq
        self.bytes(&[
            0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x9c,
        ]);
        self.bytes(prepare);
        // mov [host_stack], rsp; lea rsp, [input.flags]; popfq
        self.relative(&[0x48, 0x89, 0x25], std::mem::offset_of!(State, host_stack));
        let flags = std::mem::offset_of!(State, input) + std::mem::offset_of!(Registers, flags);
        self.relative(&[0x48, 0x8d, 0x25], flags);
        self.bytes(&[0x9d]);
        self.registers(0x8b, std::mem::offset_of!(State, input));
        start
    }
}

fn map(address: u64, bytes: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: a new anonymous mapping that replaces nothing.
    let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
    assert_eq!(at as u64, address, "the host has no room at {address:#x}");
}

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if RUNNING.load(Ordering::Relaxed) == 0 {
        // SAFETY: restores the default action and lets the fault happen again.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    // SAFETY: the kernel passes the context of the interrupted thread.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    registers[libc::REG_RIP as usize] = EXIT as i64;
    let selectors = &mut registers[libc::REG_CSGSFS as usize];
    *selectors = (*selectors & !0xffff) | i64::from(USER_CODE64);
}

impl Host {
    /// Maps the code and data, and takes over the signals of faults.
    pub fn new() -> Host {
        let data = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, CODE_BYTES, data | libc::PROT_EXEC);
        map(DATA, DATA_BYTES, data);
        let mut emitter = Emitter { at: CODE };
        let entry64 = emitter.enter(&[]);
        emitter.jump(INSTRUCTION);
        // mov eax, USER_DATA; mov ds, ax; mov es, ax
        let entry32 = emitter.enter(&[0xb8, USER_DATA as u8, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xc0]);
        emitter.relative(&[0xff, 0x2d], std::mem::offset_of!(State, instruction));
        assert!(emitter.at <= INSTRUCTION);
        emitter.at = EXIT;
        emitter.registers(0x89, std::mem::offset_of!(State, output));
        let flags = std::mem::offset_of!(State, output) + std::mem::offset_of!(Registers, flags);
        emitter.relative(&[0x48, 0x8d, 0x25], flags + 8);
        emitter.bytes(&[0x9c]);
        emitter.relative(&[0x48, 0x8b, 0x25], std::mem::offset_of!(State, host_stack));
        emitter.bytes(&[
            0x9d, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3,
        ]);
        let stack = vec![0u8; 64 << 10].leak();
        let alternate = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack is leaked, hence valid for ever; the handler is async-signal-safe;
        // the entries are code that keeps the C calling convention.
        unsafe {
            libc::sigaltstack(&alternate, std::ptr::null_mut());
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in [
                libc::SIGFPE,
                libc::SIGSEGV,
                libc::SIGILL,
                libc::SIGBUS,
                libc::SIGTRAP,
            ] {
                libc::sigaction(signal, &action, std::ptr::null_mut());
            }
            Host {
                entry64: std::mem::transmute::<u64, extern "C" fn()>(entry64),
                entry32: std::mem::transmute::<u64, extern "C" fn()>(entry32),
            }
        }
    }

    /// Executes an instruction.
    pub fn run(&mut self, bytes: &[u8], bits: u32, input: Registers) -> Ran {
        let mut emitter = Emitter { at: INSTRUCTION };
        emitter.bytes(bytes);
        emitter.leave(bits);
        assert!(emitter.at <= TAKEN);
        emitter.at = TAKEN;
        emitter.mark_taken(bits);
        emitter.leave(bits);
        let entry = if bits == 64 {
            self.entry64
        } else {
            self.entry32
        };
        let state = STATE as *mut State;
        SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: the state is mapped and this is its only user; the instruction touches the
        // data region alone, or faults, and the handler then leaves by the exit.
        let (output, taken) = unsafe {
            (*state).input = input;
            (*state).instruction = INSTRUCTION as u32;
            (*state).selector = USER_CODE32;
            (*state).taken = 0;
            RUNNING.store(1, Ordering::Relaxed);
            entry();
            RUNNING.store(0, Ordering::Relaxed);
            (
                (*state).output,
                std::ptr::read_volatile(&raw const (*state).taken),
            )
        };
        let signal = SIGNAL.load(Ordering::Relaxed);
        Ran {
            output,
            signal: (signal != 0).then_some(signal),
            taken: taken != 0,
        }
    }

    /// The host's operands.
    pub fn data(&mut self) -> &mut [u8] {
        // SAFETY: mapped by `new` and borrowed with the only handle.
        unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_BYTES) }
    }
}
