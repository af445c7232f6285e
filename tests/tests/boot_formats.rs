//! Programs in a multiboot image, run to their exit code.

use std::fs;

use tests::run;

/// Where the image is loaded: line 20 of its address is low.
const BASE: u32 = 0x20_0000;

/// Writes an image of 32-bit code.
fn image(code: &[u8]) -> (tempfile::TempDir, String) {
    let header = [
        0x1bad_b002,
        0x1_0000,
        0xe451_4ffe,
        BASE,
        BASE,
        0,
        0,
        BASE + 32,
    ];
    let mut image: Vec<u8> = header
        .iter()
        .flat_map(|word: &u32| word.to_le_bytes())
        .collect();
    image.extend(code);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, image).unwrap();
    let path = path.display().to_string();
    (folder, path)
}

/// Runs 32-bit code that ends by a write to port 0xF4; gives what it wrote.
fn result_of(code: &[u8]) -> i32 {
    let (_folder, path) = image(code);
    let exit = "isa-debug-exit,iobase=0xf4,iosize=4";
    let (code, _, stderr) = run(&["-kernel", &path, "-nodefaults", "-device", exit, "-m", "8"]);
    assert_eq!(code & 1, 1, "{code}: {stderr}");
    code >> 1
}

#[test]
fn the_a20_gate_hides_odd_megabytes() {
    let code = [
        &[0xc6, 0x05, 0, 0, 0, 0, 0x11][..], // mov byte [0], 11h
        &[0xc6, 0x05, 0, 0, 0x10, 0, 0x33],  // mov byte [100000h], 33h
        &[0xb0, 0x00, 0xe6, 0x92],           // close: mov al, 0; out 92h, al
        &[0xc6, 0x05, 0, 0, 0x10, 0, 0x22],  // mov byte [100000h], 22h
        &[0xb0, 0x02, 0xe6, 0x92],           // open: mov al, 2; out 92h, al
        &[0xa0, 0, 0, 0, 0],                 // mov al, [0]
        &[0x8a, 0x25, 0, 0, 0x10, 0],        // mov ah, [100000h]
        &[0x80, 0xec, 0x33],                 // sub ah, 33h
        &[0x08, 0xe0],                       // or al, ah: as it was, if AH is zero
        &[0xe6, 0xf4],                       // out f4h, al
    ]
    .concat();
    assert_eq!(result_of(&code), 0x22);
}

#[test]
fn x87_errors_interrupt_by_line_13_as_in_an_at() {
    // An IDT of one gate, for vector 75h, in which the stack is dropped and AL tells.
    let handler = BASE + 32 + 0x60;
    let mut code = [
        &[0xbc, 0, 0, 0x30, 0][..],            // mov esp, 300000h
        &[0x66, 0xc7, 0x05, 0xa8, 3, 0x31, 0], // mov word [3103a8h], handler
        &(handler as u16).to_le_bytes(),
        &[0x66, 0xc7, 0x05, 0xaa, 3, 0x31, 0, 8, 0], // CS
        &[0xc7, 0x05, 0xac, 3, 0x31, 0, 0, 0x8e],    // interrupt gate, and the upper half
        &((handler >> 16) as u16).to_le_bytes(),
        &[0x68, 0, 0, 0x31, 0, 0x66, 0x68, 0xff, 7], // push 310000h; push word 7ffh
        &[0x0f, 0x01, 0x1c, 0x24],                   // lidt [esp]
        &[0xb0, 0xfb, 0xe6, 0x21],                   // only the cascade: mov al, fbh; out 21h
        &[0xb0, 0xdf, 0xe6, 0xa1],                   // only line 13: mov al, dfh; out a1h
        &[0xdb, 0xe3],                               // fninit
        &[0x6a, 0x7b, 0xd9, 0x2c, 0x24],             // zero division unmasked: fldcw
        &[0xfb, 0xd9, 0xe8, 0xd9, 0xee],             // sti; fld1; fldz
        &[0xde, 0xf9, 0x9b],                         // fdivp; fwait
        &[0xb0, 0x01, 0xe6, 0xf4],                   // no interrupt: 1
    ]
    .concat();
    assert!(code.len() <= 0x60);
    code.resize(0x60, 0x90);
    // out f0h, al; mov al, 2; out f4h, al
    code.extend([0xe6, 0xf0, 0xb0, 0x02, 0xe6, 0xf4]);
    assert_eq!(result_of(&code), 2);
}

