//! A block that is copied for another address has to be, byte for byte, what is emitted there.

use dbt::cache::{Block, BlockCache, CodeOffset, CodeRegion, Key};
use dbt::x86_64::{Emitted, Trampolines, emit_trampolines, moving};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use mmu::GuestPhys;

use crate::cases::{Case, GROUPS};
use crate::{Spot, guest_code_at, host_code_at, mode};

/// Where code is first, and where it is then.
const FROM: u64 = 0x5555_5555_4040;
const TO: u64 = 0x7fff_f7dd_b040;
const PHYSICAL: GuestPhys = GuestPhys(0x12_3040);

/// Code that follows RIP.
const FOLLOWS_RIP: &[&[u8]] = &[
    // lea rax, [rip + 0x2345]; lea r9, [rip - 0x2345]
    &[
        0x48, 0x8d, 0x05, 0x45, 0x23, 0, 0, 0x4c, 0x8d, 0x0d, 0xbb, 0xdc, 0xff, 0xff,
    ],
    // lea ecx, [rip + 0x7654_3210]; lea r10d, [rip + 0x10]
    &[
        0x8d, 0x0d, 0x10, 0x32, 0x54, 0x76, 0x44, 0x8d, 0x15, 0x10, 0, 0, 0,
    ],
    // mov rdx, [rip + 0x3000]
    &[0x48, 0x8b, 0x15, 0, 0x30, 0, 0],
    // add dword [rip + 0x12_3456], 1
    &[0x83, 0x05, 0x56, 0x34, 0x12, 0, 1],
    // mov rdx, [rip + 0xfb5]: across the end of a page
    &[0x48, 0x8b, 0x15, 0xb5, 0x0f, 0, 0],
    // mov eax, [rip + 0x5000]; mov [rip + 0x5004], ecx: in one page
    &[0x8b, 0x05, 0, 0x50, 0, 0, 0x89, 0x0d, 4, 0x50, 0, 0],
    // fld1; fstp qword [rip + 0x800]
    &[0xd9, 0xe8, 0xdd, 0x1d, 0, 8, 0, 0],
    // call [rip + 0x2000]
    &[0xff, 0x15, 0, 0x20, 0, 0],
    // jmp [rip + 0x2000]
    &[0xff, 0x25, 0, 0x20, 0, 0],
    // push qword [rip + 0x2000]
    &[0xff, 0x35, 0, 0x20, 0, 0],
    // call; jne; jmp
    &[0xe8, 0, 1, 0, 0],
    &[0x75, 0x10],
    &[0xeb, 0xfe],
    // syscall; cpuid; ret
    &[0x0f, 0x05],
    &[0x0f, 0xa2],
    &[0xc3],
    // movups xmm3, [rip + 0x4000]; movups [rbx + 8], xmm3
    &[0x0f, 0x10, 0x1d, 0, 0x40, 0, 0, 0x0f, 0x11, 0x5b, 8],
    // rep movsb; mov fs:[rip + 8], eax; bts [rip + 0x100], eax
    &[
        0xf3, 0xa4, 0x64, 0x89, 0x05, 8, 0, 0, 0, 0x0f, 0xab, 0x05, 0, 1, 0, 0,
    ],
];

fn empty_cache() -> BlockCache {
    let region = CodeRegion::new(4 << 20, false).expect("memory for code");
    BlockCache::new(region, CodeOffset(0x1000), None)
}

fn key(case: &Case, rip: u64) -> Key {
    Key {
        physical: PHYSICAL,
        rip,
        mode: mode(case),
        grouped: case.grouping,
        code: dbt::guest::CodeSegment::FLAT,
    }
}

/// Where the next block goes.
fn spot(cache: &mut BlockCache, case: &Case, rip: u64) -> Spot {
    Spot {
        id: cache.next_id(),
        rip,
        mapping: cache.mapping(rip >> 12, PHYSICAL, mode(case)),
        bases: cache.reserve(Some(0)).0,
        movable: true,
        whole_jumps: case.grouping,
    }
}

fn block(case: &Case, spot: Spot, insns: &[Instruction], emitted: &mut Emitted) -> Block {
    Block::new(
        key(case, spot.rip),
        (PHYSICAL, 40),
        Box::default(),
        insns,
        spot.bases,
        spot.mapping,
        0,
        emitted,
    )
}

