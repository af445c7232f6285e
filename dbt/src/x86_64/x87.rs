//! What the x87 remembers of the last instruction.

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::Instruction;

use super::emitter::Emitter;
use super::moving::Follows;
use crate::guest::Mode;
use crate::interpret::extension::{self, Noted};
use crate::run::at;

impl Emitter<'_> {
    /// How the x87 remembers an instruction: where there are no selectors, by its linear address.
    fn x87_address(&self, insn: &Instruction) -> u64 {
        let mode = self.target.mode;
        if mode.has(Mode::PROTECTED) && !mode.has(Mode::VM86) {
            insn.ip()
        } else {
            self.target.code.linear(insn.ip())
        }
    }

    /// Behind an x87 instruction: it was the last one. A move touches no flags.
    pub(super) fn note_x87(&mut self, insn: &Instruction) {
        let (ip, all) = match extension::noted(insn) {
            None => return,
            Some(Noted::Address) => (self.x87_address(insn), false),
            Some(Noted::Cleared) => (0, true),
        };
        if let Ok(short) = i32::try_from(ip) {
            dynasm!(self.ops ; .arch x64 ; gs mov QWORD [at::X87_INSTRUCTION], short);
        } else {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov DWORD [at::X87_INSTRUCTION], ip as i32
                ; gs mov DWORD [at::X87_INSTRUCTION + 4], (ip >> 32) as i32
            );
            self.ops.mark(Follows::Halves);
        }
        if all {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov QWORD [at::X87_OPERAND], 0
                ; gs mov WORD [at::X87_OPCODE], 0
            );
        }
    }
}
