//! x87 instructions, also with some exceptions unmasked: who raises them, what is not stored then, and where #MF comes.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::common::{Random, setting};
use crate::machine::{CODE, DATA};
use crate::strings::{Bench, Code, address};

/// Where FCW is loaded from.
const CONTROL: u64 = DATA + 0x3e00;
/// Where the state goes now and then.
const AREA: u64 = DATA + 0x3800;

const CODES: &[Code] = &[
    |a| a.fld(dword_ptr(rdi)),
    |a| a.fld(qword_ptr(rdi + 8)),
    |a| a.fld(qword_ptr(r8 + rbx * 2)),
    |a| a.fld(tbyte_ptr(edi + 3)),
    |a| a.fild(word_ptr(rdi)),
    |a| a.fbld(tbyte_ptr(rdi)),
    |a| a.fadd(dword_ptr(rdi + 4)),
    |a| a.fdiv(qword_ptr(r8)),
    |a| a.fidiv(dword_ptr(rdi + 4)),
    |a| a.fcomp(qword_ptr(rdi)),
    |a| a.fst(dword_ptr(rdi)),
    |a| a.fstp(qword_ptr(r8 + 4)),
    |a| a.fstp(tbyte_ptr(rdi + rbx)),
    |a| a.fistp(word_ptr(rdi)),
    |a| a.fisttp(qword_ptr(rdi)),
    |a| a.fbstp(tbyte_ptr(rdi)),
    // fdiv qword ptr fs:[rdi - DATA]; fdiv with a SIB byte that means nothing
    |a| a.db(&[0x64, 0xdc, 0xb7, 0, 0, 0xfe, 0xff]),
    |a| a.db(&[0xdc, 0x74, 0x27, 8]),
    |a| a.fld1(),
    |a| a.fldz(),
    |a| a.fldpi(),
    |a| a.fxch(st0, st1),
    |a| a.fdivp(st1, st0),
    |a| a.fmul_2(st0, st0),
    |a| a.fsqrt(),
    |a| a.frndint(),
    |a| a.fscale(),
    |a| a.ffree(st0),
    |a| a.fcomip(st0, st1),
    |a| a.fcmovb(st0, st1),
    |a| a.fldcw(word_ptr(CONTROL)),
    |a| a.fldcw(word_ptr(CONTROL + 2)),
    |a| a.fnstsw(ax),
    |a| a.wait(),
    |a| a.fnclex(),
    |a| a.fxsave64(ptr(AREA)),
    |a| a.fnstenv(ptr(AREA + 0x200)),
    |a| a.fldenv(ptr(AREA + 0x200)),
    |a| a.fnstenv(ptr(rdi + 5)),
    |a| a.fnsave(ptr(r8 + rbx * 2)),
    |a| a.frstor(ptr(r8 + 16)),
    |a| a.frstor(ptr(AREA + 0x200)),
    |a| a.add(r9d, ebx),
    |a| a.adc(r14, rax),
    |a| a.mov(r15, qword_ptr(rdi)),
    |a| a.mov(qword_ptr(rdi + 8), r15),
];

/// Values that raise something, as doubles and otherwise.
const VALUES: &[u64] = &[
    0,
    1,
    0x3ff0_0000_0000_0000,
    0x4009_21fb_5444_2d18,
    0x7ff0_0000_0000_0001,
    0x7e37_e43c_8800_759c,
    0x7ff0_0000_0000_0000,
    0xc008_0000_8000_0001,
];

fn program(random: &mut Random) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut again = a.create_label();
    let (first, second) = (address(random, 24), DATA + random.below(0x3000));
    // Often all of them.
    let masks = |random: &mut Random| match random.below(3) {
        0 => 0x37f,
        _ => 0x37f & !(random.below(64) & random.below(64)) as u32,
    };
    a.mov(r12d, 6)?;
    a.mov(ebx, 8)?;
    a.mov(dword_ptr(CONTROL), masks(random) | masks(random) << 16)?;
    for place in 0..3 {
        a.mov(rax, VALUES[random.below(VALUES.len() as u64) as usize])?;
        a.mov(qword_ptr(second + 8 * place), rax)?;
    }
    a.set_label(&mut again)?;
    a.mov(rdi, if random.one_in(2) { first } else { second })?;
    a.mov(r8, second)?;
    a.fninit()?;
    a.fld1()?;
    a.fldpi()?;
    a.fldcw(word_ptr(CONTROL))?;
    a.add(r9d, 0x7123_4567)?;
    for _ in 0..random.below(14) {
        CODES[random.below(CODES.len() as u64) as usize](&mut a)?;
        // Nothing waits then.
        if random.one_in(3) {
            a.fnclex()?;
        }
    }
    a.dec(r12d)?;
    a.jne(again)?;
    a.div(r12b)?;
    a.assemble(CODE)
}

#[test]
fn x87_code_ends_as_interpreted() {
    let mut bench = Bench::new();
    let mut random = Random::new(setting("DBT_BLOCKS_SEED", 6));
    for case in 0..setting("DBT_BLOCKS_CASES", 300) {
        let code = program(&mut random).expect("the program can be assembled");
        bench.compare(&format!("{case}: {code:x?}"), &code);
    }
}
