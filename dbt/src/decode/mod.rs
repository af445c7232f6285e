//! From guest bytes to instructions.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic};
use mmu::{GuestPhys, Linear, PAGE_SIZE};

use crate::guest::{CpuState, Exception, SegmentIndex};
use crate::interpret::Context;
use crate::interpret::operand::code_mask;
use crate::record::features;

/// The most instructions of a block.
pub const BLOCK_LIMIT: usize = 64;
/// A block with so many instructions does not go on behind a jump.
const LONG: usize = 32;
/// The longest instruction, in bytes.
const LONGEST: usize = 15;
/// Bytes that are looked at together: most blocks have fewer.
const WINDOW: usize = 128;

/// Instructions of one page, in the order in which they stand there.
pub struct DecodedBlock {
    /// Guest-physical address of the first byte.
    pub physical: GuestPhys,
    /// Bytes from there to the end of the last.
    pub len: u32,
    /// The page of the last bytes, if the one instruction of the block crosses into it.
    pub second: Option<GuestPhys>,
}

/// The next instruction as the guest's processor understands it: invalid if that lacks the
/// extension. `bytes`: what the decoder began with.
fn decode_next(
    cpu: &CpuState,
    decoder: &mut Decoder<'_>,
    bytes: &[u8],
    options: u32,
    insn: &mut Instruction,
) -> Result<(), DecoderError> {
    decode_any(decoder, bytes, options, insn);
    if insn.is_invalid() {
        return Err(decoder.last_error());
    }
    if !features::present(insn.code(), &cpu.model) {
        return Err(DecoderError::InvalidInstruction);
    }
    Ok(())
}

/// The next instruction, whichever processor has it.
fn decode_any(decoder: &mut Decoder<'_>, bytes: &[u8], options: u32, insn: &mut Instruction) {
    let (start, rip) = (decoder.position(), decoder.ip());
    decoder.decode_out(insn);
    if insn.code() == Code::Pause && decoder.bitness() == 64 {
        let own = &bytes[start..start + insn.len()];
        if is_xchg(own) {
            let options = options | DecoderOptions::NO_PAUSE;
            Decoder::with_ip(64, own, rip, options).decode_out(insn);
        }
    }
}

/// How code of a mode is decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Manner {
    bits: u32,
    options: u32,
}

impl Manner {
    /// As a processor does it now.
    pub fn of(cpu: &CpuState) -> Manner {
        Manner {
            bits: cpu.mode.code_size().bits(),
            options: features::decoder_options(&cpu.model),
        }
    }
}

/// Appends the instructions of some bytes that were decoded before, in the same manner.
pub fn again(manner: Manner, bytes: &[u8], rip: u64, insns: &mut Vec<Instruction>) {
    let mut decoder = Decoder::with_ip(manner.bits, bytes, rip, manner.options);
    while decoder.can_decode() {
        let mut insn = Instruction::default();
        decode_any(&mut decoder, bytes, manner.options, &mut insn);
        insns.push(insn);
    }
}

/// One instruction alone.
fn decode(
    cpu: &CpuState,
    options: u32,
    bytes: &[u8],
    rip: u64,
) -> Result<Instruction, DecoderError> {
    let mut decoder = Decoder::with_ip(cpu.mode.code_size().bits(), bytes, rip, options);
    let mut insn = Instruction::default();
    decode_next(cpu, &mut decoder, bytes, options, &mut insn)?;
    Ok(insn)
}

/// Whether an opcode 0x90 with REP names R8 (REX.B): then it is no PAUSE, but XCHG, as without
/// REP.
fn is_xchg(bytes: &[u8]) -> bool {
    let rex = bytes[bytes.len().saturating_sub(2)];
    rex & 0xf1 == 0x41
}

/// Whether nothing behind this instruction is executed in sequence, or not in the same mode.
fn ends_block(insn: &Instruction) -> bool {
    !matches!(
        insn.flow_control(),
        FlowControl::Next | FlowControl::Interrupt | FlowControl::XbeginXabortXend
    ) || insn.is_invalid()
        || matches!(
            insn.mnemonic(),
            Mnemonic::Stac | Mnemonic::Clac | Mnemonic::Int | Mnemonic::Int3
        )
}

