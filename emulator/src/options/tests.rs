use super::*;

fn parse(line: &str) -> Result<Options, String> {
    match Options::parse(line.split_whitespace().map(str::to_string))? {
        Parsed::Run(options) => Ok(*options),
        Parsed::Print(text) => Err(format!("printed: {text}")),
    }
}

#[test]
fn what_scripts_pass_to_qemu() {
    let options = parse(
        "-M q35,accel=tcg -cpu max,-avx2 --smp cpus=1 -m 1.5G -kernel k -initrd i \
         -append quiet -nographic -no-reboot -nodefaults -serial mon:stdio -serial null \
         -device isa-debug-exit,iobase=0xf4,iosize=0x04 -icount shift=3,sleep=off \
         -rtc base=2020-02-29T01:02:03,clock=vm -monitor none -vga none -net none \
         -name guest=x -mirror copies=3 -audit 5 -inject seed=1 -report r.json",
    )
    .unwrap();
    assert_eq!(options.ram_bytes, 3 << 29);
    assert_eq!(options.icount_shift, Some(3));
    assert_eq!(options.rtc, Some(RtcBase::Date(1_582_938_123)));
    assert_eq!(options.copies, 3);
    assert_eq!(options.audit_every, Some(5_000_000));
    let exit = options.debug_exit.unwrap();
    assert_eq!((exit.iobase, exit.iosize), (0xf4, 4));
    let targets = options.serial_targets().unwrap();
    assert_eq!(targets[0], SerialTarget::Stdio { escapes: true });
    assert_eq!(targets[1..3], [SerialTarget::Null, SerialTarget::None]);
    assert!(options.no_reboot && options.boot().is_ok());
}

#[test]
fn what_test_suites_pass_to_qemu() {
    let options = parse(
        "-nodefaults -device pc-testdev -device isa-debug-exit,iobase=0xf4,iosize=0x4 -vnc none \
         -serial stdio -display none -machine accel=kvm:tcg -smp 1 -m 256 -no-reboot \
         -cpu max,vendor=GenuineIntel,host-phys-bits,migratable=no -kernel x.flat -initrd env",
    )
    .unwrap();
    assert!(options.test_device && options.debug_exit.is_some());
    assert!(parse("-cpu max,vendor=AuthenticAMD").is_err());
    assert!(parse("-vnc :1").is_err());
}

#[test]
fn outputs_have_names() {
    // As QEMU's own system tests call it; a name may be used before it is explained.
    let options = parse(
        "-monitor none -display none -device isa-debugcon,chardev=output \
         -chardev file,path=x.out,id=output -device isa-serial,chardev=s,index=0 \
         -serial chardev:s -chardev stdio,mux=on,id=s,signal=off -kernel k",
    )
    .unwrap();
    let file = SerialTarget::File("x.out".into());
    assert_eq!(options.debug_console, Some(file));
    assert_eq!(options.debug_port, 0xe9);
    let terminal = SerialTarget::Stdio { escapes: true };
    assert_eq!(options.serials, [terminal.clone(), terminal]);
    let options = parse("-device isa-debugcon,iobase=0x402 -kernel k").unwrap();
    assert_eq!(options.debug_port, 0x402);
    assert_eq!(options.debug_console, Some(SerialTarget::Null));
}

#[test]
fn sizes_count_mebibytes() {
    for (text, bytes) in [
        ("512", 512 << 20),
        ("512M", 512 << 20),
        ("1048576K", 1 << 30),
        ("2G", 2 << 30),
        ("size=64", 64 << 20),
    ] {
        assert_eq!(parse(&format!("-m {text}")).unwrap().ram_bytes, bytes);
    }
}

#[test]
fn what_is_wrong_is_named() {
    // Arguments, then a word that the error has to contain.
    for (line, word) in [
        ("-frobnicate", "no such option"),
        ("-drive file=x", "QEMU has"),
        ("disk.img", "disk.img"),
        ("-m", "missing"),
        ("-m 12Q", "`Q`"),
        ("-m x", "`x`"),
        ("-m 0", "1M"),
        ("-m 99999999999999999999", "not a size"),
        ("-m 512,slots=2", "slots"),
        ("-smp 4", "one processor"),
        ("-smp cores=2", "one processor"),
        ("-cpu nonesuch", "nonesuch"),
        ("-cpu max,+nonesuch", "nonesuch"),
        ("-accel kvm", "kvm"),
        ("-accel tcg,grouping=2", "on or off"),
        ("-accel tcg,traces=many", "many"),
        ("-accel tcg,cold=256", "255"),
        ("-accel tcg,long-traces=65536", "65535"),
        ("-accel tcg,grouping", "not a setting"),
        ("-accel tcg,speed=on", "not a setting"),
        ("-machine microvm", "microvm"),
        ("-machine pc,accel=kvm", "kvm"),
        ("-machine pc,sata=off", "sata"),
        ("-serial tcp::1", "possible"),
        ("-serial file:", "missing"),
        ("-serial chardev:x", "id=x"),
        ("-device isa-debugcon,chardev=y", "id=y"),
        ("-device isa-debugcon,iobase=x", "`x`"),
        ("-device isa-serial,index=1", "0"),
        ("-chardev stdio", "id="),
        ("-chardev file,id=x", "path="),
        ("-chardev socket,id=x,port=1", "port=1"),
        ("-chardev pty,id=x", "pty"),
        ("-chardev null,id=x -chardev null,id=x", "already"),
        ("-monitor stdio", "no monitor"),
        ("-display gtk", "none"),
        ("-device e1000", "e1000"),
        ("-device isa-debug-exit,iobase=99999", "99999"),
        ("-device isa-debug-exit,iosize=0", "65536"),
        ("-icount shift=99", "shift"),
        ("-icount sleep=off", "missing"),
        ("-rtc base=2026-02-30", "date"),
        ("-rtc base=yesterday", "date"),
        ("-d nonesuch", "nonesuch"),
        ("-mirror copies=9", "copies"),
        ("-mirror sideways", "copies"),
        ("-audit 0", "1"),
        ("-inject where=moon", "where"),
        ("-inject every=0", "every"),
        ("-inject colour=red", "colour"),
        ("-mirror off -inject target=mirror", "mirror"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.contains(word), "{line}: {error}");
        assert_eq!(error.lines().count(), 1, "{line}: {error}");
    }
}

