//! One virtual processor's registers. Emitted code reaches them through the host's GS.

use std::sync::atomic::AtomicU32;

use super::cpuid::CpuModel;
use super::flags::*;
use super::mode::Mode;
use super::segment::{DescriptorTable, Segment, SegmentIndex};
use super::time_line::TimeLine;

/// Number of a general-purpose register, in the processor's encoding order.
#[allow(missing_docs)]
#[allow(non_snake_case)]
pub mod Register {
    pub const RAX: usize = 0;
    pub const RCX: usize = 1;
    pub const RDX: usize = 2;
    pub const RBX: usize = 3;
    pub const RSP: usize = 4;
    pub const RBP: usize = 5;
    pub const RSI: usize = 6;
    pub const RDI: usize = 7;
}

/// Control, debug and system-table registers.
#[derive(Clone, Debug, PartialEq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Control {
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
    /// DR0 to DR3, (unused), (unused), DR6, DR7.
    pub dr: [u64; 8],
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub ldtr: Segment,
    pub tr: Segment,
    pub pkru: u32,
    /// The four page-directory-pointer entries that PAE paging loads with CR3.
    pub pdpte: [u64; 4],
}

/// Model-specific registers that hold plain values.
#[derive(Clone, Debug, PartialEq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// Added to the platform's time-stamp counter (written by WRMSR to IA32_TSC).
    pub tsc_offset: u64,
    pub tsc_adjust: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub mcg_ext_ctl: u64,
    /// CTL, STATUS, ADDR, MISC of ten machine-check banks.
    pub mc_banks: [[u64; 4]; 10],
    pub mc_ctl2: [u64; 10],
    pub feature_control: u64,
    pub debugctl: u64,
}

/// Vector and floating-point state.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct VectorState {
    /// YMM0 to YMM15, low lane first.
    pub ymm: [[u64; 4]; 16],
    /// The legacy FXSAVE image (64-bit format): x87, MXCSR; its XMM part is not used.
    /// While guest code runs on an x86-64 host the x87 registers live in the host's.
    pub fxsave: FxsaveArea,
    /// MXCSR.
    pub mxcsr: u32,
    /// Which x87 instruction was the last, and which raised an unmasked exception.
    pub pointers: X87Pointers,
    /// 0 if FCW masks all exceptions of the x87. Kept by whoever changes FCW, for
    /// [`Mode::X87_UNMASKED`].
    pub x87_unmasked: u8,
}

/// What the x87 remembers of its last instruction (SDM volume 1, 8.1.8). CPUID says that the
/// operand is noted for unmasked exceptions only, and that the selectors read as zero; the
/// opcode goes with the operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct X87Pointers {
    /// FIP: the offset of the last instruction that is no control instruction; its linear
    /// address in real and virtual-8086 mode.
    pub instruction: u64,
    /// FDP: the offset of the operand of the last instruction that raised an unmasked exception
    /// and had one in memory; its linear address in real and virtual-8086 mode.
    pub operand: u64,
    /// FOP of the last instruction that raised an unmasked exception: the lower three bits of its
    /// first opcode byte, and its second byte.
    pub opcode: u16,
}

/// 512 bytes, aligned as FXSAVE wants them.
#[derive(Clone, Debug, PartialEq)]
#[repr(C, align(16))]
pub struct FxsaveArea(pub [u8; 512]);

/// The registers of one virtual processor.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Offset of the next instruction in CS (RIP, EIP or IP, zero-extended).
    pub rip: u64,
    /// CF, PF, AF, ZF, SF and OF at their EFLAGS positions; nothing else.
    pub arithmetic_flags: u64,
    /// TF, IOPL, NT, RF, VM, AC, VIF, VIP and ID at their EFLAGS positions.
    pub system_flags: u64,
    /// The lower half of what emitted code polls: the lowest address for its stack.
    pub return_limit: u32,
    /// Nonzero asks emitted code to leave at its next poll. Other threads set it. It is the upper
    /// half of what emitted code polls.
    pub exit_request: AtomicU32,
    /// EFLAGS.IF as 0 or 1, a byte so that emitted code sets it without touching flags.
    pub interrupt_flag: u8,
    /// EFLAGS.DF as 0 or 1.
    pub direction_flag: u8,
    /// 1 while maskable interrupts and debug traps wait for one more instruction
    /// (after STI, MOV SS, POP SS).
    pub interrupt_shadow: u8,
    /// 1 after HLT, until an interrupt arrives.
    pub halted: u8,
    /// The mode bits of the current state; kept by [`CpuState::refresh_mode`].
    pub mode: Mode,
    /// 1 while an NMI handler runs: further NMIs wait for IRET.
    pub nmi_masked: u8,
    /// DR6 bits of debug traps to deliver at this instruction boundary.
    pub pending_debug: u64,
    /// Guest instructions executed so far.
    pub instructions: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// Control registers and system tables.
    pub control: Control,
    /// Model-specific registers.
    pub msrs: Msrs,
    /// Vector and floating-point registers.
    pub vector: VectorState,
    /// What CPUID says.
    pub model: CpuModel,
    /// 1 if no single-step trap follows the instruction that has just completed.
    pub step_suppressed: u8,
    /// 1 if the instruction at RIP is a repeated string instruction that has done some of its
    /// iterations.
    pub within_string: u8,
    /// 1 while the machine's gate of address line 20 is closed; after a change, the TLBs are to
    /// be flushed.
    pub a20_closed: u8,
    /// 1 if the machine's time-stamp counter is that of the host but for offset and rate.
    pub real_time: u8,
    /// What is known of that.
    pub time_line: TimeLine,
}

