use dbt::cache::CodeOffset;
use dbt::guest::Mode;
use dbt::record::classify::Classifier;
use dbt::x86_64::*;
use iced_x86::*;
#[test]
fn dump() {
    let hex = std::env::var("HEX").unwrap_or("65482b042528000000".into());
    let bytes: Vec<u8> = (0..hex.len() / 2)
        .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let insns: Vec<Instruction> = Decoder::with_ip(64, &bytes, 0xffffffff81001bc6, 0)
        .iter()
        .collect();
    let (_, t) = emit_trampolines(0, 0);
    let e = emit(
        &mut Classifier::default(),
        &insns,
        0xffffffff81001bc6,
        Target {
            id: 1,
            mode: Mode(
                Mode::CODE64 | Mode::SSE | Mode::X87 | Mode::AVX | Mode::PROTECTED | Mode::FLAT,
            ),
            base: CodeOffset(4096),
            trampolines: &t,
            copies: 2,
            stride: 0x20000000,
            jump_cache: 0,
            mapping: 5,
            counted: false,
        },
    );
    println!(
        "entry {} poll {} guarded {} indirect {}",
        e.entry, e.poll_entry, e.guarded_entry, e.indirect_entry
    );
    let mut d = Decoder::with_ip(64, &e.code, 4096, 0);
    while d.can_decode() {
        let i = d.decode();
        println!("{:x} {}", i.ip() - 4096, i);
    }
}
