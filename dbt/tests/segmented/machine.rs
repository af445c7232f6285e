//! A processor with a megabyte of memory in one of the modes, whose faults end the run.

use dbt::decode;
use dbt::guest::{CpuState, DescriptorTable, Segment, SegmentIndex, flags};
use dbt::{EngineOptions, Stop, Vcpu};
use iced_x86::Instruction;
use mmu::{GuestPhys, MemoryConfig, PhysMem};

use crate::common::{NoDevices, Random};

const RAM: u64 = 1 << 20;
/// More instructions than any program has.
pub const BUDGET: u64 = 2000;

/// Modes that are not flat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Real,
    Vm86,
    Protected16,
    /// 32-bit code with a stack of 16 bits.
    Narrow32,
    /// 32-bit code and stack, with bases and limits.
    Based32,
    /// 32-bit code of a kernel, in flat segments but for FS and GS.
    Flat32,
}

/// Selectors that protected mode loads: null ones, usual ones, and others.
pub const SELECTORS: [u16; 16] = [
    0, 3, 0x08, 0x10, 0x10, 0x18, 0x1b, 0x20, 0x23, 0x28, 0x30, 0x38, 0x40, 0x48, 0x14, 0x50,
];

/// What they name, from the second on.
const DESCRIPTORS: [u64; 9] = [
    0x00cf_9b00_0000_ffff, // flat code
    0x00cf_9300_0000_ffff, // flat data
    0x00cf_f300_0000_ffff, // and that of programs
    0x0040_9312_3456_07ff, // data of 2 KiB
    0x1280_9100_0700_0000, // which cannot be written, of 4 KiB
    0x00cf_9200_0000_ffff, // not accessed yet
    0x0040_9700_0000_00ff, // expands down
    0x00cf_1300_0000_ffff, // not present
    0x0000_8900_0000_00ff, // a task
];

/// Where the descriptors are.
const TABLE: u64 = 0x2000;

impl Kind {
    pub fn bits(self) -> u32 {
        match self {
            Kind::Real | Kind::Vm86 | Kind::Protected16 => 16,
            Kind::Narrow32 | Kind::Based32 | Kind::Flat32 => 32,
        }
    }
}

pub struct Machine {
    pub vcpu: Vcpu,
}