/// Decodes the block at RIP. An instruction that crosses into the next page is a block of its
/// own. `None`: the first instruction is invalid or not in RAM; it is to be interpreted.
/// `insns` is overwritten with the block's instructions.
pub fn block(
    cx: &mut Context<'_>,
    insns: &mut Vec<Instruction>,
) -> Result<Option<DecodedBlock>, Exception> {
    let linear = fetch_address(cx)?;
    let physical = cx.translate_fetch(linear)?;
    Ok(block_at(cx, physical, insns))
}

/// Likewise, where RIP is known to be at this address in memory.
pub fn block_at(
    cx: &mut Context<'_>,
    physical: GuestPhys,
    insns: &mut Vec<Instruction>,
) -> Option<DecodedBlock> {
    insns.clear();
    let rip = cx.cpu.rip;
    let in_page = PAGE_SIZE as usize - physical.page_offset();
    let in_segment = fetchable(cx);
    let room = in_page.min(in_segment);
    let run = run(cx, (physical, rip), room, insns);
    cx.settle();
    let (len, cut) = match run {
        Run::NoMemory => return None,
        Run::Decoded { len, cut } => (len, cut),
    };
    // What is invalid as it stands does not touch the next page.
    if insns.is_empty() && cut && room < LONGEST && in_page < in_segment {
        let mut bytes = [0u8; LONGEST];
        if cx.mem.load(physical, &mut bytes[..room]).is_err() {
            return None;
        }
        let (insn, block) = crossing(cx, physical, &bytes[..room], rip)?;
        insns.push(insn);
        return Some(block);
    }
    (!insns.is_empty()).then_some(DecodedBlock {
        physical,
        len,
        second: None,
    })
}

/// What came of decoding a run of instructions.
enum Run {
    /// Their bytes are not in RAM.
    NoMemory,
    Decoded {
        /// Bytes of the instructions.
        len: u32,
        /// The next one goes on behind the room that there was.
        cut: bool,
    },
}

impl Run {
    fn new(len: usize, cut: bool) -> Run {
        let len = len as u32;
        Run::Decoded { len, cut }
    }
}

/// Appends instructions up to the next that ends a block. `room`: bytes that may be looked at.
fn run(
    cx: &mut Context<'_>,
    (physical, rip): (GuestPhys, u64),
    room: usize,
    insns: &mut Vec<Instruction>,
) -> Run {
    let options = features::decoder_options(&cx.cpu.model);
    let bits = cx.cpu.mode.code_size().bits();
    let mut bytes = [0u8; WINDOW];
    let mut at = 0;
    // A decoder is expensive to make: one serves all instructions of a window.
    loop {
        let begin = at;
        let known = &mut bytes[..WINDOW.min(room - begin)];
        if cx.mem.load(physical.add(begin as u64), known).is_err() {
            return match begin {
                0 => Run::NoMemory,
                _ => Run::new(at, false),
            };
        }
        let last = begin + known.len() == room;
        let mut decoder = Decoder::with_ip(bits, known, rip.wrapping_add(begin as u64), options);
        while last || decoder.position() + LONGEST <= known.len() {
            if insns.len() == BLOCK_LIMIT {
                return Run::new(at, false);
            }
            let mut insn = Instruction::default();
            if let Err(error) = decode_next(cx.cpu, &mut decoder, known, options, &mut insn) {
                return Run::new(at, error == DecoderError::NoMoreBytes);
            }
            at = begin + decoder.position();
            insns.push(insn);
            if ends_block(&insn) {
                return Run::new(at, false);
            }
        }
    }
}

/// Adds to a block what is likely to be executed behind the jump at its end, further on in the page, and
/// what follows behind that, as long as `goes_on` says so of the place, by its address in memory and RIP. For flat
/// code.
pub fn extend(
    cx: &mut Context<'_>,
    insns: &mut Vec<Instruction>,
    decoded: &mut DecodedBlock,
    mut goes_on: impl FnMut(GuestPhys, u64) -> bool,
) {
    if decoded.second.is_some() {
        return;
    }
    let (page, start) = (decoded.physical.page(), insns[0].ip());
    while insns.len() < LONG {
        let last = insns[insns.len() - 1];
        let ways = match last.flow_control() {
            FlowControl::ConditionalBranch if last.is_jcc_short_or_near() => {
                [Some(last.next_ip()), Some(last.near_branch_target())]
            }
            FlowControl::UnconditionalBranch if last.is_jmp_short_or_near() => {
                [None, Some(last.near_branch_target())]
            }
            _ => return,
        };
        let next = ways.into_iter().flatten().find_map(|rip| {
            let ahead = rip >= last.next_ip() && rip / PAGE_SIZE == start / PAGE_SIZE;
            let physical = page.add(rip % PAGE_SIZE);
            (ahead && goes_on(physical, rip)).then_some((physical, rip))
        });
        let Some((physical, rip)) = next else {
            return;
        };
        let before = insns.len();
        let room = PAGE_SIZE as usize - physical.page_offset();
        let Run::Decoded { len, .. } = run(cx, (physical, rip), room, insns) else {
            return;
        };
        if insns.len() == before {
            return;
        }
        decoded.len = (physical.0 - decoded.physical.0) as u32 + len;
    }
}