#[test]
fn optimisations_have_switches() {
    let engine = |line: &str| parse(line).unwrap().engine;
    let usual = engine("-accel tcg");
    assert!(
        usual.grouping
            && usual.system_inline
            && usual.memory_inline
            && usual.vector_strings
            && usual.large_code
            && usual.pcid_tlb
            && usual.second_places
            && usual.populate_ahead
            && usual.returns
            && usual.precise_flags
            && usual.lazy_flags
            && usual.prediction.is_some()
            && usual.wide_reach
            && usual.gather
            && usual.registers.is_some()
            && usual.crossing
            && usual.late_stack
            && usual.late_slots
            && usual.late_stores
            && usual.late_index
            && usual.prefetch
            && usual.exit_polls
            && usual.slot_registers
            && usual.sure_accesses
            && usual.hoisting
            && usual.long_blocks
            && usual.memory_operands
            && usual.moving
            && usual.traces.is_some()
            && usual.long_traces.is_some()
            && usual.indirect_traces
            && usual.segmented
            && usual.cold > 0
    );
    let off = engine(
        "-accel kmemvisor,grouping=off,system-inline=off,memory-inline=off,vector-strings=off,returns=off,large-code=off,pcid-tlb=off,second-places=off,populate-ahead=off,precise-flags=off,lazy-flags=off,prediction=off,wide-reach=off,gather=off,registers=off,crossing=off,late-stack=off,late-slots=off,late-stores=off,late-index=off,prefetch=off,exit-polls=off,slot-registers=off,sure-accesses=off,hoisting=off,whole-jumps=off,long-blocks=off,memory-operands=off,moving=off,traces=off,long-traces=off,indirect-traces=off,segmented=off,cold=off,tb-size=32",
    );
    assert!(
        !off.grouping
            && !off.system_inline
            && !off.memory_inline
            && !off.vector_strings
            && !off.large_code
            && !off.pcid_tlb
            && !off.second_places
            && !off.populate_ahead
            && !off.returns
            && !off.precise_flags
            && !off.lazy_flags
            && off.prediction.is_none()
            && !off.wide_reach
            && !off.gather
            && off.registers.is_none()
            && !off.crossing
            && !off.late_stack
            && !off.late_slots
            && !off.late_stores
            && !off.late_index
            && !off.prefetch
            && !off.exit_polls
            && !off.slot_registers
            && !off.sure_accesses
            && !off.hoisting
            && !off.whole_jumps
            && !off.long_blocks
            && !off.memory_operands
            && !off.moving
            && off.traces.is_none()
            && off.long_traces.is_none()
            && !off.indirect_traces
            && !off.segmented
            && off.cold == 0
    );
    assert_eq!(off.code_bytes, 32 << 20);
    assert!(engine("-accel tcg,whole-jumps=on").whole_jumps);
    let some = engine("-accel tcg,traces=3,cold=7,long-traces=900");
    assert_eq!((some.traces, some.cold), (Some(3), 7));
    assert_eq!(some.long_traces, Some(900));
    let Parsed::Print(text) = Options::parse(["-accel", "help"].map(str::to_string)).unwrap()
    else {
        panic!("a text was expected");
    };
    for row in SWITCHES {
        assert!(text.contains(row.form), "{}", row.form);
    }
}

#[test]
fn what_cannot_start_is_named() {
    for (line, word) in [
        ("", "-kernel"),
        ("-initrd i", "-kernel"),
        ("-append x", "-kernel"),
        ("-kernel k -bios b", "firmware"),
    ] {
        let error = parse(line).unwrap().boot().unwrap_err();
        assert!(error.contains(word), "{line}: {error}");
    }
    let twice = parse("-serial stdio -serial mon:stdio").unwrap();
    assert!(twice.serial_targets().is_err());
}

#[test]
fn the_console_is_where_qemu_has_it() {
    let first = |line: &str| parse(line).unwrap().serial_targets().unwrap()[0].clone();
    assert_eq!(first("-nographic"), SerialTarget::Stdio { escapes: true });
    assert_eq!(first(""), SerialTarget::Stdio { escapes: true });
    assert_eq!(first("-display none"), SerialTarget::Null);
    assert_eq!(first("-nographic -nodefaults"), SerialTarget::None);
    assert_eq!(
        first("-display none -serial stdio"),
        SerialTarget::Stdio { escapes: false }
    );
}

#[test]
fn names_are_unique_and_help_has_them_all() {
    let text = help();
    let mut names: Vec<&str> = OPTIONS.iter().flat_map(|row| row.names).copied().collect();
    for name in &names {
        assert!(text.contains(&format!("-{name}")), "{name}");
        assert!(!ABSENT.contains(name), "{name} is both there and absent");
    }
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}
