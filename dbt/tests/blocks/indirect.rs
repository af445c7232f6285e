//! Traces that follow jumps and calls through registers and memory: random loops whose jumps lead to several
//! places, some more often than others, and what may be there, end as interpreted ones do, and
//! stop at any instruction.

use dbt::EngineOptions;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{HOLE, PAGE};
use crate::places::{CHANGING, looping};
use crate::program::Program;
use crate::side_by_side::{end_alike, machines, stop_anywhere};

/// Rounds of a loop.
const ROUNDS: u32 = 120;
/// The round in which what happens once happens.
const LATE: i32 = 31;
/// Places to which one jump may lead.
const WAYS: usize = 4;
/// Where in the data the tables of addresses are, from RDI.
const TABLES: i32 = 0x400;
/// Jumps and calls of a round.
const SITES: usize = 4;
/// Bytes between the code on the first page and that on the second.
const APART: usize = 0xe00;

/// What may happen once: RBP counts the rounds down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    Nothing,
    /// A jump or call leads to an address that is not canonical.
    NotCanonical,
    /// To a page that is missing.
    Missing,
    /// Its target is in a page that is missing.
    TableMissing,
    /// There is no stack for the return address.
    NoStack,
    /// What it leads to begins with an access that faults.
    Faults,
    /// Or with a division that does, on the host.
    Divides,
    /// The next instruction is the last one before a debug exception.
    Steps,
    /// What it leads to changes.
    Overwrites,
    /// All mappings are flushed.
    Flushes,
    /// The interpreter has one instruction in between.
    Interprets,
}

const EVENTS: [Event; 11] = [
    Event::Nothing,
    Event::NotCanonical,
    Event::Missing,
    Event::TableMissing,
    Event::NoStack,
    Event::Faults,
    Event::Divides,
    Event::Steps,
    Event::Overwrites,
    Event::Flushes,
    Event::Interprets,
];

/// A jump or call of a round.
#[derive(Clone, Copy)]
struct Site {
    calls: bool,
    /// The bits of RDX that choose its target: the more, the more often the first one.
    mask: u32,
    /// Its target is in R9, RSI or RAX, or in memory by RCX or by RSP.
    through: u64,
    number: usize,
}

impl Site {
    fn random(random: &mut Random, number: usize) -> Site {
        Site {
            calls: random.below(2) == 0,
            mask: [0, 0x3, 0x38, 0x3c0, 0x7c00][random.below(5) as usize],
            through: random.below(5),
            number,
        }
    }

    /// The table of its targets.
    fn table(&self) -> i32 {
        TABLES + (self.number * WAYS * 8) as i32
    }

    /// Puts the index of its target into RCX.
    fn choose(&self, a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
        let mut usual = a.create_label();
        a.mov(ecx, 0)?;
        a.test(edx, self.mask)?;
        a.jne(usual)?;
        if self.mask != 0 {
            a.mov(ecx, edx)?;
            a.shr(ecx, 17)?;
            a.and(ecx, WAYS as i32 - 1)?;
        }
        a.set_label(&mut usual)?;
        // Flags that what it leads to may look at.
        match random.below(4) {
            0 => a.cmp(r8, r11),
            1 => a.sub(rbx, r10),
            2 => a.add(qword_ptr(rdi + 0x80), rbx),
            _ => a.inc(r12),
        }
    }

    fn emit(&self, a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
        let table = self.table();
        let register = match self.through {
            0 => r9,
            1 => rsi,
            2 => rax,
            3 => {
                let slot = qword_ptr(rdi + rcx * 8 + table);
                return if self.calls {
                    a.call(slot)
                } else {
                    a.jmp(slot)
                };
            }
            _ => {
                a.push(qword_ptr(rdi + rcx * 8 + table))?;
                a.lea(rsp, ptr(rsp + 8))?;
                let slot = qword_ptr(rsp - 8);
                return if self.calls {
                    a.call(slot)
                } else {
                    a.jmp(slot)
                };
            }
        };
        a.mov(register, qword_ptr(rdi + rcx * 8 + table))?;
        // The stack pointer may be late there.
        if random.below(2) == 0 {
            a.push(r8)?;
            a.push(r12)?;
            a.pop(r12)?;
            a.lea(r8, ptr(r8 + 1))?;
            a.pop(r8)?;
        }
        if self.calls {
            a.call(register)
        } else {
            a.jmp(register)
        }
    }
}

