//! The reference: the interpreter, one instruction at a time, with what is known of flags that
//! the manual leaves undefined.

use dbt::Stop;
use dbt::guest::{CpuState, flags};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, RflagsBits};
use mmu::GuestPhys;

use crate::machine::{CODE, Machine, PAGE, physical};
use crate::program::Program;
use crate::tables::{HANDLERS, HANDLERS_END, SPACES, entry_address};

/// Longer programs are not looked at; shorter ones neither where every step is looked at.
const LONGEST_RUN: usize = 4000;
const LONGEST_OF_ITSELF: usize = 200;

/// The registers after one instruction.
#[derive(Clone)]
pub struct Moment {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Arithmetic flags that mean nothing here.
    pub undefined: u64,
}

/// A whole run.
pub struct Run {
    pub moments: Vec<Moment>,
    /// Arithmetic flags that mean nothing in the last exception frame.
    pub frame_undefined: u64,
    /// Whether any exception was delivered.
    pub faulted: bool,
}

fn arithmetic(bits: u32) -> u64 {
    [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ]
    .into_iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}

/// Flags that an instruction defines, and those that it leaves undefined.
fn changes(insn: &Instruction, cpu: &CpuState) -> (u64, u64) {
    use Mnemonic::*;
    let count = match insn.mnemonic() {
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr => Some(1),
        Shld | Shrd => Some(2),
        _ => None,
    };
    let Some(operand) = count else {
        let undefined = insn.rflags_undefined();
        let defined = insn.rflags_modified() & !undefined;
        return (arithmetic(defined), arithmetic(undefined));
    };
    let size = if insn.op0_kind() == OpKind::Register {
        insn.op0_register().size()
    } else {
        insn.memory_size().size()
    };
    let raw = match insn.op_kind(operand) {
        OpKind::Register => cpu.gpr[1],
        _ => insn.immediate(operand),
    };
    let masked = raw & if size == 8 { 63 } else { 31 };
    if masked == 0 {
        return (0, 0);
    }
    let logical = !matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr);
    let mut undefined = 0;
    if masked > 0 && logical {
        undefined |= flags::AF;
    }
    if masked > 1 {
        undefined |= flags::OF;
    }
    if masked as usize >= 8 * size && logical && insn.mnemonic() != Sar {
        undefined |= flags::CF;
    }
    (arithmetic(insn.rflags_modified()) & !undefined, undefined)
}

/// Where code at a linear address is.
fn fetched(machine: &mut Machine, bits: u32, linear: u64) -> Option<u64> {
    if !(CODE..CODE + 2 * PAGE).contains(&linear) {
        return Some(physical(linear));
    }
    let space = machine.vcpu.cpu().control.cr3 & 0xf000;
    let at = entry_address(bits, linear) + space - SPACES[0];
    let size = if bits == 64 { 8 } else { 4 };
    let entry = machine.vcpu.mem.load_uint(GuestPhys(at), size).ok()?;
    Some((entry & 0xf_f000) | (linear % PAGE))
}

fn decode(machine: &mut Machine, bits: u32, rip: u64) -> Instruction {
    let mut bytes = [0; 15];
    for (index, byte) in bytes.iter_mut().enumerate() {
        let linear = rip.wrapping_add(index as u64);
        if let Some(at) = fetched(machine, bits, linear) {
            let mut one = [0];
            if machine.vcpu.mem.load(GuestPhys(at), &mut one).is_ok() {
                *byte = one[0];
            }
        }
    }
    Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE).decode()
}

fn moment(cpu: &CpuState, undefined: u64) -> Moment {
    Moment {
        gpr: cpu.gpr,
        rip: cpu.rip,
        rflags: cpu.rflags(),
        undefined,
    }
}

/// Runs to the end, if that is near. `None` also where a program makes use of an undefined
/// flag.
pub fn run(machine: &mut Machine, program: &Program) -> Option<Run> {
    let bits = program.bits;
    let mut undefined = 0;
    let mut run = Run {
        moments: vec![moment(machine.vcpu.cpu(), 0)],
        frame_undefined: 0,
        faulted: false,
    };
    let handlers = HANDLERS..HANDLERS_END;
    loop {
        if program.interrupts.contains(&(run.moments.len() - 1)) {
            machine.interrupt.set(true);
        }
        let rip = machine.vcpu.cpu().rip;
        let insn = decode(machine, bits, rip);
        let reads = match insn.mnemonic() {
            Mnemonic::Syscall | Mnemonic::Int => flags::ARITHMETIC,
            _ => arithmetic(insn.rflags_read()),
        };
        let (defines, leaves) = changes(&insn, machine.vcpu.cpu());
        let goal = machine.vcpu.instructions() + 1;
        machine.vcpu.set_goal(goal);
        let waited = machine.interrupt.get();
        let stop = machine.vcpu.run();
        let interrupted = waited && !machine.interrupt.get();
        let now = machine.vcpu.cpu().rip;
        if matches!(insn.mnemonic(), Mnemonic::Syscall | Mnemonic::Int)
            && handlers.contains(&now)
            && !interrupted
        {
            if reads & undefined != 0 {
                return None;
            }
        } else if handlers.contains(&now) && !handlers.contains(&rip) {
            run.faulted = true;
            run.frame_undefined = undefined;
        } else if matches!(
            insn.mnemonic(),
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
        ) {
            undefined = run.frame_undefined;
        } else {
            if reads & undefined != 0 {
                return None;
            }
            undefined &= !defines;
            undefined |= leaves;
        }
        let longest = if program.writes_itself {
            LONGEST_OF_ITSELF
        } else {
            LONGEST_RUN
        };
        run.moments.push(moment(machine.vcpu.cpu(), undefined));
        if machine.vcpu.cpu().halted != 0 {
            return Some(run);
        }
        match stop {
            Stop::Budget if run.moments.len() < longest => {}
            // Whatever was being delivered: its flags are those of a fault.
            Stop::Shutdown => return None,
            _ => return None,
        }
    }
}
