//! The few ACPI machine-language terms that the board's DSDT needs (ACPI 6,
//! chapter 20) and its resource descriptors (6.4).

/// One to four characters as a name segment, padded with underscores.
fn segment(name: &str) -> [u8; 4] {
    let mut bytes = [b'_'; 4];
    let length = name.len().min(4);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

/// A name: `\` for the root, then one segment.
fn name_string(name: &str) -> Vec<u8> {
    match name.strip_prefix('\\') {
        Some(rest) => [b"\\".as_slice(), &segment(rest)].concat(),
        None => segment(name).to_vec(),
    }
}

/// `opcode`, the package length (which counts itself), and the content.
fn package(opcode: &[u8], content: &[u8]) -> Vec<u8> {
    let mut out = opcode.to_vec();
    if content.len() + 1 < 0x40 {
        out.push(content.len() as u8 + 1);
    } else {
        // Two bytes: four bits in the first, eight in the second.
        let length = content.len() + 2;
        debug_assert!(length < 0x1000);
        out.push(0x40 | (length & 0xF) as u8);
        out.push((length >> 4) as u8);
    }
    out.extend_from_slice(content);
    out
}

/// An integer in its shortest form.
pub fn integer(value: u32) -> Vec<u8> {
    match value {
        0 => vec![0x00],
        1 => vec![0x01],
        2..0x100 => vec![0x0A, value as u8],
        0x100..0x1_0000 => [&[0x0B], &(value as u16).to_le_bytes()[..]].concat(),
        _ => [&[0x0C], &value.to_le_bytes()[..]].concat(),
    }
}

/// `Name (name, value)`.
pub fn name(name: &str, value: &[u8]) -> Vec<u8> {
    [&[0x08], &name_string(name)[..], value].concat()
}

/// `Package () { elements }`.
pub fn package_of(elements: &[Vec<u8>]) -> Vec<u8> {
    package(
        &[0x12],
        &[&[elements.len() as u8], &elements.concat()[..]].concat(),
    )
}

/// `Scope (name) { terms }`.
pub fn scope(name: &str, terms: &[u8]) -> Vec<u8> {
    package(&[0x10], &[&name_string(name)[..], terms].concat())
}

/// `Device (name) { terms }`.
pub fn device(name: &str, terms: &[u8]) -> Vec<u8> {
    package(&[0x5B, 0x82], &[&name_string(name)[..], terms].concat())
}

/// `EisaId ("PNPxxxx")`: three letters of five bits, then the digits, big-endian.
pub fn eisa_id(id: &str) -> Vec<u8> {
    let bytes = id.as_bytes();
    let letters = bytes
        .iter()
        .take(3)
        .fold(0u32, |sum, byte| sum << 5 | u32::from(byte & 0x1F));
    let digits = u32::from_str_radix(id.get(3..7).unwrap_or("0"), 16).unwrap_or(0);
    let value = letters << 16 | digits;
    [&[0x0C], &value.to_be_bytes()[..]].concat()
}

/// `Name (_CRS, ResourceTemplate () { descriptors })`.
pub fn current_resources(descriptors: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = descriptors.concat();
    bytes.extend([0x79, 0x00]); // end tag; a checksum of zero is always right
    let content = [&integer(bytes.len() as u32)[..], &bytes].concat();
    name("_CRS", &package(&[0x11], &content))
}

/// `IO (Decode16, first, first, 1, length)`.
pub fn io(first: u16, length: u8) -> Vec<u8> {
    let [low, high] = first.to_le_bytes();
    vec![0x47, 0x01, low, high, low, high, 1, length]
}

/// `IRQNoFlags () {irq}`: edge-triggered, active high.
pub fn irq(irq: u8) -> Vec<u8> {
    let [low, high] = (1u16 << (irq & 15)).to_le_bytes();
    vec![0x22, low, high]
}

/// `Memory32Fixed (ReadOnly, first, length)`.
pub fn memory(first: u32, length: u32) -> Vec<u8> {
    [
        &[0x86, 0x09, 0x00, 0x00],
        &first.to_le_bytes()[..],
        &length.to_le_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_encodings() {
        assert_eq!(eisa_id("PNP0501"), [0x0C, 0x41, 0xD0, 0x05, 0x01]);
        assert_eq!(integer(0x3F8), [0x0B, 0xF8, 0x03]);
        let sleep = name("\\_S5", &package_of(&[integer(5), integer(0)]));
        assert_eq!(
            sleep,
            [
                0x08, 0x5C, b'_', b'S', b'5', b'_', 0x12, 0x05, 2, 0x0A, 5, 0
            ]
        );
        assert_eq!(irq(12), [0x22, 0x00, 0x10]);
    }

    #[test]
    fn long_packages_take_a_two_byte_length() {
        let long = scope("\\_SB", &[0xA3; 0x100]);
        let length = usize::from(long[1] & 0xF) | usize::from(long[2]) << 4;
        assert_eq!((long[1] >> 6, length), (1, long.len() - 1));
    }
}
