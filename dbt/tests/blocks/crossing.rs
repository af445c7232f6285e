//! Accesses that cross from one page into the next, at every distance from the boundary, in
//! pages that are elsewhere in memory, and in front of pages that they must not touch.

use dbt::{EngineOptions, Stop};
use iced_x86::code_asm::*;

use crate::machine::{CODE, DATA, HOLE, Machine, READ_ONLY};
use crate::program::{Program, Recipe};

type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// RDI points to what they access; what they have read goes elsewhere.
const ACCESSES: &[(&str, Code)] = &[
    ("load of 2", |a| a.mov(bx, word_ptr(rdi))),
    ("load of 4", |a| a.movsxd(rbx, dword_ptr(rdi))),
    ("load of 8", |a| a.mov(r9, qword_ptr(rdi))),
    ("load with index", |a| a.mov(rbx, qword_ptr(rdi + r12 * 1))),
    ("load, absolute displacement", |a| {
        a.mov(rbx, qword_ptr(rdi + 0x1000))
    }),
    ("load of 16", |a| a.movups(xmm1, xmmword_ptr(rdi))),
    ("load of 16, aligned", |a| a.movaps(xmm1, xmmword_ptr(rdi))),
    ("load of 32", |a| a.vmovups(ymm1, ymmword_ptr(rdi))),
    ("load and add 32", |a| {
        a.vaddpd(ymm1, ymm2, ymmword_ptr(rdi))
    }),
    ("load of 10", |a| {
        a.fld(tbyte_ptr(rdi))?;
        a.fstp(tbyte_ptr(r13))
    }),
    ("comparison", |a| {
        a.cmp(r9, qword_ptr(rdi))?;
        a.setb(bl)
    }),
    ("sum with carry", |a| {
        a.stc()?;
        a.adc(rbx, qword_ptr(rdi))
    }),
    ("pop", |a| {
        a.mov(rsp, rdi)?;
        a.pop(rbx)
    }),
    ("push", |a| {
        a.lea(rsp, ptr(rdi + 8))?;
        a.push(rbx)
    }),
    ("store of 2", |a| a.mov(word_ptr(rdi), bx)),
    ("store of 4", |a| a.mov(dword_ptr(rdi), 0x1234_5678)),
    ("store of 8", |a| a.mov(qword_ptr(rdi), r9)),
    ("store with index", |a| a.mov(qword_ptr(rdi + r12 * 1), r9)),
    ("store of 16", |a| a.movups(xmmword_ptr(rdi), xmm3)),
    ("store of 16, aligned", |a| a.movaps(xmmword_ptr(rdi), xmm3)),
    ("store of 32", |a| a.vmovdqu(ymmword_ptr(rdi), ymm4)),
    ("store of a half", |a| a.movss(dword_ptr(rdi), xmm5)),
    ("store of 10", |a| {
        a.fldpi()?;
        a.fstp(tbyte_ptr(rdi))
    }),
    ("store of 8, rounded", |a| {
        a.fldpi()?;
        a.fst(qword_ptr(rdi + r12 * 1))?;
        a.fisttp(dword_ptr(r13))
    }),
    ("store of 10, decimal", |a| {
        a.fldpi()?;
        a.fbstp(tbyte_ptr(rdi))
    }),
    ("store between flags", |a| {
        a.cmp(rbx, r9)?;
        a.movups(xmmword_ptr(rdi), xmm3)?;
        a.setb(cl)
    }),
    ("read-modify-write", |a| a.add(qword_ptr(rdi), rbx)),
    ("update of 2 whose flags are used", |a| {
        a.sub(word_ptr(rdi), 0x1234)?;
        a.setbe(bl)?;
        a.lahf()
    }),
    ("update of 4 whose flags are used behind a check", |a| {
        a.add(dword_ptr(rdi), r9d)?;
        a.mov(qword_ptr(r13), rbx)?;
        a.lahf()?;
        a.seto(cl)
    }),
    ("update of 8 between flags", |a| {
        a.cmp(rbx, r9)?;
        a.not(qword_ptr(rdi))?;
        a.setb(cl)
    }),
    ("update that keeps the carry", |a| {
        a.stc()?;
        a.inc(qword_ptr(rdi))?;
        a.adc(ecx, 0)
    }),
    ("update with carry", |a| {
        a.stc()?;
        a.sbb(qword_ptr(rdi), r10)
    }),
    ("update by a shift", |a| a.shl(dword_ptr(rdi), cl)),
    ("update, locked, of a register too", |a| {
        a.lock().xadd(qword_ptr(rdi), rbx)
    }),
    ("update of a register in memory too", |a| {
        a.xchg(qword_ptr(rdi), r9)?;
        a.mov(rbx, r9)
    }),
    ("update if it is equal", |a| {
        a.lock().cmpxchg(dword_ptr(rdi), r9d)?;
        a.setz(bl)
    }),
    ("update if it is equal, which it is", |a| {
        a.mov(rax, qword_ptr(rdi))?;
        a.cmpxchg(qword_ptr(rdi), rbx)?;
        a.setz(cl)
    }),
    ("two in a group", |a| {
        a.mov(rbx, qword_ptr(rdi))?;
        a.mov(qword_ptr(rdi + 8), rbx)
    }),
];