#[test]
fn a_debug_console_of_another_port_fills_a_file() {
    let code = [
        &[0x66, 0xba, 0x02, 0x04, 0xb0, b'h', 0xee][..], // mov dx, 402h; mov al, 'h'; out dx, al
        &[0xb0, b'i', 0xee],                             // mov al, 'i'; out dx, al
        &[0xec, 0x3c, 0xe9, 0x75, 0xfe], // in al, dx; it says so: cmp al, e9h; jne $
        // The switch for power: mov dx, 604h; mov ax, 2000h; out dx, ax
        &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef],
    ]
    .concat();
    let (folder, path) = image(&code);
    let output = folder.path().join("output");
    let file = format!("file,path={},id=output", output.display());
    let console = "isa-debugcon,iobase=0x402,chardev=output";
    let (code, _, stderr) = run(&[
        "-monitor", "none", "-display", "none", "-chardev", &file, "-device", console, "-kernel",
        &path, "-m", "8",
    ]);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(fs::read_to_string(output).unwrap(), "hi");
}

/// Where the test's firmware is copied to, to run while RAM takes the ROM's place.
const COPIED: &[u8] = &[
    0xb8, 0x00, 0xf0, // mov ax, 0xf000
    0x8e, 0xd8, // mov ds, ax
    0x66, 0xb8, 0x58, 0x00, 0x00, 0x80, // mov eax, 0x80000058
    0xba, 0xf8, 0x0c, // mov dx, 0xcf8
    0x66, 0xef, // out dx, eax
    0xba, 0xfd, 0x0c, // mov dx, 0xcfd: PAM0
    0xb3, 0x01, // mov bl, 1
    0xc6, 0x06, 0x00, 0x80, 0x55, // mov byte [0x8000], 0x55
    0x80, 0x3e, 0x00, 0x80, 0xaa, // cmp byte [0x8000], 0xaa: the ROM is as it was
    0x75, 0x32, // jne end
    0x43, // inc bx
    0xb0, 0x30, 0xee, // mov al, 0x30; out dx, al: RAM
    0xec, 0x3c, 0x30, // in al, dx; cmp al, 0x30
    0x75, 0x29, // jne end
    0xc6, 0x06, 0x00, 0x80, 0x55, // mov byte [0x8000], 0x55
    0x80, 0x3e, 0x00, 0x80, 0x55, // cmp byte [0x8000], 0x55
    0x75, 0x1d, // jne end
    0x43, // inc bx
    0xb0, 0x10, 0xee, // mov al, 0x10; out dx, al: RAM that cannot be written
    0xc6, 0x06, 0x00, 0x80, 0x77, // mov byte [0x8000], 0x77
    0x80, 0x3e, 0x00, 0x80, 0x55, // cmp byte [0x8000], 0x55
    0x75, 0x0d, // jne end
    0x43, // inc bx
    0xb0, 0x00, 0xee, // mov al, 0; out dx, al: the ROM
    0x80, 0x3e, 0x00, 0x80, 0xaa, // cmp byte [0x8000], 0xaa
    0x75, 0x02, // jne end
    0xb3, 0x2a, // mov bl, 42
    0x88, 0xd8, // end: mov al, bl
    0xe6, 0xf4, // out 0xf4, al
];

/// Copies the above to 0x7c00 and goes there.
const COPY: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xc0, // mov es, ax
    0xbe, 0x20, 0xe0, // mov si, 0xe020
    0xbf, 0x00, 0x7c, // mov di, 0x7c00
    0xb9, 0x80, 0x00, // mov cx, 0x80
    0xf3, 0x2e, 0xa4, // cs rep movsb
    0xea, 0x00, 0x7c, 0x00, 0x00, // jmp 0:0x7c00
];

#[test]
fn firmware_puts_ram_in_the_place_of_its_rom() {
    let mut rom = vec![0xaa; 0x1_0000];
    rom[0xe000..0xe000 + COPY.len()].copy_from_slice(COPY);
    rom[0xe020..0xe020 + COPIED.len()].copy_from_slice(COPIED);
    // jmp 0xf000:0xe000
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0xe0, 0x00, 0xf0]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rom");
    fs::write(&path, rom).unwrap();
    let path = path.display().to_string();
    let exit = "isa-debug-exit,iobase=0xf4,iosize=4";
    for copies in ["off", "copies=2"] {
        let (code, _, stderr) = run(&[
            "-bios",
            &path,
            "-nodefaults",
            "-device",
            exit,
            "-m",
            "8",
            "-mirror",
            copies,
        ]);
        assert_eq!(code, 2 * 42 + 1, "{stderr}");
    }
}