/// The block of one instruction whose bytes continue on the next page.
fn crossing(
    cx: &mut Context<'_>,
    physical: GuestPhys,
    first: &[u8],
    rip: u64,
) -> Option<(Instruction, DecodedBlock)> {
    let room = first.len();
    let fetchable = fetchable(cx);
    let mut bytes = [0u8; LONGEST];
    bytes[..room].copy_from_slice(first);
    let next = code_address(cx, rip.wrapping_add(room as u64));
    // Whatever is wrong with the second page, the interpreter will say it.
    let second = cx.translate_fetch(next).ok()?;
    cx.mem.load(second, &mut bytes[room..]).ok()?;
    cx.settle();
    let options = features::decoder_options(&cx.cpu.model);
    let insn = decode(cx.cpu, options, &bytes, rip).ok()?;
    let block = DecodedBlock {
        physical,
        len: insn.len() as u32,
        second: Some(second),
    };
    (insn.len() > room && insn.len() <= fetchable).then_some((insn, block))
}

/// The linear address of the next instruction: #GP(0) if it is beyond CS's limit (SDM volume 3, 5.3).
pub fn fetch_address(cx: &Context<'_>) -> Result<Linear, Exception> {
    let rip = cx.cpu.rip;
    if !cx.cpu.code64() && rip > u64::from(cx.cpu.segment(SegmentIndex::Cs).limit) {
        return Err(Exception::general_protection(0));
    }
    Ok(code_address(cx, rip))
}

/// Bytes from RIP on that the code segment has, and that 16-bit code comes to before its instruction
/// pointer wraps.
fn fetchable(cx: &Context<'_>) -> usize {
    if cx.cpu.code64() {
        return usize::MAX;
    }
    let limit = u64::from(cx.cpu.segment(SegmentIndex::Cs).limit);
    let last = limit.min(code_mask(cx.cpu.mode));
    (last + 1).saturating_sub(cx.cpu.rip) as usize
}

/// The linear address of an offset in CS.
pub fn code_address(cx: &Context<'_>, rip: u64) -> Linear {
    if cx.cpu.code64() {
        return Linear(rip);
    }
    let base = cx.cpu.segment(SegmentIndex::Cs).base;
    Linear(base.wrapping_add(rip) & 0xffff_ffff)
}

/// Fetches and decodes the one instruction at RIP.
pub fn one(cx: &mut Context<'_>) -> Result<Instruction, Exception> {
    let rip = cx.cpu.rip;
    let linear = fetch_address(cx)?;
    let mut bytes = [0u8; LONGEST];
    let mut most = LONGEST;
    if !cx.cpu.code64() {
        let limit = u64::from(cx.cpu.segment(SegmentIndex::Cs).limit);
        most = (limit - rip + 1).min(LONGEST as u64) as usize;
    }
    let have = most.min(PAGE_SIZE as usize - linear.page_offset());
    let physical = cx.translate_fetch(linear)?;
    cx.load_physical(physical, &mut bytes[..have])?;
    let options = features::decoder_options(&cx.cpu.model);
    match decode(cx.cpu, options, &bytes[..have], rip) {
        Ok(insn) => return Ok(insn),
        Err(DecoderError::NoMoreBytes) => {}
        Err(_) => return Err(Exception::invalid_opcode()),
    }
    if have == most {
        // Longer than 15 bytes, or cut by the segment's limit.
        return Err(Exception::general_protection(0));
    }
    let next = code_address(cx, rip.wrapping_add(have as u64));
    let physical = cx.translate_fetch(next)?;
    cx.load_physical(physical, &mut bytes[have..most])?;
    decode(cx.cpu, options, &bytes[..most], rip).map_err(|error| match error {
        DecoderError::NoMoreBytes => Exception::general_protection(0),
        _ => Exception::invalid_opcode(),
    })
}