/// Between two free pages that are neighbours in physical memory too; the supervisor's.
const NEIGHBOURS: u64 = 0x7000;

/// The boundary, and how its pages are touched first.
const PLACES: &[(&str, u64, Code)] = &[
    ("memory", DATA + 0x1000, |a| {
        a.or(dword_ptr(DATA + 0x800), 0)?;
        a.or(dword_ptr(DATA + 0x1800), 0)
    }),
    ("neighbours", NEIGHBOURS, |a| {
        a.or(dword_ptr(NEIGHBOURS - 0x800), 0)?;
        a.or(dword_ptr(NEIGHBOURS + 0x800), 0)
    }),
    ("neighbours, one not yet met", NEIGHBOURS, |a| {
        a.or(dword_ptr(NEIGHBOURS - 0x800), 0)
    }),
    ("memory not yet met", DATA + 0x2000, |_| Ok(())),
    ("memory that was only read", DATA + 0x3000, |a| {
        a.mov(eax, dword_ptr(DATA + 0x2800))?;
        a.mov(eax, dword_ptr(DATA + 0x3800))
    }),
    ("nothing behind it", HOLE, |a| {
        a.or(dword_ptr(HOLE - 0x800), 0)
    }),
    ("a device behind it", READ_ONLY + 0x1000, |a| {
        a.mov(eax, dword_ptr(READ_ONLY + 0x800))
    }),
    ("nothing in front of it", READ_ONLY, |a| {
        a.mov(eax, dword_ptr(READ_ONLY + 0x800))
    }),
    ("code behind it", CODE + 0x1000, |a| {
        a.mov(eax, dword_ptr(CODE + 0x800))?;
        a.mov(eax, dword_ptr(CODE + 0x1800))
    }),
];

fn program(touch: Code, access: Code, at: u64) -> Program {
    let assemble = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        touch(&mut a)?;
        access(&mut a)?;
        a.hlt()?;
        a.assemble(CODE)
    };
    let code = assemble().expect("the access can be assembled");
    let mut program = Recipe {
        bits: 64,
        setting: 4,
        operations: Vec::new(),
    }
    .build();
    program.memory[0].1[..code.len()].copy_from_slice(&code);
    program.start = CODE;
    program.interrupts.clear();
    program.code_on_demand = false;
    program.maps_holes = false;
    program.smap = false;
    program.gpr[7] = at;
    program.gpr[12] = 0;
    program.gpr[13] = DATA + 0x100;
    program
}

#[test]
fn accesses_that_cross_a_page() {
    let reference = EngineOptions {
        interpret_only: true,
        ..EngineOptions::default()
    };
    let mut reference = Machine::new(reference, 2);
    let mut engines: Vec<Machine> = [(1, true), (2, true), (3, true), (2, false)]
        .into_iter()
        .map(|(copies, crossing)| {
            let options = EngineOptions {
                crossing,
                cold: 0,
                grouping: copies != 3,
                ..EngineOptions::default()
            };
            Machine::new(options, copies)
        })
        .collect();
    for (place, boundary, touch) in PLACES {
        for (access_name, access) in ACCESSES {
            // All distances where nothing but the bytes matters, elsewhere a few.
            let distances: &[u64] = match *place {
                "memory" | "neighbours" => &[0, 1, 2, 3, 4, 7, 8, 12, 15, 16, 17, 24, 31, 32],
                _ => &[1, 8, 16],
            };
            for &before in distances {
                let mut at = boundary - before;
                if *access_name == "load, absolute displacement" {
                    at -= 0x1000;
                }
                let mut program = program(*touch, *access, at);
                if *boundary == NEIGHBOURS {
                    program.ring = 0;
                }
                reference.set_up(&program);
                assert_eq!(reference.vcpu.run(), Stop::Halted);
                let faulted = reference.vcpu.cpu().rip < CODE;
                let may_fault = *boundary != NEIGHBOURS || access_name.contains("aligned");
                assert!(!faulted || may_fault, "{access_name}");
                let expected = reference.memory();
                for (index, machine) in engines.iter_mut().enumerate() {
                    let what = format!("{access_name}, {place}, {before} in front, {index}");
                    machine.set_up(&program);
                    assert_eq!(machine.vcpu.run(), Stop::Halted, "{what}");
                    let found = machine.memory();
                    let (ours, theirs) = (machine.vcpu.cpu(), reference.vcpu.cpu());
                    assert_eq!(ours.gpr, theirs.gpr, "{what}");
                    assert_eq!(ours.rip, theirs.rip, "{what}");
                    assert_eq!(ours.control.cr2, theirs.control.cr2, "{what}");
                    assert_eq!(ours.vector.ymm, theirs.vector.ymm, "{what}");
                    assert!(found == expected, "{what}: memory differs");
                    assert_eq!(machine.accesses(false), reference.accesses(false), "{what}");
                }
            }
            for machine in &mut engines {
                machine.vcpu.mem.audit().expect("the copies are equal");
            }
        }
    }
}
