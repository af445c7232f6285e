//! What is known of the registers within a block: which hold the same unknown value, and what has been added
//! to it.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::classify::{self, Class, Kind};
use super::elements;
use crate::guest::Register as Guest;

/// What is known of a register: it holds an unknown value, which this version names, plus an
/// offset.
#[derive(Clone, Copy, Default)]
pub struct Value {
    /// Names the unknown value.
    pub version: u32,
    /// What has been added to it.
    pub offset: i64,
}

/// The values of the general-purpose registers. Version r + 1 is what register r holds before the block.
#[derive(Default)]
pub struct Values {
    values: [Value; 16],
    latest: u32,
    code64: bool,
    forgot: bool,
}

impl Values {
    /// At the beginning of a block, of 64-bit code or not.
    pub fn begin(&mut self, code64: bool) {
        self.latest = 0;
        self.code64 = code64;
        self.forgot = false;
        self.forget_all();
    }

    /// What is known of a register.
    pub fn of(&self, register: usize) -> Value {
        self.values[register]
    }

    /// Whether the code is 64-bit code.
    pub fn code64(&self) -> bool {
        self.code64
    }

    /// Bytes that a push moves the stack pointer by.
    pub fn word(&self) -> i64 {
        if self.code64 { 8 } else { 4 }
    }

    /// Whether an instruction may have changed anything, the bases of segments included.
    pub fn forgot(&self) -> bool {
        self.forgot
    }

    /// The registers, a bit each, that hold what they held at the beginning.
    pub fn unchanged(&self) -> u16 {
        let same = |(register, value): (usize, &Value)| {
            let same = value.version as usize == register + 1 && value.offset == 0;
            u16::from(same) << register
        };
        let values = self.values.iter().enumerate();
        values.map(same).fold(0, |mask, bit| mask | bit)
    }

    fn fresh(&mut self) -> Value {
        self.latest += 1;
        Value {
            version: self.latest,
            offset: 0,
        }
    }

    fn forget_all(&mut self) {
        for register in 0..16 {
            self.values[register] = self.fresh();
        }
    }

    /// Follows what an instruction does to the registers. `true`: nothing is known any more, the bases of segments
    /// included.
    pub fn follow(&mut self, insn: &Instruction, class: &Class) -> bool {
        let word = self.word();
        match class.kind {
            Kind::Helper | Kind::SwapGs | Kind::WriteBase | Kind::LoadSegment => {
                self.forget_all();
                self.forgot = true;
                return true;
            }
            Kind::Push | Kind::PushFlags | Kind::CallInto | Kind::CallIndirectInto => {
                self.values[Guest::RSP].offset -= word;
            }
            Kind::ReturnInto => {
                self.values[Guest::RSP].offset += word + classify::released(insn);
            }
            Kind::PopFlags => self.values[Guest::RSP].offset += word,
            Kind::Pop => {
                self.values[Guest::RSP].offset += word;
                self.values[insn.op0_register().number()] = self.fresh();
            }
            Kind::Enter if classify::frames(insn) == 0 => {
                let stack = &mut self.values[Guest::RSP];
                stack.offset -= word;
                let frame = *stack;
                stack.offset -= i64::from(insn.immediate16());
                self.values[Guest::RBP] = frame;
            }
            Kind::Leave => {
                let mut frame = self.values[Guest::RBP];
                frame.offset += word;
                self.values[Guest::RSP] = frame;
                self.values[Guest::RBP] = self.fresh();
            }
            Kind::Element(_) | Kind::ElementPair(_) => self.elements(insn, class),
            _ => self.results(insn, class),
        }
        false
    }

    /// A string instruction goes forward in code that counts on it.
    fn elements(&mut self, insn: &Instruction, class: &Class) {
        let before = self.values;
        self.results(insn, class);
        for index in elements::indexes(insn) {
            let register = index.register.number();
            self.values[register] = if index.register.size() as i64 == self.word() {
                Value {
                    offset: before[register].offset + i64::from(elements::size(insn)),
                    ..before[register]
                }
            } else {
                self.fresh()
            };
        }
    }

    fn results(&mut self, insn: &Instruction, class: &Class) {
        let known = self.known_result(insn);
        let mut writes = class.writes;
        while writes != 0 {
            self.values[writes.trailing_zeros() as usize] = self.fresh();
            writes &= writes - 1;
        }
        if let Some((register, value)) = known {
            self.values[register] = value;
        }
    }

    /// The register and its new value, where an instruction adds a constant or copies.
    fn known_result(&self, insn: &Instruction) -> Option<(usize, Value)> {
        if insn.op0_kind() != OpKind::Register {
            return None;
        }
        let into = insn.op0_register();
        let whole = if self.code64 {
            into.is_gpr64()
        } else {
            into.is_gpr32()
        };
        if !whole {
            return None;
        }
        let into_number = into.number();
        let mut value = self.values[into_number];
        let constant = || {
            let kind = insn.op1_kind();
            let immediate = matches!(
                kind,
                OpKind::Immediate8to64
                    | OpKind::Immediate32to64
                    | OpKind::Immediate8to32
                    | OpKind::Immediate32
            );
            immediate.then(|| i64::from(insn.immediate(1) as i32))
        };
        match insn.mnemonic() {
            Mnemonic::Add => value.offset = value.offset.wrapping_add(constant()?),
            Mnemonic::Sub => value.offset = value.offset.wrapping_sub(constant()?),
            Mnemonic::Inc => value.offset = value.offset.wrapping_add(1),
            Mnemonic::Dec => value.offset = value.offset.wrapping_sub(1),
            Mnemonic::Mov if insn.op1_kind() == OpKind::Register => {
                let from = insn.op1_register();
                if !from.is_gpr() || from.size() != into.size() {
                    return None;
                }
                value = self.values[from.number()];
            }
            Mnemonic::Lea => {
                let base = insn.memory_base();
                if !base.is_gpr()
                    || base.size() != into.size()
                    || insn.memory_index() != Register::None
                {
                    return None;
                }
                value = self.values[base.number()];
                let mut displacement = insn.memory_displacement64() as i64;
                if base.is_gpr32() {
                    displacement = i64::from(displacement as i32);
                }
                value.offset = value.offset.wrapping_add(displacement);
            }
            _ => return None,
        }
        Some((into_number, value))
    }
}