/// Emits a case at both addresses, and copies the first.
fn compare(name: &str, case: &Case, code: [Vec<Instruction>; 2], trampolines: &Trampolines) {
    let [from, to] = code;
    let mut cache = empty_cache();
    if !moving::can_leave(&key(case, FROM), &from) {
        assert!(case.kernel || name.contains("absolute"), "{name}");
        return;
    }
    let first = spot(&mut cache, case, FROM);
    let mut emitted = host_code_at(case, &from, trampolines, first);
    let original = block(case, first, &from, &mut emitted);
    let id = cache.insert(original, &emitted.code);
    assert_eq!(cache.original(&key(case, TO)), Some(id), "{name}");
    let second = spot(&mut cache, case, TO);
    let mut code = Default::default();
    let copy = cache
        .copy(id, key(case, TO), second.mapping, second.bases, &mut code)
        .expect("the original is there");
    let mut emitted = host_code_at(case, &to, trampolines, second);
    assert_eq!(code, emitted.code, "{name}");
    let fresh = block(case, second, &to, &mut emitted);
    assert!(copy.insns().eq(fresh.insns()), "{name}");
    for (a, b) in copy.insns().zip(fresh.insns()) {
        assert_eq!((a.ip(), a.next_ip()), (b.ip(), b.next_ip()), "{name}");
    }
    let entries = |block: &Block| {
        [
            block.entry(),
            block.poll_entry(),
            block.guarded_entry(),
            block.indirect_entry(),
            block.return_entry(),
            block.saving_entry(),
            block.saving_forward(),
        ]
    };
    assert_eq!(entries(&copy), entries(&fresh), "{name}");
    assert!(copy.exits().eq(fresh.exits()), "{name}");
}

#[test]
fn what_is_moved_is_what_is_emitted_there() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let mut compared = 0;
    for (_, cases) in GROUPS {
        // Both addresses are beyond 32 bits.
        for case in cases.iter().filter(|case| !case.narrow) {
            let code = [FROM, TO].map(|rip| guest_code_at(case, rip));
            compare(case.name, case, code, &trampolines);
            compared += 1;
        }
    }
    for (number, bytes) in FOLLOWS_RIP.iter().enumerate() {
        let code = [FROM, TO].map(|rip| {
            let decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
            decoder.into_iter().collect::<Vec<_>>()
        });
        for (copies, grouping, counted, returns) in [
            (2, true, false, true),
            (1, false, true, false),
            (3, true, true, true),
        ] {
            let case = Case {
                copies,
                grouping,
                counted,
                returns,
                ..Case::new("", |_| Ok(()))
            };
            let name = format!("follows RIP: {number}, {copies} copies");
            compare(&name, &case, code.clone(), &trampolines);
            compared += 1;
        }
    }
    assert!(compared > 80, "{compared}");
}

/// What a page guard has to hold for a block stays, whatever else is mapped meanwhile: blocks of one page would take
/// the guard from each other.
#[test]
fn mappings_of_blocks_last() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let case = &GROUPS[0].1[0];
    let mut cache = empty_cache();
    let insns = guest_code_at(case, FROM);
    let first = spot(&mut cache, case, FROM);
    let idle = cache.mapping(TO >> 12, PHYSICAL, mode(case));
    let mut emitted = host_code_at(case, &insns, &trampolines, first);
    let made = block(case, first, &insns, &mut emitted);
    let id = cache.insert(made, &emitted.code);
    let others = |cache: &mut BlockCache| {
        for page in 0..200_000 {
            cache.mapping(page, PHYSICAL, mode(case));
        }
        let now = |cache: &mut BlockCache, rip| cache.mapping(rip >> 12, PHYSICAL, mode(case));
        (now(cache, FROM), now(cache, TO))
    };
    let (mapped, forgotten) = others(&mut cache);
    assert_eq!(mapped, first.mapping);
    assert!(forgotten > idle, "{forgotten}");
    cache.remove(id).expect("it was there");
    assert!(others(&mut cache).0 > forgotten);
}
