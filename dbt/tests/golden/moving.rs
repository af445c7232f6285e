//! A block that is copied for another address has to be, byte for byte, what is emitted there.

use dbt::cache::code_file::{Bytes, Record, Span, spans_of};
use dbt::cache::{Arrival, Block, BlockCache, CodeOffset, CodeRegion, Key, Translation};
use dbt::decode::Manner;
use dbt::guest::{CpuState, Mode};
use dbt::run::heat_counter;
use dbt::x86_64::{Emitted, Trampolines, emit_trampolines, moving};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use mmu::GuestPhys;

use crate::cases::{Case, GROUPS};
use crate::{Spot, guest_bytes, guest_code_at, host_code_at, mode};

/// Where code is first, and where it is then.
const FROM: u64 = 0x5555_5555_4040;
const TO: u64 = 0x7fff_f7dd_b040;
/// The same, of a kernel's code.
const HIGH: [u64; 2] = [0xffff_ffff_8d5b_7040, 0xffff_ffff_b29b_7040];
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
        jump_caches: (0, Some(1)),
        heat: Some(heat_counter(PHYSICAL)),
        movable: true,
        whole_jumps: case.grouping,
    }
}

fn block(case: &Case, spot: Spot, insns: &[Instruction], emitted: &mut Emitted) -> Block {
    let mut block = Block::new(
        key(case, spot.rip),
        (PHYSICAL, 40),
        Box::default(),
        insns,
        spot.bases,
        spot.mapping,
        spot.jump_caches.0,
        true,
        emitted,
    );
    block.counts = true;
    block
}

/// Emits a case at both addresses, and copies the first, or keeps it as a record and reads that back.
fn compare(
    name: &str,
    case: &Case,
    at: [u64; 2],
    (guest, code): (&[u8], [Vec<Instruction>; 2]),
    shared: &Trampolines,
) {
    let [from, to] = code;
    let mut cache = empty_cache();
    let first = spot(&mut cache, case, at[0]);
    let mut emitted = host_code_at(case, &from, shared, first);
    let original = block(case, first, &from, &mut emitted);
    let id = cache.insert(original, &emitted.code);
    let mut second = spot(&mut cache, case, at[1]);
    let arrival = Arrival {
        key: key(case, at[1]),
        mapping: second.mapping,
        to: second.bases,
    };
    if moving::can_arrive(&arrival.key) {
        assert_eq!(cache.original(&arrival.key), Some(id), "{name}");
        let mut code = Default::default();
        let copy = cache
            .copy(id, arrival, &mut code)
            .expect("the original is there");
        compare_with_fresh(name, (case, second), &to, shared, (&copy, &code));
    }
    let elsewhere = GuestPhys(PHYSICAL.0 + 0x7_5000);
    second.jump_caches = (5, Some(2));
    second.heat = Some(heat_counter(elsewhere));
    let arrival = Arrival {
        key: Key {
            physical: elsewhere,
            ..arrival.key
        },
        ..arrival
    };
    let original = cache.block(id).expect("it was inserted");
    let mut code = Default::default();
    cache.read_code(original, &mut code);
    let spans = spans_of(original);
    let bytes =
        |&(offset, len): &(u16, u16)| &guest[usize::from(offset) - 0x40..][..usize::from(len)];
    let spans = spans.iter().map(|span| Span {
        offset: span.0,
        bytes: Bytes(bytes(span)),
    });
    let record = Record::of(original, spans.collect(), first.jump_caches.1, &code);
    let bytes = postcard::to_stdvec(&record).expect("a record can be written");
    let record: Record<'_, Translation> = postcard::from_bytes(&bytes).expect("and read");
    assert!(record.can_be_at(&arrival.key), "{name}");
    let mut code = Default::default();
    let read = record
        .block(second.id, arrival, second.jump_caches, manner(), &mut code)
        .expect("it is as it was written");
    compare_with_fresh(name, (case, second), &to, shared, (&read, &code));
}

