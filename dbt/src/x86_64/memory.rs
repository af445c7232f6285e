//! Memory accesses in emitted code: the TLB check, and the one place that emits stores to all
//! copies.

use dynasmrt::{DynamicLabel, DynasmApi, DynasmLabelApi, dynasm};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use mmu::{PAGE_SIZE, TLB_ENTRIES, TlbEntry};

use super::crossing::Crossing;
use super::emitter::{Emitter, Held, Near, Unencodable};
use super::encoded::Encoded;
use super::encoding::{Memory, NO_INDEX, Opcode, WIDE, with_memory, with_register};
use super::moving::Follows;
use super::operands::{Address, HostMemory};
use super::prediction::Start;
use super::registers::{T0, T1, T2, pinned, sized};
use super::stubs::Stub;
use crate::interpret::view;
use crate::record::grouping::{Group, Member, Place};
use crate::run::{UpcallKind, at};

/// RSI's number.
pub(super) const T0_NUMBER: u8 = 6;
const T2_NUMBER: u8 = 8;

impl Emitter<'_> {
    /// The address of an instruction's memory operand, for forms that are not left to helpers.
    pub(super) fn operand(&self, insn: &Instruction) -> Result<Address, Unencodable> {
        Address::of(insn, self.target.mode, self.places).ok_or(Unencodable)
    }

    /// Puts an address's linear value into T0; uses T1. Leaves the flags alone.
    pub(super) fn linear(&mut self, address: &Address) -> Result<(), Unencodable> {
        if let Some(constant) = address.constant() {
            dynasm!(self.ops ; .arch x64 ; mov rsi, QWORD constant as i64);
            self.mark_relative(address, Follows::Address);
            return Ok(());
        }
        if let Some(segment) = address.segment.filter(|_| address.is_bare())
            && let Ok(displacement) = i32::try_from(address.displacement as i64)
            && !address.relative
        {
            dynasm!(self.ops ; .arch x64 ; gs mov rsi, [at::segment_base(segment)]);
            if displacement != 0 {
                self.add_displacement(T0_NUMBER, T0_NUMBER, displacement, true);
            }
            return Ok(());
        }
        if address.is_bare() {
            let offset = address.displacement as i64;
            dynasm!(self.ops ; .arch x64 ; mov rsi, QWORD offset);
            self.mark_relative(address, Follows::Address);
        } else {
            self.address_value(address)?;
        }
        if let Some(segment) = address.segment {
            dynasm!(self.ops
                ; .arch x64
                ; gs mov rdi, [at::segment_base(segment)]
                ; lea rsi, [rsi + rdi]
            );
        }
        Ok(())
    }

    /// Puts the sum of base, index and displacement into T0; uses T1. Leaves the flags alone.
    pub(super) fn address_value(&mut self, address: &Address) -> Result<(), Unencodable> {
        let bytes = self.lea(address)?;
        for (register, place) in [
            (T0, address.base),
            (T1, address.index.map(|(index, _)| index)),
        ] {
            if let Some(place) = place
                && pinned(place).is_none()
            {
                let register = Self::scratch(register);
                dynasm!(self.ops ; .arch x64 ; gs mov Rq(register), [at::gpr(place)]);
            }
        }
        self.put(&bytes);
        Ok(())
    }

    /// `lea T0, …` of the base, index and displacement.
    fn lea(&mut self, address: &Address) -> Result<Encoded, Unencodable> {
        let host = |place: usize, staged: Register| match pinned(place) {
            Some(host) => host,
            None => Self::scratch(staged),
        };
        let (index, scale) = address
            .index
            .map_or((NO_INDEX, 1), |(place, scale)| (host(place, T1), scale));
        let displacement = address.displacement as i32;
        if let Some(base) = address.base {
            let memory = Memory {
                base: host(base, T0),
                index,
                scale,
                displacement,
                displaced: false,
            };
            let rex = if address.narrow { 0 } else { WIDE };
            return Ok(with_memory((rex, Opcode::Short(0x8d)), T0_NUMBER, &memory));
        }
        let index = match index {
            NO_INDEX => Register::None,
            index => sized(index, 8),
        };
        let memory = MemoryOperand::new(
            Register::None,
            index,
            scale,
            displacement.into(),
            8,
            false,
            Register::None,
        );
        let (code, into) = if address.narrow {
            (Code::Lea_r32_m, Register::ESI)
        } else {
            (Code::Lea_r64_m, Register::RSI)
        };
        let lea = Instruction::with2(code, into, memory).map_err(|_| Unencodable)?;
        self.encode(&lea)
    }

    /// Where the operand of an access will be on the host once [`Emitter::check`] has emitted its
    /// translation.
    pub(super) fn host_memory(
        &self,
        insn: usize,
        (place, address): (Place, &Address),
    ) -> HostMemory {
        let Some((member, _)) = self.groups.of(insn, place) else {
            return address.host_memory();
        };
        match self
            .held(member)
            .unwrap_or_else(|| first_held(member, address))
        {
            Held::Addend => address.host_memory(),
            Held::Host(held) => {
                let base = self.register_of(member.group).unwrap_or(T0);
                HostMemory {
                    base,
                    ..HostMemory::AT_T0
                }
                .further((member.displacement - held) as i32)
            }
        }
    }

    /// The register of a group that has been checked, if it has one.
    fn register_of(&self, group: usize) -> Option<Register> {
        self.established[group]?;
        Some(sized(self.group_registers[group]?, 8))
    }

    /// Whether an access belongs to a group that has been checked.
    pub(super) fn is_established(&self, insn: usize, place: Place) -> bool {
        let member = self.groups.of(insn, place);
        member.is_some_and(|(member, _)| self.established[member.group].is_some())
    }

    /// Whether the translation of an access leaves T1 alone, since it has been made.
    pub(super) fn leaves_t1(&self, (insn, place): (usize, Place), address: &Address) -> bool {
        let member = self.groups.of(insn, place);
        let held = member.and_then(|(member, _)| self.held(member));
        held.is_some_and(|held| held != Held::Addend || address.simple_base().is_some())
    }

    /// What T0 or the slot of a group holds, if it has been checked.
    fn held(&self, member: Member) -> Option<Held> {
        let near = self.near.filter(|near| near.group == member.group);
        near.map_or(self.established[member.group], |near| Some(near.held))
    }

    /// Emits the translation of an access of `size` bytes: afterwards the operand is where
    /// [`Emitter::host_memory`] said. On a miss, or where the page needs the doors, the slow path
    /// fills the TLB and resumes, or executes the whole instruction and goes on behind it.
    /// `needed`: the guest's flags must survive.
    pub(super) fn check(
        &mut self,
        insn: usize,
        at: (Place, &Address),
        size: u32,
        write: bool,
        needed: bool,
    ) -> Result<HostMemory, Unencodable> {
        let memory = self.host_memory(insn, at);
        self.check_access(insn, at, size, write, needed)?;
        Ok(memory)
    }

    /// Likewise, where the operand is known.
    pub(super) fn check_access(
        &mut self,
        insn: usize,
        at: (Place, &Address),
        size: u32,
        write: bool,
        needed: bool,
    ) -> Result<(), Unencodable> {
        self.translate(insn, at, size, write, needed)?;
        self.keep_flags();
        Ok(())
    }

    fn translate(
        &mut self,
        insn: usize,
        (place, address): (Place, &Address),
        size: u32,
        write: bool,
        needed: bool,
    ) -> Result<(), Unencodable> {
        if let Some((member, group)) = self.groups.of(insn, place) {
            if self.register_of(member.group).is_some() {
                return Ok(());
            }
            if self.near.is_some_and(|near| near.group != member.group) {
                self.leave_t0();
            }
            let held = match self.held(member) {
                Some(held) => self.reuse(member, address, held)?,
                None => self.check_group(insn, (place, address), member, group, needed)?,
            };
            self.near = Some(Near {
                group: member.group,
                held,
            })
            .filter(|_| self.keeps_t0 && self.may_skip != Some(insn))
            .filter(|_| self.register_of(member.group).is_none());
            return Ok(());
        }
        self.unsure |= self.sure & 1 << insn;
        self.leave_t0();
        self.spoil_flags(needed);
        self.may_skip = Some(insn);
        let mut record = self.record(UpcallKind::Memory, insn);
        record.size = size as u16;
        record.write = u8::from(write);
        let crosses = if write {
            std::mem::replace(&mut self.crossing_store, Crossing::Never)
        } else {
            self.crossing_load(size)
        };
        let mut slow = self.stubs.len();
        let mut added = None;
        let constant = address.constant().filter(|constant| {
            constant % PAGE_SIZE + u64::from(size) <= PAGE_SIZE
                && constant % PAGE_SIZE <= i32::MAX as u64
        });
        if let Some(constant) = constant {
            let stub = self.stub(None, record);
            self.translate_constant(address, constant, write, stub);
        } else if let Some(base) = address.simple_base() {
            let lea = self.lea(address)?;
            record.wants_addend = 1;
            let stub = self.stub(Some(lea), record);
            let displacement = address.displacement as i32;
            let start = (Start::Register(base), displacement);
            if !self.predict((insn, place), start, (size, write), stub) {
                self.look_up((base, displacement), (size, write), stub);
            }
        } else if let Some((base, index, scale)) = address.sum_apart() {
            let lea = self.lea(address)?;
            record.wants_addend = 1;
            let stub = self.stub(Some(lea), record);
            let sum = Memory {
                base,
                index,
                scale,
                displacement: 0,
                displaced: false,
            };
            let displacement = address.displacement as i32;
            let start = (Start::Sum(sum), displacement);
            self.predict((insn, place), start, (size, write), stub);
            added = Some(base);
        } else {
            self.linear_within(insn, address, size, write)?;
            slow = self.stubs.len();
            let stub = self.stub(None, record);
            let start = (Start::Register(T0_NUMBER), 0);
            if !self.predict((insn, place), start, (size, write), stub) {
                self.translate_linear(size, write, stub);
            }
        }
        let resume = self.address().0;
        if let Some(Stub::Upcall {
            record, crossing, ..
        }) = self.stubs.get_mut(slow)
        {
            record.extra = resume;
            *crossing = crosses;
        }
        if let Some(base) = added {
            dynasm!(self.ops ; .arch x64 ; add rsi, Rq(base));
        }
        Ok(())
    }

    /// Looks up the TLB entry of an access of so many bytes from `[base + displacement]` on: T0 is its addend
    /// then, or the host address if T0 was the base. `miss` is where it goes if the access is not to be made
    /// directly.
    pub(super) fn look_up(
        &mut self,
        (base, displacement): (u8, i32),
        access: (u32, bool),
        miss: DynamicLabel,
    ) {
        let addend = self.find_entry((base, displacement), access, miss);
        if base == T0_NUMBER {
            self.add_addend(addend);
        } else {
            self.load_addend(addend);
        }
    }

    /// Likewise, but leaves the offset of the entry in T1, and returns that of its addend from there.
    pub(super) fn find_entry(
        &mut self,
        (base, displacement): (u8, i32),
        (size, write): (u32, bool),
        miss: DynamicLabel,
    ) -> i32 {
        let tlb = at::tlb(view(self.target.mode));
        let tag = tlb + if write { at::WRITE_TAG } else { at::READ_TAG };
        self.address_to_compare(base, displacement);
        self.tlb_index(T2);
        self.compare_tag(tag, PAGE_SIZE as i32 - size as i32, miss);
        tlb + at::ADDEND
    }

    /// Puts a base register and a displacement into T2.
    pub(super) fn address_to_compare(&mut self, base: u8, displacement: i32) {
        match displacement {
            0 => self.put(&with_register((WIDE, Opcode::Short(0x89)), base, T2_NUMBER)),
            _ => self.add_displacement(T2_NUMBER, base, displacement, true),
        }
    }

    /// Compares the address in T2 with the tag of the TLB entry whose offset is in T1. The tags of user
    /// mode are close to what GS points to, and have short displacements.
    pub(super) fn compare_tag(&mut self, tag: i32, limit: i32, stub: DynamicLabel) {
        match i8::try_from(tag) {
            Ok(tag) => {
                self.keep_fused_behind(5, 7);
                dynasm!(self.ops ; .arch x64 ; gs xor r8, [BYTE rdi + tag]);
            }
            Err(_) => {
                self.keep_fused_behind(8, 7);
                dynasm!(self.ops ; .arch x64 ; gs xor r8, [rdi + tag]);
            }
        }
        dynasm!(self.ops ; .arch x64 ; cmp r8, limit ; ja =>stub);
    }

    /// Makes the linear address in T0 a host address, by the TLB entry whose offset is in T1.
    pub(super) fn add_addend(&mut self, addend: i32) {
        match i8::try_from(addend) {
            Ok(addend) => dynasm!(self.ops ; .arch x64 ; gs add rsi, [BYTE rdi + addend]),
            Err(_) => dynasm!(self.ops ; .arch x64 ; gs add rsi, [rdi + addend]),
        }
    }

    /// Loads the addend of the TLB entry whose offset is in T1 into T0.
    pub(super) fn load_addend(&mut self, addend: i32) {
        match i8::try_from(addend) {
            Ok(addend) => dynasm!(self.ops ; .arch x64 ; gs mov rsi, [BYTE rdi + addend]),
            Err(_) => dynasm!(self.ops ; .arch x64 ; gs mov rsi, [rdi + addend]),
        }
    }

    /// Puts the offset of the TLB entry for the address in T0 or T2 into T1.
    pub(super) fn tlb_index(&mut self, address: Register) {
        let mask = ((TLB_ENTRIES - 1) * 32) as i32;
        match (address, self.target.bmi2) {
            (T2, true) => dynasm!(self.ops ; .arch x64 ; rorx edi, r8d, 7),
            (address, bmi2) => {
                let address = Self::scratch(address);
                if bmi2 {
                    dynasm!(self.ops ; .arch x64 ; rorx edi, Rd(address), 7);
                } else {
                    dynasm!(self.ops ; .arch x64 ; mov edi, Rd(address) ; shr edi, 7);
                }
            }
        }
        dynasm!(self.ops ; .arch x64 ; and edi, mask);
    }

    /// Marks what follows from an address, if that follows RIP.
    fn mark_relative(&mut self, address: &Address, follows: Follows) {
        if address.relative {
            self.ops.mark(follows);
        }
    }

    /// Puts the host address of a known address into T0, and goes to `stub` unless its page is in the TLB.
    pub(super) fn translate_constant(
        &mut self,
        address: &Address,
        constant: u64,
        write: bool,
        stub: DynamicLabel,
    ) {
        let offset = (constant % PAGE_SIZE) as i32;
        let entry = (constant >> 12) as usize % TLB_ENTRIES * size_of::<TlbEntry>();
        let entry = at::tlb(view(self.target.mode)) + entry as i32;
        let tag = entry + if write { at::WRITE_TAG } else { at::READ_TAG };
        self.load_constant(T0, constant);
        self.mark_relative(address, Follows::loaded(constant));
        if let Ok(page) = i32::try_from(constant as i64 - i64::from(offset)) {
            dynasm!(self.ops ; .arch x64 ; gs cmp QWORD [tag], page);
            self.mark_relative(address, Follows::EntryPage);
            self.keep_conditional();
        } else {
            dynasm!(self.ops ; .arch x64 ; lea r8, [rsi - offset]);
            self.keep_fused(9);
            dynasm!(self.ops ; .arch x64 ; gs cmp r8, [tag]);
            self.mark_relative(address, Follows::Entry);
        }
        dynasm!(self.ops
            ; .arch x64
            ; jne =>stub
            ; gs add rsi, [entry + at::ADDEND]
        );
        self.mark_relative(address, Follows::Entry);
    }

    /// The first check of a group: covers all that its members touch, with all their rights, and
    /// keeps what leads to the others, which is returned. Where it fails, the rest of the block runs
    /// in code without groups.
    fn check_group(
        &mut self,
        insn: usize,
        (place, address): (Place, &Address),
        member: Member,
        group: Group,
        needed: bool,
    ) -> Result<Held, Unencodable> {
        self.unsure |= self.sure & 1 << insn;
        let below = (group.low - member.displacement) as i32;
        let constant = address.constant();
        let simple = address.simple_base();
        self.spoil_flags(needed);
        if constant.is_none() && simple.is_none() {
            self.linear(address)?;
        }
        let stub = self.ungroup(insn);
        if let Some(constant) = constant {
            self.translate_constant(address, constant, group.write, stub);
        } else {
            let (base, displacement) = match simple {
                Some(base) => (base, address.displacement as i32 + below),
                None => (T0_NUMBER, below),
            };
            let start = (Start::Register(base), displacement);
            let covers = ((group.high - group.low) as u32, group.write);
            if !self.predict((insn, place), start, covers, stub) {
                self.look_up((base, displacement), covers, stub);
            }
        }
        let held = first_held(member, address);
        // Whoever comes here by way of the slow path of this instruction's other access has not
        // seen this check.
        if self.may_skip == Some(insn) {
            return Ok(held);
        }
        if let Some(register) = self.group_registers[member.group] {
            let leads = self.fill_register(register, held, member, address);
            self.established[member.group] = Some(leads);
        } else {
            self.established[member.group] = Some(held);
            self.in_slot[member.group] = false;
            if !(self.keeps_t0 && self.target.late_slots) {
                self.fill_slot(member.group);
            }
        }
        Ok(held)
    }

    /// Puts the host address that T0 leads to into a group's register, and says of what. Leaves the flags alone.
    fn fill_register(
        &mut self,
        register: u8,
        held: Held,
        member: Member,
        address: &Address,
    ) -> Held {
        match (held, address.simple_base()) {
            (Held::Addend, Some(base)) => {
                dynasm!(self.ops ; .arch x64 ; lea Rq(register), [rsi + Rq(base)]);
                Held::Host(member.displacement - i64::from(address.displacement as i32))
            }
            _ => {
                dynasm!(self.ops ; .arch x64 ; mov Rq(register), rsi);
                held
            }
        }
    }

    /// Keeps what T0 holds for later accesses of a group, if there are any. Leaves the flags alone.
    pub(super) fn fill_slot(&mut self, group: usize) {
        if !self.in_slot[group] && self.groups.last(group) >= self.current {
            dynasm!(self.ops ; .arch x64 ; gs mov [at::group(group)], rsi);
            self.in_slot[group] = true;
        }
    }

    /// T0 is about to hold something else than what leads to a group.
    pub(super) fn leave_t0(&mut self) {
        self.settle_stores_by_t0();
        if let Some(near) = self.near.take() {
            self.fill_slot(near.group);
        }
    }

    /// A later access of a group, of which T0 or the slot holds this. Leaves the flags alone. Returns
    /// what T0 holds then.
    fn reuse(
        &mut self,
        member: Member,
        address: &Address,
        held: Held,
    ) -> Result<Held, Unencodable> {
        let slot = at::group(member.group);
        if held == Held::Addend && address.simple_base().is_none() {
            self.settle_stores_by_t0();
            self.fill_slot(member.group);
            self.linear(address)?;
            dynasm!(self.ops
                ; .arch x64
                ; gs mov rdi, [slot]
                ; lea rsi, [rsi + rdi]
            );
            return Ok(Held::Host(member.displacement));
        }
        // T0 leads to no other group any more.
        if self.near.is_none() {
            dynasm!(self.ops ; .arch x64 ; gs mov rsi, [slot]);
        }
        Ok(held)
    }

    /// The doubled store: `emit` writes one copy; it is called for the mirrors first, then for
    /// the native copy. But for [`Emitter::store_late`] no other place emits a store to guest memory.
    pub(super) fn store_all(
        &mut self,
        memory: HostMemory,
        mut emit: impl FnMut(&mut Self, HostMemory) -> Result<(), Unencodable>,
    ) -> Result<(), Unencodable> {
        self.settle_stores();
        for copy in (0..self.target.copies as i32).rev() {
            emit(self, memory.further(copy * self.target.stride))?;
        }
        Ok(())
    }

    /// Copies `size` bytes from the native operand to the mirrors: for instructions that write
    /// memory but cannot be executed twice. Uses T1.
    pub(super) fn mirror_from_native(
        &mut self,
        memory: HostMemory,
        size: u32,
    ) -> Result<(), Unencodable> {
        self.settle_stores();
        let mut done = 0;
        while done < size {
            let piece = match size - done {
                8.. => 8,
                4.. => 4,
                2.. => 2,
                _ => 1,
            };
            let at = memory.further(done as i32);
            self.put(&at.load(T1, piece));
            for copy in 1..self.target.copies as i32 {
                let mirror = at.further(copy * self.target.stride);
                self.put(&mirror.store(T1, piece));
            }
            done += piece;
        }
        Ok(())
    }

    /// Stores a register to all copies.
    pub(super) fn store_register(
        &mut self,
        memory: HostMemory,
        register: Register,
        size: u32,
    ) -> Result<(), Unencodable> {
        self.store_all(memory, |emitter, memory| {
            emitter.put(&memory.store(register, size));
            Ok(())
        })
    }
}

/// What the first access of a group leaves in T0, for its slot. With a base register alone the operand
/// takes the addend, so that the access need not wait for a sum; any other address has been added up
/// already, and no later one is.
fn first_held(member: Member, address: &Address) -> Held {
    match address.simple_base() {
        Some(_) => Held::Addend,
        None => Held::Host(member.displacement),
    }
}