impl Machine {
    pub fn new(options: EngineOptions) -> Machine {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: RAM,
            copies: 2,
            legacy_hole: false,
        })
        .expect("a megabyte of guest memory");
        let vcpu = Vcpu::new(mem, Box::new(NoDevices), options).expect("a virtual processor");
        Machine { vcpu }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        self.vcpu
            .mem
            .store(GuestPhys(at), bytes)
            .expect("a store to RAM");
        self.vcpu.invalidate(GuestPhys(at), bytes.len() as u32);
    }

    /// Puts code where execution begins.
    pub fn write_code(&mut self, code: &[u8]) {
        let cpu = self.vcpu.cpu();
        let at = cpu.segment(SegmentIndex::Cs).base + cpu.rip;
        self.write(at, code);
    }

    /// Registers and segments of a mode: offsets that mostly are within limits, which mostly are
    /// usual.
    pub fn set_up(&mut self, kind: Kind, random: &mut Random) {
        let cpu = self.vcpu.cpu_mut();
        *cpu = CpuState::at_reset();
        for register in &mut cpu.gpr[..8] {
            *register = match random.below(8) {
                0 => random.next() & 0xffff_ffff,
                1 => 0xfff0 + random.below(32),
                2 => 0x0ff0 + random.below(32),
                _ => random.below(0x900),
            };
        }
        cpu.gpr[4] = 0x800 + random.below(4);
        cpu.rip = 0;
        cpu.control.cr0 &= !(flags::CR0_CD | flags::CR0_NW);
        cpu.control.cr4 = flags::CR4_OSFXSR;
        // Any fault shuts the processor down, and leaves everything as it was before.
        let none = DescriptorTable { base: 0, limit: 0 };
        (cpu.control.idtr, cpu.control.gdtr) = (none, none);
        let typed = !matches!(kind, Kind::Real | Kind::Vm86);
        for index in 0..6 {
            let mut segment = Segment::real(0x1000 + random.below(0x8000) as u16);
            if kind == Kind::Vm86 {
                segment.attributes |= 3 << 5;
            } else if random.one_in(3) {
                segment.limit = random.pick(&[0xfff, 0x81f, u32::MAX, 0x1_2345, 0]);
            }
            if typed {
                segment.base = 0x1_0000 + random.below(0xa_0000);
                segment.attributes = match random.below(8) {
                    0 => 0x91,
                    1 => 0x9b,
                    2 => 0x97,
                    3 => 0x13,
                    _ => 0x93,
                };
                if kind != Kind::Protected16 && random.one_in(2) {
                    segment.base = 0;
                }
            }
            cpu.segments[index] = segment;
        }
        let big = |wide: bool| if wide { Segment::BIG } else { 0 };
        let cs = cpu.segment_mut(SegmentIndex::Cs);
        if typed {
            cs.attributes = 0x9b | big(kind.bits() == 32);
        }
        cs.limit = cs.limit.max(0xfff);
        let ss = cpu.segment_mut(SegmentIndex::Ss);
        if typed {
            let wide = match kind {
                Kind::Based32 | Kind::Flat32 => true,
                Kind::Protected16 => random.one_in(3),
                _ => false,
            };
            ss.attributes = 0x93 | big(wide);
        }
        ss.limit = ss.limit.max(0xfff);
        if typed || kind == Kind::Vm86 {
            cpu.control.cr0 |= flags::CR0_PE;
        }
        if kind == Kind::Vm86 {
            cpu.system_flags |= flags::VM;
        }
        if kind == Kind::Flat32 {
            for index in [SegmentIndex::Es, SegmentIndex::Ss, SegmentIndex::Ds] {
                let segment = cpu.segment_mut(index);
                segment.attributes = 0x93 | Segment::BIG | Segment::GRANULAR;
            }
            for index in [
                SegmentIndex::Es,
                SegmentIndex::Cs,
                SegmentIndex::Ss,
                SegmentIndex::Ds,
            ] {
                let segment = cpu.segment_mut(index);
                (segment.base, segment.limit) = (0, u32::MAX);
            }
            cpu.rip = 0x4000;
        }
        if typed {
            cpu.control.gdtr = DescriptorTable {
                base: TABLE,
                limit: 8 * DESCRIPTORS.len() as u16 + 7,
            };
        }
        cpu.refresh_mode();
        if typed {
            let descriptors = DESCRIPTORS.map(u64::to_le_bytes);
            self.write(TABLE + 8, descriptors.as_flattened());
        }
    }

    /// Runs so many instructions at the most.
    pub fn run(&mut self, budget: u64) -> Stop {
        let goal = self.vcpu.instructions() + budget;
        self.vcpu.set_goal(goal);
        self.vcpu.run()
    }

    /// Runs by single instructions as long as they are of a kind. How many there were.
    pub fn step_while(&mut self, wanted: impl Fn(&Instruction) -> bool) -> (u64, Stop) {
        for step in 0..BUDGET {
            let insn = decode::one(&mut self.vcpu.context());
            if insn.is_ok_and(|insn| !wanted(&insn)) {
                return (step, Stop::Budget);
            }
            let stop = self.run(1);
            if stop != Stop::Budget {
                return (BUDGET, stop);
            }
        }
        (BUDGET, Stop::Budget)
    }

    fn memory(&mut self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        for (page, part) in bytes.chunks_mut(0x1000).enumerate() {
            self.vcpu
                .mem
                .load(GuestPhys(page as u64 * 0x1000), part)
                .expect("a load from RAM");
        }
        bytes
    }
}

/// What two machines do not have in common. AF is undefined behind logical operations.
pub fn differences(left: &mut Machine, right: &mut Machine) -> Option<String> {
    let state = |machine: &Machine| {
        let cpu = machine.vcpu.cpu();
        format!(
            "{:x?} rip {:x} flags {:x} {:x?} {:x?} {:x} x87 {:x?} {:x?}",
            &cpu.gpr[..8].iter().map(|&it| it as u32).collect::<Vec<_>>(),
            cpu.rip,
            cpu.rflags() & !flags::AF,
            cpu.segments,
            &cpu.vector.ymm[..8],
            cpu.vector.mxcsr,
            cpu.vector.pointers,
            &cpu.vector.fxsave.0[..160],
        )
    };
    let (mine, theirs) = (state(left), state(right));
    if mine != theirs {
        return Some(format!("\n{mine}\n{theirs}"));
    }
    let (mine, theirs) = (left.memory(), right.memory());
    let at = mine.iter().zip(&theirs).position(|(a, b)| a != b)?;
    Some(format!(
        "at {at:#x}: {:02x?} {:02x?}",
        &mine[at..(at + 8).min(mine.len())],
        &theirs[at..(at + 8).min(theirs.len())]
    ))
}
