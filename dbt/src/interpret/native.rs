//! Instructions that the interpreter has no portable form of, run one at a time on the host
//! processor: registers loaded, memory operand in a bounce buffer, results taken back.

use std::cell::RefCell;

use iced_x86::Instruction;
use rustc_hash::FxHashMap;

use super::extension::{simd_exception, x87_live};
use super::{Access, Context, address, vector};
use crate::cache::{CodeOffset, CodeRegion};
use crate::guest::{CodeSegment, CpuState, Exception, Mode, flags};
use crate::record::classify::{Class, Classifier, Operand};
use crate::run::{self, CpuBlock, FaultSite, GsBase, OwnedBlock, Upcall};
use crate::x86_64::{Emitter, Target, Trampolines, Workshop, emit_trampolines};

const REGION_BYTES: usize = 4 << 20;
const SNIPPET_LIMIT: u32 = 512;

/// Compiled snippets of one thread.
struct Engine {
    region: CodeRegion,
    trampolines: Trampolines,
    block: OwnedBlock,
    snippets: FxHashMap<(Instruction, Mode), CodeOffset>,
    cursor: u32,
    classifier: Classifier,
    _registration: crate::run::Registration,
}

thread_local! {
    static ENGINE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

extern "sysv64" fn done(_: u64, _: *const Upcall, _: u64) -> u64 {
    0
}

extern "sysv64" fn faulted(_: u64, _: *const Upcall, _: u64) -> u64 {
    0
}

impl Engine {
    fn new() -> Option<Engine> {
        let mut region = CodeRegion::new(REGION_BYTES, false).ok()?;
        let done = done as extern "sysv64" fn(u64, *const Upcall, u64) -> u64;
        let faulted = faulted as extern "sysv64" fn(u64, *const Upcall, u64) -> u64;
        let (code, trampolines) =
            emit_trampolines(done as usize as u64, faulted as usize as u64, 1, 0);
        region.write(CodeOffset(0), &code);
        let block = OwnedBlock::without_tables();
        let start = region.address(CodeOffset(0));
        let registration = run::register_region(FaultSite {
            start,
            end: start + region.len() as u64,
            code_start: region.address(trampolines.end),
            resume: region.address(trampolines.signal),
            block: block.as_ptr() as u64,
        })?;
        Some(Engine {
            cursor: trampolines.end.0,
            region,
            trampolines,
            block,
            snippets: FxHashMap::default(),
            classifier: Classifier::default(),
            _registration: registration,
        })
    }

    fn snippet(&mut self, insn: &Instruction, class: &Class, mode: Mode) -> Option<CodeOffset> {
        // Snippets are small: a block of one instruction and its leaving.
        if self.cursor + SNIPPET_LIMIT > self.region.len() as u32 {
            self.snippets.clear();
            self.cursor = self.trampolines.end.0;
        }
        let base = CodeOffset(self.cursor);
        let target = Target {
            id: 0,
            mode,
            code: CodeSegment::FLAT,
            base,
            cold_base: CodeOffset(base.0 + SNIPPET_LIMIT / 2),
            trampolines: &self.trampolines,
            copies: 1,
            stride: 0,
            jump_cache: 0,
            far_jump_cache: None,
            system_inline: false,
            memory_inline: false,
            vector_strings: false,
            mapping: 0,
            further: &[],
            counted: false,
            returns: false,
            grouping: false,
            allotting: None,
            crossing: false,
            late_stack: false,
            late_slots: false,
            late_stores: false,
            late_index: false,
            prefetch: false,
            slot_registers: false,
            sure_accesses: false,
            hoisting: false,
            whole_jumps: false,
            memory_operands: false,
            precise_flags: true,
            lazy_flags: true,
            heat: None,
            x87_opcodes: &[],
            prediction: None,
            movable: false,
            bmi2: false,
        };
        let mut workshop = Workshop::default();
        let [code, cold] = Emitter::new(&target, &mut workshop)
            .alone(insn, class)
            .ok()?;
        // One instruction on a buffer has no slow path.
        debug_assert!(cold.is_empty());
        self.region.write(base, &code);
        self.cursor = (self.cursor + code.len() as u32).next_multiple_of(16);
        Some(base)
    }
}

/// Executes one instruction on the host processor. #UD if it is none that can run there.
pub fn execute(cx: &mut Context<'_>, insn: &Instruction) -> Result<(), Exception> {
    ENGINE.with(|engine| {
        let mut engine = engine.borrow_mut();
        if engine.is_none() {
            *engine = Engine::new();
        }
        match engine.as_mut() {
            Some(engine) => execute_with(engine, cx, insn),
            None => Err(Exception::invalid_opcode()),
        }
    })
}

fn execute_with(
    engine: &mut Engine,
    cx: &mut Context<'_>,
    insn: &Instruction,
) -> Result<(), Exception> {
    let mode = cx.cpu.mode.without_noting();
    let class = engine.classifier.classify(insn, mode);
    let operand = class.on_host().ok_or(Exception::invalid_opcode())?;
    let mut linear = None;
    let mut offset = 0;
    let size = insn.memory_size().size();
    if operand != Operand::None {
        let op = (0..insn.op_count())
            .find(|&op| insn.op_kind(op) == iced_x86::OpKind::Memory)
            .ok_or(Exception::invalid_opcode())?;
        let writes = operand != Operand::Read;
        let access = if writes { Access::Write } else { Access::Read };
        let at = address::linear(cx, insn, op, size, access)?;
        if writes {
            cx.authorise_write(at, size)?;
        }
        // The operand keeps its alignment, which some instructions insist on.
        offset = (at.0 & 63) as usize;
        let mut bytes = [0u8; 64];
        match operand {
            Operand::Write => {}
            // The copies that emitted code writes are equal whether or not it stores.
            Operand::WriteOnce => cx.load_area(at, &mut bytes[..size])?,
            _ => cx.load_bytes(at, &mut bytes[..size])?,
        }
        let bounce = &mut engine.block.get_mut().exchange.bounce.0;
        bounce[offset..offset + size].copy_from_slice(&bytes[..size]);
        linear = writes.then_some(at);
    }
    let key = (*insn, mode);
    let start = match engine.snippets.get(&key) {
        Some(&start) => start,
        None => {
            let start = engine
                .snippet(insn, &class, mode)
                .ok_or(Exception::invalid_opcode())?;
            engine.snippets.insert(key, start);
            start
        }
    };
    let target = engine.region.address(start);
    let enter = engine.region.address(engine.trampolines.enter);
    let block = engine.block.get_mut();
    block.cpu.gpr = cx.cpu.gpr;
    block.cpu.vector.ymm = cx.cpu.vector.ymm;
    block.cpu.vector.mxcsr = cx.cpu.vector.mxcsr;
    let exchange = &mut block.exchange;
    exchange.saved_flags = pack_flags(cx.cpu.arithmetic_flags);
    exchange.jump_target = target;
    exchange.result_host = exchange.bounce.0.as_ptr() as u64 + offset as u64;
    exchange.signal = u32::MAX;
    exchange.vcpu = 0;
    exchange.vectors_wanted = 1;
    engine.block.prepare_returns();
    let block = engine.block.get_mut();
    run_alone(block, enter, cx);
    let exchange = &block.exchange;
    if exchange.signal != u32::MAX {
        // The exception flags of MXCSR say what #XM was about.
        cx.cpu.vector.mxcsr = block.cpu.vector.mxcsr;
        return Err(host_exception(cx.cpu, exchange.signal as u8));
    }
    let arithmetic = unpack_flags(exchange.saved_flags);
    let result = exchange.bounce.0;
    if let Some(at) = linear
        && !(operand == Operand::WriteOnce && vector::x87_store_refused(cx.cpu))
    {
        cx.store_bytes(at, &result[offset..offset + size])?;
    }
    cx.cpu.gpr = block.cpu.gpr;
    cx.cpu.arithmetic_flags = arithmetic;
    cx.cpu.vector.ymm = block.cpu.vector.ymm;
    cx.cpu.vector.mxcsr = block.cpu.vector.mxcsr;
    let mask = if cx.cpu.code64() {
        u64::MAX
    } else {
        0xffff_ffff
    };
    cx.cpu.rip = insn.next_ip() & mask;
    Ok(())
}

/// The exception that a fault on the host is to the guest.
pub(crate) fn host_exception(cpu: &CpuState, vector: u8) -> Exception {
    match vector {
        Exception::GP | Exception::AC => Exception::with_code(vector, 0),
        Exception::XM => simd_exception(cpu),
        _ => Exception::plain(vector),
    }
}

fn run_alone(block: &mut CpuBlock, enter: u64, cx: &mut Context<'_>) {
    let live = x87_live();
    if !live {
        run::load_x87(&cx.cpu.vector.fxsave);
    }
    {
        let _gs = GsBase::set(std::ptr::from_mut(block) as u64);
        // SAFETY: `enter` is the trampoline of this thread's engine, GS points to its block,
        // and the snippet ends with the upcall that leaves. What it clobbers beyond the
        // C convention the trampoline saves.
        unsafe {
            let enter: extern "sysv64" fn() = std::mem::transmute(enter);
            enter();
        }
    }
    if !live {
        run::store_x87(&mut cx.cpu.vector.fxsave);
    }
}

/// The six arithmetic flags as `lahf; seto al` leaves them in AX.
pub(crate) fn pack_flags(arithmetic: u64) -> u64 {
    (arithmetic & 0xff | 2) << 8 | (arithmetic >> 11 & 1)
}

/// The reverse of [`pack_flags`].
pub(crate) fn unpack_flags(packed: u64) -> u64 {
    ((packed >> 8 & 0xff) | (packed & 1) << 11) & flags::ARITHMETIC
}
