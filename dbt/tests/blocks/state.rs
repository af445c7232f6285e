//! Instructions that load and store words of the processor's state, in 64-bit and 32-bit code of both levels, with
//! operands that cross pages, values that are refused, and pages that are missing at last.

use dbt::EngineOptions;
use dbt::guest::flags;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{DATA, DEVICE, HOLE, READ_ONLY};
use crate::places::CHANGING;
use crate::program::Program;
use crate::side_by_side::{end_alike, looping_in, machines, stop_anywhere};

/// A program that is being made.
struct Maker<'a> {
    a: CodeAssembler,
    random: &'a mut Random,
    long: bool,
    /// Something faults in the fifth round from the end.
    faults: bool,
}

type Made = Result<(), IcedError>;

impl Maker<'_> {
    /// An operand near EDI or ESI, which is close to the end of a page.
    fn operand(&mut self) -> AsmMemoryOperand {
        let at = self.random.below(32) as i32 * 4;
        let near = self.random.one_in(3);
        match (self.long, near) {
            (true, true) => ptr(rsi + at - 64),
            (true, false) => ptr(rdi + at),
            (false, true) => ptr(esi + at - 64),
            (false, false) => ptr(edi + at),
        }
    }

    /// What only happens in one round, if the program is to fault.
    fn at_last(&mut self, code: impl FnOnce(&mut CodeAssembler) -> Made) -> Made {
        if !self.faults || !self.random.one_in(4) {
            return Ok(());
        }
        let mut over = self.a.create_label();
        self.a.cmp(ebp, 5)?;
        self.a.jne(over)?;
        code(&mut self.a)?;
        self.a.set_label(&mut over)?;
        self.a.zero_bytes()
    }

    /// Rounding, exceptions, and what they do to a division and a conversion.
    fn vector_control(&mut self) -> Made {
        let values = [0x1f80u32, 0x3f80, 0x5fa0, 0x7f80, 0xffc0, 0x9fbf, 0x1d80, 0];
        let kinds = if self.faults { values.len() } else { 6 };
        let value = values[self.random.below(kinds as u64) as usize];
        let operand = self.operand();
        self.a.mov(dword_ptr(operand), value as i32)?;
        self.at_last(|a| a.or(byte_ptr(operand + 2), 1))?;
        if self.long && self.random.one_in(3) {
            self.a.vldmxcsr(dword_ptr(operand))?;
        } else {
            self.a.ldmxcsr(dword_ptr(operand))?;
        }
        if self.random.one_in(2) {
            let numbers = self.operand();
            self.a.movss(xmm0, dword_ptr(numbers))?;
            self.a.cvtsi2ss(xmm1, ebp)?;
            self.a.divss(xmm1, xmm0)?;
            self.a.cvtss2si(eax, xmm1)?;
            self.a.add(edx, eax)?;
        }
        let kept = self.operand();
        self.a.stmxcsr(dword_ptr(kept))
    }

    fn push_flags(&mut self) -> Made {
        match self.long {
            true => self.a.pushfq(),
            false => self.a.pushfd(),
        }
    }

    fn pop_flags(&mut self) -> Made {
        match self.long {
            true => self.a.popfq(),
            false => self.a.popfd(),
        }
    }

    /// Flags that are pushed, changed and popped, maybe at the end of a page; those that make a trap, or another
    /// mode, at last only.
    fn flags(&mut self) -> Made {
        const ORDINARY: u64 = flags::ARITHMETIC | flags::DF | flags::IF | flags::IOPL;
        const OTHER: u64 = flags::NT | flags::ID | flags::RF | flags::VIF | flags::VIP;
        let change = self.random.next() & ORDINARY;
        let rare = match self.random.below(4) {
            0 => flags::TF,
            1 => flags::AC,
            _ => self.random.next() & OTHER,
        };
        let moved = self.random.one_in(3);
        let by = self.random.below(16) as i32 - 8;
        if moved {
            // The stack pointer is in R8D or EBX meanwhile.
            match self.long {
                true => self.a.mov(r8, rsp)?,
                false => self.a.mov(ebx, esp)?,
            }
            match self.long {
                true => self.a.lea(rsp, ptr(rsi + by))?,
                false => self.a.lea(esp, ptr(esi + by))?,
            }
        }
        self.push_flags()?;
        let top = if self.long { ptr(rsp) } else { ptr(esp) };
        self.a.xor(dword_ptr(top), change as i32)?;
        self.at_last(|a| a.xor(dword_ptr(top), rare as i32))?;
        self.pop_flags()?;
        if moved {
            match self.long {
                true => self.a.mov(rsp, r8)?,
                false => self.a.mov(esp, ebx)?,
            }
        }
        Ok(())
    }

    /// A frame and what is put into it; its end may be in another page, which may be missing.
    fn frame(&mut self) -> Made {
        let room = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(64) as u32 * 4,
            _ => self.random.below(4096) as u32,
        };
        let level = match self.random.below(12) {
            0 => 1,
            1 if self.faults => 3,
            _ => 0,
        };
        let by = self.random.below(16) as i32 - 8;
        let lower = if self.faults && self.random.one_in(4) {
            DATA as i32
        } else {
            DATA as i32 + 0x2000
        };
        if self.long {
            self.a.mov(r8, rsp)?;
            self.a.mov(r9, rbp)?;
            self.a.lea(rsp, ptr(lower + by))?;
            self.a.enter(room, level)?;
            self.a.mov(qword_ptr(rbp - 8), rax)?;
            self.a.add(rdx, rsp)?;
            self.a.leave()?;
            self.a.mov(rbp, r9)?;
            self.a.mov(rsp, r8)
        } else {
            self.a.mov(ebx, esp)?;
            self.a.push(ebp)?;
            self.a.enter(room, level)?;
            self.a.mov(dword_ptr(ebp - 4), eax)?;
            self.a.add(edx, esp)?;
            self.a.leave()?;
            self.a.pop(ebp)?;
            self.a.mov(esp, ebx)
        }
    }

    /// What is switched on, by a number that is known, unless it is the last round.
    fn extended_control(&mut self) -> Made {
        let number = if self.random.one_in(4) { 1 } else { 0 };
        self.a.mov(ebx, edx)?;
        self.a.mov(ecx, number)?;
        self.at_last(|a| a.mov(ecx, 2))?;
        self.a.xgetbv()?;
        match self.long {
            true => self.a.rdpid(rcx)?,
            false => self.a.rdpid(ecx)?,
        }
        self.a.adc(edx, eax)?;
        self.a.add(edx, ebx)
    }

    /// A line that is somewhere, or nowhere at last.
    fn flush_line(&mut self) -> Made {
        let operand = self.operand();
        match self.random.below(3) {
            0 => self.a.clflush(byte_ptr(operand))?,
            1 => self.a.clflushopt(byte_ptr(operand))?,
            _ => self.a.clwb(byte_ptr(operand))?,
        }
        let place = [HOLE, DEVICE, READ_ONLY][self.random.below(3) as usize] as u32;
        self.a.mov(ecx, place)?;
        let there = if self.long { ptr(rcx) } else { ptr(ecx) };
        self.at_last(|a| a.clflush(byte_ptr(there)))
    }

    fn step(&mut self) -> Made {
        match self.random.below(12) {
            0 => {
                let operand = self.operand();
                self.a.add(dword_ptr(operand), edx)
            }
            1 => {
                let operand = self.operand();
                self.a.adc(edx, dword_ptr(operand))
            }
            2 => self.a.lea(ecx, ptr(ecx + edx * 2 + 7)),
            3 => self.vector_control(),
            4..6 => self.flags(),
            6..8 => self.frame(),
            8..10 => self.extended_control(),
            _ => self.flush_line(),
        }
    }

    /// All flags, and a way for each to be seen.
    fn look(&mut self) -> Made {
        self.push_flags()?;
        match self.long {
            true => self.a.pop(rax)?,
            false => self.a.pop(eax)?,
        }
        let operand = self.operand();
        self.a.xor(dword_ptr(operand), eax)
    }

    fn make(mut self) -> Result<Vec<u8>, IcedError> {
        let mut again = self.a.create_label();
        self.a.mov(ebp, 40)?;
        self.a.set_label(&mut again)?;
        self.a.mov(edi, DATA as i32 + 0x800)?;
        self.a.mov(esi, DATA as i32 + 0x1000)?;
        self.at_last(|a| a.mov(esi, HOLE as i32))?;
        for _ in 0..2 + self.random.below(8) {
            self.step()?;
        }
        self.look()?;
        self.a.dec(ebp)?;
        self.a.jne(again)?;
        self.a.hlt()?;
        self.a.assemble(CHANGING)
    }
}

