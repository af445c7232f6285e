//! Tables of mode transitions and what must become of them: each case names the section of the
//! manual that it comes from, and runs in the interpreter alone, in the engine without
//! translation, and in the engine with it.

mod far;
mod fast;
mod interrupts;
mod limits;
mod returns;
mod tasks;

use dbt::guest::Exception;
use mmu::GuestPhys;

use crate::common::TRANSLATES;
use crate::machine::*;

/// One instruction from one state.
pub struct Case {
    /// Where the manual says so.
    section: &'static str,
    what: &'static str,
    start: fn() -> Machine,
    prepare: fn(&mut Machine),
    code: Vec<u8>,
    expected: Expected,
}

enum Expected {
    Fault(Exception),
    /// CS, RIP, SS and RSP afterwards, and what else has to hold.
    Goes(u16, u64, u16, u64, fn(&mut Machine)),
}

/// The cases of one section, one a line.
pub struct Section {
    name: &'static str,
    cases: Vec<Case>,
}

impl Section {
    fn new(name: &'static str) -> Section {
        Section {
            name,
            cases: Vec::new(),
        }
    }

    /// A case that faults, and leaves everything as it was.
    fn faults(
        &mut self,
        what: &'static str,
        start: fn() -> Machine,
        code: Vec<u8>,
        fault: Exception,
        prepare: fn(&mut Machine),
    ) {
        self.cases.push(Case {
            section: self.name,
            what,
            start,
            prepare,
            code,
            expected: Expected::Fault(fault),
        });
    }

    /// A case that goes to CS:RIP with a stack at SS:RSP.
    fn goes(
        &mut self,
        what: &'static str,
        start: fn() -> Machine,
        code: Vec<u8>,
        (cs, rip, ss, rsp): (u16, u64, u16, u64),
        prepare: fn(&mut Machine),
        check: fn(&mut Machine),
    ) {
        self.cases.push(Case {
            section: self.name,
            what,
            start,
            prepare,
            code,
            expected: Expected::Goes(cs, rip, ss, rsp, check),
        });
    }
}

pub const GP: fn(u32) -> Exception = Exception::general_protection;
pub const NP: fn(u32) -> Exception = Exception::not_present;
pub const SS: fn(u32) -> Exception = Exception::stack_fault;
pub const TS: fn(u32) -> Exception = Exception::invalid_tss;

pub fn ring0() -> Machine {
    Machine::protected(0)
}

pub fn ring3() -> Machine {
    Machine::protected(3)
}

pub fn long0() -> Machine {
    Machine::long(0)
}

pub fn long3() -> Machine {
    Machine::long(3)
}

/// Nothing more to prepare, or to check.
pub fn plain(_: &mut Machine) {}

/// The first of the selectors that are free for a case's own descriptors.
pub const OWN: u16 = 0xe0;
pub const OWN_HIGH: u16 = 0xe8;

/// Puts a descriptor into the GDT, behind what every machine has.
pub fn entry(machine: &mut Machine, selector: u16, raw: u64) {
    machine.write(GDT + u64::from(selector & 0xfff8), 8, raw);
    machine.cpu.control.gdtr.limit = 0xfff;
}

/// Takes the present bit from a descriptor or a gate.
pub fn absent(raw: u64) -> u64 {
    raw & !(0x80 << 40)
}

/// Far CALL and JMP to a selector and a 32-bit offset.
pub fn call(selector: u16, offset: u32) -> Vec<u8> {
    far(0x9a, selector, offset)
}

pub fn jump(selector: u16, offset: u32) -> Vec<u8> {
    far(0xea, selector, offset)
}

fn far(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut code = vec![opcode];
    code.extend(offset.to_le_bytes());
    code.extend(selector.to_le_bytes());
    code
}

/// Pushes what a return finds, the first value on top.
pub fn frame(machine: &mut Machine, size: usize, values: &[u64]) {
    machine.cpu.gpr[4] -= (size * values.len()) as u64;
    let ss = dbt::guest::SegmentIndex::Ss;
    let top = machine.cpu.segment(ss).base + machine.cpu.gpr[4];
    for (index, &value) in values.iter().enumerate() {
        machine.write(top + (index * size) as u64, size, value);
    }
}

/// What two ways of running a case have to agree on.
fn registers(cpu: &dbt::guest::CpuState) -> String {
    format!(
        "{:x?} {:x} {:x} {:x?} {:x?}",
        cpu.gpr,
        cpu.rip,
        cpu.rflags(),
        cpu.segments,
        cpu.control
    )
}

fn all_memory(mem: &mut mmu::PhysMem) -> Vec<u8> {
    let mut bytes = vec![0; 0x8_0000];
    mem.load(GuestPhys(0), &mut bytes).expect("RAM");
    // Less the accessed and dirty bits of pages, which a fault may leave behind.
    bytes[PAGES as usize..PAGES as usize + 0x2000].fill(0);
    bytes
}

