//! Names of what emitted code refers to, so that listings do not change with offsets.

use std::mem::offset_of;
use std::ops::Range;

use dbt::guest::{Bounds, CpuState, Segment};
use dbt::run::CpuBlock;
use iced_x86::{Instruction, OpKind, Register, SymbolResolver, SymbolResult};
use mmu::{Reach, Reaches, Tlb, TlbEntry, TlbSet};

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Resolves addresses in emitted code.
pub struct Names {
    /// Where upcalls go.
    pub upcall: u64,
    /// The block without what lies behind its end.
    pub straight: Range<u64>,
}

/// The name of what is so far behind GS.
fn behind_gs(offset: usize) -> Option<String> {
    let gpr = offset_of!(CpuBlock, cpu) + offset_of!(CpuState, gpr);
    if (gpr..gpr + 128).contains(&offset) && (offset - gpr).is_multiple_of(8) {
        return Some(format!("guest.{}", GPR[(offset - gpr) / 8]));
    }
    let segments = offset_of!(CpuBlock, cpu) + offset_of!(CpuState, segments);
    let bounds = offset_of!(CpuBlock, exchange.bounds);
    for (index, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
        let segment = segments + index * size_of::<Segment>();
        let bound = bounds + index * size_of::<Bounds>();
        for (at, field) in [
            (segment + offset_of!(Segment, base), "base"),
            (segment + offset_of!(Segment, limit), "limit"),
            (segment + offset_of!(Segment, selector), "selector"),
            (bound + offset_of!(Bounds, read), "read_bound"),
            (bound + offset_of!(Bounds, write), "write_bound"),
        ] {
            if offset == at {
                return Some(format!("guest.{name}.{field}"));
            }
        }
    }
    for (at, name) in [
        (offset_of!(CpuBlock, exchange.saved_flags), "saved_flags"),
        (offset_of!(CpuBlock, exchange.budget), "budget"),
        (offset_of!(CpuBlock, exchange.scratch), "scratch"),
        (offset_of!(CpuBlock, exchange.vectors_live), "vectors_live"),
        (
            offset_of!(CpuBlock, exchange.saved_flags) + 1,
            "saved_flags+1",
        ),
        (
            offset_of!(CpuBlock, exchange.interrupt_waiting),
            "interrupt_waiting",
        ),
        (offset_of!(CpuBlock, exchange.stash), "stash"),
        (offset_of!(CpuBlock, exchange.second), "second"),
        (offset_of!(CpuBlock, exchange.constant), "constant"),
        (offset_of!(CpuBlock, cpu.return_limit), "poll"),
        (offset_of!(CpuBlock, exchange.return_top), "return_top"),
        (offset_of!(CpuBlock, cpu.interrupt_flag), "guest.if"),
        (offset_of!(CpuBlock, cpu.direction_flag), "guest.df"),
        (offset_of!(CpuBlock, cpu.system_flags), "guest.system_flags"),
        (offset_of!(CpuBlock, cpu.mode), "guest.mode"),
        (offset_of!(CpuBlock, cpu.control.cr2), "guest.cr2"),
        (
            offset_of!(CpuBlock, cpu.control.gdtr.base),
            "guest.gdtr.base",
        ),
        (
            offset_of!(CpuBlock, cpu.control.gdtr.limit),
            "guest.gdtr.limit",
        ),
        (
            offset_of!(CpuBlock, cpu.control.idtr.base),
            "guest.idtr.base",
        ),
        (
            offset_of!(CpuBlock, cpu.control.idtr.limit),
            "guest.idtr.limit",
        ),
        (offset_of!(CpuBlock, cpu.control.tr.base), "guest.tr.base"),
        (offset_of!(CpuBlock, cpu.control.tr.limit), "guest.tr.limit"),
        (offset_of!(CpuBlock, cpu.control.cr4), "guest.cr4"),
        (offset_of!(CpuBlock, cpu.control.efer), "guest.efer"),
        (offset_of!(CpuBlock, cpu.msrs.star) + 4, "guest.star+4"),
        (offset_of!(CpuBlock, cpu.msrs.star) + 6, "guest.star+6"),
        (offset_of!(CpuBlock, cpu.msrs.lstar), "guest.lstar"),
        (offset_of!(CpuBlock, cpu.msrs.fmask), "guest.fmask"),
        (
            offset_of!(CpuBlock, cpu.msrs.tsc_offset),
            "guest.tsc_offset",
        ),
        (offset_of!(CpuBlock, cpu.time_line.host), "time.host"),
        (offset_of!(CpuBlock, cpu.time_line.machine), "time.machine"),
        (offset_of!(CpuBlock, cpu.time_line.rate), "time.rate"),
        (offset_of!(CpuBlock, cpu.time_line.span), "time.span"),
    ] {
        if offset == at {
            return Some(name.to_string());
        }
    }
    let sites = offset_of!(CpuBlock, tlb.reaches) + offset_of!(Reaches, sites);
    if (sites..sites + size_of::<[Reach; mmu::SITES]>()).contains(&offset) {
        let (number, field) = (
            (offset - sites) / size_of::<Reach>(),
            (offset - sites) % size_of::<Reach>(),
        );
        let names = [
            (offset_of!(Reach, base), "base"),
            (offset_of!(Reach, len), "len"),
            (offset_of!(Reach, addend), "addend"),
        ];
        let name = names.iter().find(|&&(at, _)| at == field)?.1;
        return Some(format!("reach[{number}].{name}"));
    }
    let vectors = offset_of!(CpuBlock, cpu.vector.ymm);
    if (vectors..vectors + 512).contains(&offset) {
        let (number, byte) = ((offset - vectors) / 32, (offset - vectors) % 32);
        return Some(format!("guest.ymm{number}+{byte}"));
    }
    let groups = offset_of!(CpuBlock, exchange.groups);
    if (groups..groups + 64).contains(&offset) && offset < offset_of!(CpuBlock, exchange.host_mxcsr)
    {
        return Some(format!("group[{}]", (offset - groups) / 8));
    }
    let guards = offset_of!(CpuBlock, guards);
    let jumps = offset_of!(CpuBlock, jumps);
    let tlb = offset_of!(CpuBlock, tlb);
    if (guards..jumps.max(guards)).contains(&offset) {
        return Some("guard".to_string());
    }
    if (jumps..offset_of!(CpuBlock, heat)).contains(&offset) {
        return Some(format!("jump_cache+{}", (offset - jumps) % 16));
    }
    let data = tlb + offset_of!(TlbSet, data);
    for (view, name) in ["user", "supervisor", "open"].iter().enumerate() {
        let entries = data + view * size_of::<Tlb>() + offset_of!(Tlb, entries);
        for (field, at) in [
            ("read_tag", offset_of!(TlbEntry, read_tag)),
            ("write_tag", offset_of!(TlbEntry, write_tag)),
            ("addend", offset_of!(TlbEntry, addend)),
        ] {
            let table = entries..entries + size_of::<[TlbEntry; mmu::TLB_ENTRIES]>();
            if table.contains(&offset) && (offset - entries) % size_of::<TlbEntry>() == at {
                // The page is known, or its entry is in a register.
                let known = if offset - entries == at { "" } else { "[page]" };
                return Some(format!("tlb.{name}{known}.{field}"));
            }
        }
    }
    None
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        insn: &Instruction,
        operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = insn.op_kind(instruction_operand.unwrap_or(operand));
        let name = match kind {
            OpKind::NearBranch64 if address == self.upcall => "upcall".to_string(),
            OpKind::NearBranch64 if self.straight.contains(&address) => "within".to_string(),
            OpKind::NearBranch64 => "behind".to_string(),
            OpKind::Memory if insn.segment_prefix() == Register::GS => {
                behind_gs(usize::try_from(address).ok()?)?
            }
            _ => return None,
        };
        Some(SymbolResult::with_string(address, name))
    }
}