fn program(seed: u64) -> (bool, Program) {
    let mut random = Random::new(seed);
    let faults = seed.is_multiple_of(3);
    let long = !random.one_in(3);
    let bits = if long { 64 } else { 32 };
    // 32-bit kernels have no other stack for faults.
    let ring = if random.one_in(2) && (long || !faults) {
        0
    } else {
        3
    };
    let maker = Maker {
        a: CodeAssembler::new(bits).expect("a width of code"),
        random: &mut random,
        long,
        faults,
    };
    let code = maker.make().expect("the loop can be assembled");
    let mut program = looping_in(bits, &code);
    program.ring = ring;
    (faults, program)
}

fn engines(counted: bool) -> Vec<EngineOptions> {
    let engine = |bits: usize| EngineOptions {
        counted,
        grouping: bits != 2,
        precise_flags: bits != 3 || counted,
        lazy_flags: bits != 4,
        crossing: bits != 1,
        system_inline: bits != 6,
        memory_inline: bits != 6,
        long_blocks: bits & 2 == 0,
        traces: (bits & 1 == 1).then_some(2),
        long_traces: (bits == 5).then_some(20),
        samples: false,
        prediction: (bits == 5).then_some(1),
        eager_prediction: true,
        registers: (bits & 1 == 1).then_some(1),
        cold: 0,
        ..EngineOptions::default()
    };
    (0..7).map(engine).collect()
}

#[test]
fn words_of_the_state_end_alike() {
    let cases = setting("STATE_CASES", 400);
    end_alike(&mut machines(engines(false)), cases, program, |options| {
        options.precise_flags
    });
}

#[test]
fn words_of_the_state_stop_anywhere() {
    stop_anywhere(engines(true), setting("STATE_CASES", 400) / 8, program);
}
