//! One instruction in the interpreter, with the state in an [`Area`].

use dbt::guest::cpuid::CpuModel;
use dbt::guest::flags::*;
use dbt::guest::{CpuState, Exception, Segment, X87Pointers};
use dbt::interpret::{Context, execute};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use mmu::{GuestPhys, MemoryConfig, PhysMem, TlbSet};

use crate::common::{NoDevices, empty_tlb};
use crate::host::Area;

/// Where the area under test is.
pub const AREA: u64 = 0x2_0000;

pub struct Guest {
    pub cpu: CpuState,
    tlb: Box<TlbSet>,
    pub mem: PhysMem,
}

impl Guest {
    /// A processor with everything that `max` has, at CPL 0 without paging.
    pub fn new(bits: u32) -> Guest {
        let mem = PhysMem::new(&MemoryConfig {
            ram_bytes: 1 << 20,
            copies: 2,
            legacy_hole: false,
        })
        .expect("memory for a test");
        let tlb = empty_tlb();
        let mut cpu = CpuState::at_reset();
        cpu.model = CpuModel::parse("max").expect("a model of that name");
        cpu.control.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_MP;
        cpu.control.cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE;
        cpu.control.xcr0 = 7;
        let data = Segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x10,
            attributes: 0xc093,
        };
        cpu.segments = [data; 6];
        cpu.segments[1].attributes = 0xc09b;
        if bits == 64 {
            cpu.control.efer = EFER_LME | EFER_LMA;
            cpu.segments[1].attributes = 0xa09b;
        }
        cpu.refresh_mode();
        Guest { cpu, tlb, mem }
    }

    pub fn execute(&mut self, bytes: &[u8]) -> Result<(), Exception> {
        self.cpu.refresh_mode();
        let bits = self.cpu.mode.code_size().bits();
        let insn = Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::NONE).decode();
        self.execute_decoded(&insn)
    }

    /// Executes an instruction that was decoded at 0x1000.
    pub fn execute_decoded(&mut self, insn: &Instruction) -> Result<(), Exception> {
        self.cpu.rip = 0x1000;
        self.cpu.refresh_mode();
        let mut cx = Context {
            cpu: &mut self.cpu,
            tlb: &mut self.tlb,
            mem: &mut self.mem,
            platform: &mut NoDevices,
        };
        execute(&mut cx, insn)?;
        assert_eq!(self.cpu.rip, insn.next_ip(), "{insn}");
        Ok(())
    }

    /// Takes the state from an area whose components are all in use.
    pub fn set_state(&mut self, area: &Area) {
        let vector = &mut self.cpu.vector;
        vector.fxsave.0[..160].copy_from_slice(&area.0[..160]);
        vector.mxcsr = area.word(24) as u32;
        vector.pointers = X87Pointers::default();
        for (index, ymm) in vector.ymm.iter_mut().enumerate() {
            for lane in 0..2 {
                ymm[lane] = area.word(160 + 16 * index + 8 * lane);
                ymm[2 + lane] = area.word(576 + 16 * index + 8 * lane);
            }
        }
    }

    /// The state as an area.
    pub fn state(&self) -> Area {
        let mut area = Area([0; 832]);
        let vector = &self.cpu.vector;
        area.0[..24].copy_from_slice(&vector.fxsave.0[..24]);
        area.0[32..160].copy_from_slice(&vector.fxsave.0[32..160]);
        area.set_word(24, 0xffff << 32 | u64::from(vector.mxcsr));
        for (index, ymm) in vector.ymm.iter().enumerate() {
            for lane in 0..2 {
                area.set_word(160 + 16 * index + 8 * lane, ymm[lane]);
                area.set_word(576 + 16 * index + 8 * lane, ymm[2 + lane]);
            }
        }
        area
    }

    pub fn set_memory(&mut self, area: &Area) {
        self.mem
            .store(GuestPhys(AREA), &area.0)
            .expect("a store to RAM");
    }

    pub fn memory(&mut self) -> Area {
        let mut area = Area([0; 832]);
        self.mem
            .load(GuestPhys(AREA), &mut area.0)
            .expect("a load from RAM");
        area
    }
}