fn work(a: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    for _ in 0..=random.below(3) {
        let at = random.below(30) as i32 * 8 + 64;
        match random.below(8) {
            0 => a.add(r8, rdx)?,
            1 => a.lea(r9, ptr(r9 + r8 * 4 + 7))?,
            2 => a.mov(qword_ptr(rdi + at), r10)?,
            3 => a.add(r11, qword_ptr(rdi + at))?,
            4 => a.sub(qword_ptr(rdi + at), r8)?,
            5 => a.sub(r10, r11)?,
            6 => a.add(r10, r12)?,
            _ => {
                a.push(r9)?;
                a.add(r10, rbx)?;
                a.pop(rsi)?;
            }
        }
    }
    Ok(())
}

/// What happens, in the round for it, before a jump of which RCX chooses the target.
fn before(
    a: &mut CodeAssembler,
    event: Event,
    table: i32,
    changing: CodeLabel,
) -> Result<(), IcedError> {
    let mut over = a.create_label();
    a.cmp(ebp, LATE)?;
    a.jne(over)?;
    match event {
        Event::NotCanonical => {
            a.mov(rax, 0x8000_0000_0000_1234u64)?;
            a.mov(qword_ptr(rdi + rcx * 8 + table), rax)?;
        }
        Event::Missing => a.mov(qword_ptr(rdi + rcx * 8 + table), HOLE as i32 + 0x10)?,
        Event::TableMissing => a.lea(rdi, ptr(rdi + PAGE as i32 * 4))?,
        Event::NoStack => a.mov(esp, HOLE as u32 + 0x100)?,
        Event::Steps => {
            a.pushfq()?;
            a.or(dword_ptr(rsp), 0x100)?;
            a.popfq()?;
        }
        Event::Overwrites => {
            a.lea(rax, ptr(changing))?;
            a.mov(dword_ptr(rax + 2), 77)?;
        }
        Event::Flushes => {
            a.mov(rax, cr3)?;
            a.mov(cr3, rax)?;
        }
        _ => {}
    }
    a.set_label(&mut over)?;
    a.zero_bytes()
}

/// What happens where a jump has led to.
fn behind(a: &mut CodeAssembler, event: Event) -> Result<(), IcedError> {
    if event == Event::Interprets {
        return a.cpuid();
    }
    if !matches!(event, Event::Faults | Event::Divides) {
        return Ok(());
    }
    // Flags stay as they are where nothing happens.
    let (mut now, mut over) = (a.create_label(), a.create_label());
    a.lea(rcx, ptr(rbp - LATE))?;
    a.jrcxz(now)?;
    a.jmp(over)?;
    a.set_label(&mut now)?;
    if event == Event::Faults {
        a.mov(r8, qword_ptr(HOLE))?;
    } else {
        a.mov(r9d, 0)?;
        a.div(r9)?;
    }
    a.set_label(&mut over)?;
    a.zero_bytes()
}

/// One of the places to which a jump or call leads.
fn way(
    a: &mut CodeAssembler,
    random: &mut Random,
    (site, event): (Site, Event),
    join: CodeLabel,
    nested: Option<Site>,
) -> Result<(), IcedError> {
    // The flags that were there before the jump.
    match random.below(5) {
        0 => a.adc(rbx, 3)?,
        1 => {
            a.pushfq()?;
            a.pop(rax)?;
            a.and(eax, 0x8d5)?;
            a.add(r8, rax)?;
        }
        2 => a.setle(r12b)?,
        3 => a.cmovb(r10, r8)?,
        _ => a.add(r11, 1)?,
    }
    behind(a, event)?;
    work(a, random)?;
    if let Some(nested) = nested {
        nested.choose(a, random)?;
        nested.emit(a, random)?;
        a.add(r8, 1)?;
    }
    if !site.calls {
        return a.jmp(join);
    }
    if random.below(3) == 0 {
        a.push(r8)?;
        a.pop(rsi)?;
    }
    a.ret()
}