impl Case {
    fn machine(&self) -> Machine {
        let mut machine = (self.start)();
        (self.prepare)(&mut machine);
        machine
    }

    fn title(&self) -> String {
        format!("{}: {}", self.section, self.what)
    }

    /// The instruction alone, in the interpreter: it does what the table says.
    fn alone(&self) -> Machine {
        let mut machine = self.machine();
        let before = (registers(&machine.cpu), all_memory(&mut machine.mem));
        let outcome = machine.step(&self.code);
        let title = self.title();
        match &self.expected {
            Expected::Fault(fault) => {
                assert_eq!(outcome, Err(*fault), "{title}");
                // A switched task faults in the new one.
                if machine.cpu.control.tr.selector != TSS_B_SELECTOR {
                    let after = (registers(&machine.cpu), all_memory(&mut machine.mem));
                    assert_eq!(after.0, before.0, "{title}: a fault with a trace");
                    assert!(after.1 == before.1, "{title}: memory after a fault");
                }
            }
            Expected::Goes(cs, rip, ss, rsp, check) => {
                assert_eq!(outcome, Ok(()), "{title}");
                use dbt::guest::SegmentIndex::{Cs, Ss};
                let went = (
                    machine.selector(Cs),
                    machine.cpu.rip,
                    machine.selector(Ss),
                    machine.cpu.gpr[4],
                );
                assert_eq!(went, (*cs, *rip, *ss, *rsp), "{title}");
                check(&mut machine);
            }
        }
        machine
    }

    /// The instruction behind two others, in the engine. Whether it was translated.
    fn in_engine(&self, interpret_only: bool) -> (String, Vec<u8>, bool) {
        let mut machine = self.machine();
        let base = machine.cpu.segment(dbt::guest::SegmentIndex::Cs).base;
        let at = base + machine.cpu.rip;
        for (offset, byte) in [0x90, 0x90].iter().chain(&self.code).enumerate() {
            machine.write(at - 2 + offset as u64, 1, u64::from(*byte));
        }
        // Handlers begin with instructions that do nothing: one is executed after a fault.
        for at in HANDLER..HANDLER + 0x400 {
            machine.write(at, 1, 0x90);
        }
        machine.cpu.rip -= 2;
        let mut vcpu = machine.into_vcpu(counting(interpret_only));
        vcpu.set_goal(3);
        let stop = vcpu.run();
        let text = format!("{stop:?} {}", registers(vcpu.cpu()));
        let memory = all_memory(&mut vcpu.mem);
        (text, memory, vcpu.statistics().translated > 0)
    }

    /// All three ways, which have to agree. Whether the case was translated.
    fn everywhere(&self) -> bool {
        let title = self.title();
        let mut alone = self.alone();
        let (text, memory, _) = self.in_engine(true);
        let (other, other_memory, native) = self.in_engine(false);
        assert_eq!(text, other, "{title}: interpreted, translated");
        assert!(memory == other_memory, "{title}: memory");
        if matches!(self.expected, Expected::Goes(..)) {
            let alone = format!("Budget {}", registers(&alone.cpu));
            assert_eq!(text, alone, "{title}: engine, alone");
        }
        // Delivered, a fault arrives where its gate leads, one instruction on; or it cannot be.
        if let Expected::Fault(fault) = self.expected {
            let delivered = dbt::interpret::system::deliver::exception(&mut alone.context(), fault);
            let arrived = match delivered {
                Ok(()) => {
                    let rip = alone.cpu.rip.wrapping_add(1);
                    format!("Budget {:x?} {rip:x} ", alone.cpu.gpr)
                }
                Err(_) => "Shutdown".to_owned(),
            };
            let real = alone.cpu.control.cr0 & dbt::guest::flags::CR0_PE == 0;
            assert!(
                real || text.starts_with(&arrived),
                "{title}: {text}, alone {arrived}"
            );
        }
        native
    }
}

#[test]
fn interpreter_and_translator_do_what_the_manual_says() {
    let sections = [
        far::sections(),
        returns::sections(),
        tasks::sections(),
        interrupts::sections(),
        fast::sections(),
        limits::sections(),
    ];
    let (mut count, mut translated) = (0, 0);
    let mut failures = Vec::new();
    for case in sections.into_iter().flatten().flat_map(|it| it.cases) {
        count += 1;
        match std::panic::catch_unwind(|| case.everywhere()) {
            Ok(native) => translated += u32::from(native),
            Err(_) => failures.push(case.title()),
        }
    }
    println!("{count} cases, {translated} of them translated");
    assert!(failures.is_empty(), "{failures:#?}");
    let expected = if TRANSLATES { count * 2 / 3 } else { 0 };
    assert!(translated >= expected, "{translated} of {count}");
}