/// Compares a block that was made elsewhere, and its code, with what is emitted.
fn compare_with_fresh(
    name: &str,
    (case, spot): (&Case, Spot),
    insns: &[Instruction],
    shared: &Trampolines,
    (moved, code): (&Block, &[Vec<u8>; 2]),
) {
    let mut emitted = host_code_at(case, insns, shared, spot);
    assert_eq!(*code, emitted.code, "{name}");
    let fresh = block(case, spot, insns, &mut emitted);
    assert!(moved.insns().eq(fresh.insns()), "{name}");
    for (a, b) in moved.insns().zip(fresh.insns()) {
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
    assert_eq!(entries(moved), entries(&fresh), "{name}");
    assert!(moved.exits().eq(fresh.exits()), "{name}");
    assert_eq!(moved.lowest.page(), moved.key.physical.page(), "{name}");
    assert_eq!(
        (moved.lowest.page_offset(), moved.len),
        (fresh.lowest.page_offset(), fresh.len),
        "{name}"
    );
}

/// How 64-bit code is decoded.
fn manner() -> Manner {
    let mut cpu = CpuState::at_reset();
    cpu.mode = Mode(Mode::CODE64);
    Manner::of(&cpu)
}

/// Whether a case may be moved from one address to the other.
fn may_move(case: &Case, [from, to]: [u64; 2], insns: &[Instruction]) -> bool {
    let (here, distance) = (key(case, from), to - from);
    let high = moving::high_reach(&here, insns);
    moving::can_leave(&here, insns) || high.is_some_and(|reach| moving::stays_high(reach, distance))
}

#[test]
fn what_is_moved_is_what_is_emitted_there() {
    let (_, trampolines) = emit_trampolines(0, 0, 2, 0x2000_0000);
    let mut compared = 0;
    for (_, cases) in GROUPS {
        // Both addresses are beyond 32 bits.
        for case in cases.iter().filter(|case| !case.narrow) {
            let at = if case.kernel { HIGH } else { [FROM, TO] };
            let code = at.map(|rip| guest_code_at(case, rip));
            if may_move(case, at, &code[0]) {
                compare(
                    case.name,
                    case,
                    at,
                    (&guest_bytes(case), code),
                    &trampolines,
                );
                compared += 1;
            } else {
                assert!(case.name.contains("absolute"), "{}", case.name);
            }
        }
    }
    for (number, bytes) in FOLLOWS_RIP.iter().enumerate() {
        for (copies, grouping, counted, returns, kernel) in [
            (2, true, false, true, false),
            (1, false, true, false, false),
            (3, true, true, true, false),
            (2, true, false, true, true),
            (1, false, true, false, true),
        ] {
            let at = if kernel { HIGH } else { [FROM, TO] };
            let code = at.map(|rip| {
                let decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
                decoder.into_iter().collect::<Vec<_>>()
            });
            let case = Case {
                copies,
                grouping,
                counted,
                returns,
                kernel,
                ..Case::new("", |_| Ok(()))
            };
            let name = format!("follows RIP: {number}, {copies} copies, {kernel}");
            let reaches = may_move(&case, at, &code[0]);
            // One address is beyond what four bytes can say.
            assert_eq!(reaches, !(kernel && number == 1), "{name}");
            if reaches {
                compare(&name, &case, at, (bytes, code), &trampolines);
                compared += 1;
            }
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

/// A kernel's own addresses in its bytes are told from small negative numbers, and from what is relative to RIP.
#[test]
fn addresses_in_a_kernels_bytes_are_noticed() {
    let codes: [(&[u8], bool); 9] = [
        // mov rdi, 0xffff_ffff_8d5b_7900; the same as eight bytes; push
        (&[0x48, 0xc7, 0xc7, 0, 0x79, 0x5b, 0x8d], true),
        (
            &[0x48, 0xbf, 0, 0x79, 0x5b, 0x8d, 0xff, 0xff, 0xff, 0xff],
            true,
        ),
        (&[0x68, 0, 0x79, 0x5b, 0x8d], true),
        // mov rax, [rdi * 8 + 0xffff_ffff_8d5b_7900]; cmp edi, 0x8d5b_7900
        (&[0x48, 0x8b, 0x04, 0xfd, 0, 0x79, 0x5b, 0x8d], true),
        (&[0x81, 0xff, 0, 0x79, 0x5b, 0x8d], true),
        // mov rdi, -16; mov rax, [rdi - 16]; lea rax, [rip - 0x72a4_8700]; mov edi, 0x5b_7900
        (&[0x48, 0xc7, 0xc7, 0xf0, 0xff, 0xff, 0xff], false),
        (&[0x48, 0x8b, 0x47, 0xf0], false),
        (&[0x48, 0x8d, 0x05, 0, 0x79, 0x5b, 0x8d], false),
        (&[0xbf, 0, 0x79, 0x5b, 0], false),
    ];
    let case = |kernel| Case {
        kernel,
        ..Case::new("", |_| Ok(()))
    };
    for (bytes, relocated) in codes {
        for (kernel, rip) in [(true, HIGH[0]), (false, FROM)] {
            let insns = [Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE).decode()];
            let found = moving::is_relocated(&key(&case(kernel), rip), &insns);
            assert_eq!(found, kernel && relocated, "{}", insns[0]);
        }
    }
}