/// The loop, what its jumps lead to, half of it on another page, and what fills the tables.
fn code(random: &mut Random, event: Event) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut head, mut leaf) = (a.create_label(), a.create_label());
    let mut sites: Vec<Site> = (0..SITES).map(|at| Site::random(random, at)).collect();
    // What functions call in turn.
    sites[SITES - 1].calls = true;
    let (nested, own) = sites.split_last().expect("there is one");
    let mut ways: Vec<CodeLabel> = (0..SITES * WAYS).map(|_| a.create_label()).collect();
    let mut joins: Vec<CodeLabel> = own.iter().map(|_| a.create_label()).collect();
    let happening = random.below(own.len() as u64) as usize;
    let closes_by_register = random.below(2) == 0;
    for (at, &way) in ways.iter().enumerate() {
        a.lea(rax, ptr(way))?;
        a.mov(qword_ptr(rdi + TABLES + at as i32 * 8), rax)?;
    }
    a.mov(ebp, ROUNDS)?;
    a.lea(r15, ptr(head))?;
    a.set_label(&mut head)?;
    a.imul_3(r14, r14, 0x5851_f42d)?;
    a.add(r14, 0x1405_7b7f)?;
    a.mov(rdx, r14)?;
    a.shr(rdx, 19)?;
    for site in own {
        if random.below(2) == 0 {
            work(&mut a, random)?;
        }
        site.choose(&mut a, random)?;
        if site.number == happening {
            before(&mut a, event, site.table(), leaf)?;
        }
        site.emit(&mut a, random)?;
        a.set_label(&mut joins[site.number])?;
        a.add(rbx, 1)?;
    }
    a.call(leaf)?;
    a.add(r12, r13)?;
    let mut out = a.create_label();
    a.dec(ebp)?;
    if closes_by_register {
        a.je(out)?;
        a.jmp(r15)?;
        a.set_label(&mut out)?;
    } else {
        a.jne(head)?;
    }
    a.hlt()?;
    let mut far = false;
    for (at, label) in ways.iter_mut().enumerate() {
        if at == 2 * WAYS {
            a.db(&[0xcc; APART])?;
            a.set_label(&mut leaf)?;
            a.mov(r13d, 5)?;
            a.ret()?;
            far = true;
        }
        a.set_label(label)?;
        let site = sites[at / WAYS];
        let event = if site.number == happening && at % WAYS == 1 {
            event
        } else {
            Event::Nothing
        };
        let join = joins.get(site.number).copied().unwrap_or(leaf);
        let calls = far && site.number != nested.number && random.below(2) == 0;
        way(
            &mut a,
            random,
            (site, event),
            join,
            calls.then_some(*nested),
        )?;
    }
    a.assemble(CHANGING)
}

fn program(seed: u64) -> (Event, Program) {
    let mut random = Random::new(seed);
    let event = EVENTS[seed as usize % EVENTS.len()];
    let code = code(&mut random, event).expect("the loop can be assembled");
    let second = PAGE as usize..2 * PAGE as usize - 0x40;
    assert!(second.contains(&code.len()), "{:#x} bytes", code.len());
    let mut program = looping(&code);
    if event == Event::Flushes {
        program.ring = 0;
    }
    (event, program)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        traces: Some(1 + (bits & 3) as u8),
        long_traces: [Some(1), Some(2), Some(9)][bits % 3],
        samples: false,
        indirect_traces: bits != 6,
        registers: (bits & 1 != 0).then_some(1),
        grouping: bits & 4 == 0,
        late_stack: bits & 2 == 0,
        late_slots: bits & 4 == 0,
        late_stores: bits & 2 == 0,
        sure_accesses: bits % 3 != 2,
        whole_jumps: bits & 1 == 0,
        precise_flags: bits != 3,
        lazy_flags: bits != 1,
        returns: bits != 5,
        prediction: Some(1),
        eager_prediction: true,
        cold: 0,
        ..EngineOptions::default()
    };
    (0..8).map(engine).collect()
}

#[test]
fn jumps_of_traces_lead_anywhere() {
    let mut engines = machines(engines(false));
    let cases = setting("INDIRECT_CASES", 330);
    end_alike(&mut engines, cases, program, |options| {
        options.precise_flags
    });
    for (options, machine) in &engines {
        let followed = machine.vcpu.statistics().indirect;
        if options.indirect_traces {
            assert!(followed >= cases, "{followed} followed: {options:?}");
        } else {
            assert_eq!(followed, 0);
        }
    }
}

#[test]
fn jumps_of_traces_stop_anywhere() {
    stop_anywhere(engines(true), setting("INDIRECT_CASES", 330) / 6, program);
}