impl Default for CpuState {
    fn default() -> Self {
        CpuState::at_reset()
    }
}

impl CpuState {
    /// The state after power-up (SDM volume 3, table 10-1): real mode, F000:FFF0.
    pub fn at_reset() -> CpuState {
        let data = Segment::real(0);
        let mut code = Segment::real(0xf000);
        code.base = 0xffff_0000;
        code.attributes |= Segment::CODE;
        let table = DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        let system = |kind: u16| Segment {
            limit: 0xffff,
            attributes: Segment::PRESENT | kind,
            ..Segment::default()
        };
        let mut fxsave = FxsaveArea([0; 512]);
        fxsave.0[0] = 0x40; // FCW after power-up
        fxsave.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        let mut cpu = CpuState {
            gpr: [0; 16],
            rip: 0xfff0,
            arithmetic_flags: 0,
            system_flags: 0,
            interrupt_flag: 0,
            direction_flag: 0,
            interrupt_shadow: 0,
            halted: 0,
            return_limit: 0,
            exit_request: AtomicU32::new(0),
            mode: Mode(0),
            nmi_masked: 0,
            pending_debug: 0,
            instructions: 0,
            segments: [data, code, data, data, data, data],
            control: Control {
                cr0: CR0_CD | CR0_NW | CR0_ET,
                cr2: 0,
                cr3: 0,
                cr4: 0,
                efer: 0,
                xcr0: 1,
                dr: [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400],
                gdtr: table,
                idtr: table,
                ldtr: system(2),
                tr: system(11),
                pkru: 0,
                pdpte: [0; 4],
            },
            msrs: Msrs {
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                // Locked by firmware, local machine checks allowed.
                feature_control: 0x10_0001,
                ..Msrs::default()
            },
            vector: VectorState {
                ymm: [[0; 4]; 16],
                fxsave,
                pointers: X87Pointers::default(),
                mxcsr: 0x1f80,
                x87_unmasked: 1,
            },
            model: CpuModel::default(),
            step_suppressed: 0,
            within_string: 0,
            a20_closed: 0,
            real_time: 0,
            time_line: TimeLine::default(),
        };
        cpu.gpr[Register::RDX] = u64::from(cpu.model.signature());
        cpu.refresh_mode();
        cpu
    }

    /// Current privilege level, 0 to 3: SS.DPL, as processors keep it (3 in virtual-8086
    /// mode, 0 in real mode).
    pub fn cpl(&self) -> u8 {
        if self.control.cr0 & CR0_PE == 0 {
            0
        } else if self.system_flags & VM != 0 {
            3
        } else {
            self.segment(SegmentIndex::Ss).dpl()
        }
    }

    /// A segment register.
    pub fn segment(&self, index: SegmentIndex) -> &Segment {
        &self.segments[index as usize]
    }

    /// A segment register, to change; call [`CpuState::refresh_mode`] afterwards.
    pub fn segment_mut(&mut self, index: SegmentIndex) -> &mut Segment {
        &mut self.segments[index as usize]
    }

    /// RFLAGS put together.
    pub fn rflags(&self) -> u64 {
        self.arithmetic_flags
            | self.system_flags
            | RESERVED_1
            | (u64::from(self.interrupt_flag) << 9)
            | (u64::from(self.direction_flag) << 10)
    }

    /// Sets the flags in `mask` from `value` and refreshes the mode.
    pub fn set_rflags(&mut self, value: u64, mask: u64) {
        let arithmetic = mask & ARITHMETIC;
        self.arithmetic_flags = (self.arithmetic_flags & !arithmetic) | (value & arithmetic);
        let system = mask & SYSTEM;
        self.system_flags = (self.system_flags & !system) | (value & system);
        if mask & IF != 0 {
            self.interrupt_flag = u8::from(value & IF != 0);
        }
        if mask & DF != 0 {
            self.direction_flag = u8::from(value & DF != 0);
        }
        self.refresh_mode();
    }

    /// Recomputes [`CpuState::mode`] after any change of control registers, CS, SS, DS, ES,
    /// system flags or debug registers.
    pub fn refresh_mode(&mut self) {
        self.mode = Mode::of(self);
    }

    /// EFER.LMA.
    pub fn long_mode(&self) -> bool {
        self.control.efer & EFER_LMA != 0
    }

    /// CS's base and limit, if code is fetched by them.
    pub fn code_bounds(&self) -> (u32, u32) {
        if self.code64() {
            return (0, u32::MAX);
        }
        let cs = self.segment(SegmentIndex::Cs);
        (cs.base as u32, cs.limit)
    }

    /// Long mode and CS.L: 64-bit code is running.
    pub fn code64(&self) -> bool {
        self.mode.has(Mode::CODE64)
    }

    /// CR0.PE and not virtual-8086.
    pub fn protected(&self) -> bool {
        self.control.cr0 & CR0_PE != 0 && self.system_flags & VM == 0
    }
}
