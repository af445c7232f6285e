//! PS/2 keyboard and mouse: the commands they answer (IBM PS/2 technical
//! reference).

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const SELF_TEST_PASSED: u8 = 0xAA;

/// Scan code set 2 to set 1, as the controller translates.
#[rustfmt::skip]
pub const TRANSLATE_SET_2: [u8; 128] = [
    0xFF, 0x43, 0x41, 0x3F, 0x3D, 0x3B, 0x3C, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3E, 0x0F, 0x29, 0x59,
    0x65, 0x38, 0x2A, 0x70, 0x1D, 0x10, 0x02, 0x5A, 0x66, 0x71, 0x2C, 0x1F, 0x1E, 0x11, 0x03, 0x5B,
    0x67, 0x2E, 0x2D, 0x20, 0x12, 0x05, 0x04, 0x5C, 0x68, 0x39, 0x2F, 0x21, 0x14, 0x13, 0x06, 0x5D,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5E, 0x6A, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5F,
    0x6B, 0x33, 0x25, 0x17, 0x18, 0x0B, 0x0A, 0x60, 0x6C, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0C, 0x61,
    0x6D, 0x73, 0x28, 0x74, 0x1A, 0x0D, 0x62, 0x6E, 0x3A, 0x36, 0x1C, 0x1B, 0x75, 0x2B, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7A, 0x0E, 0x7B, 0x7C, 0x4F, 0x7D, 0x4B, 0x47, 0x7E, 0x7F, 0x6F,
    0x52, 0x53, 0x50, 0x4C, 0x4D, 0x48, 0x01, 0x45, 0x57, 0x4E, 0x51, 0x4A, 0x37, 0x49, 0x46, 0x54,
];

/// A device's answer, at most five bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    bytes: [u8; 5],
    length: u8,
}

impl Answer {
    fn new(answer: &[u8]) -> Answer {
        let mut bytes = [0; 5];
        let length = answer.len().min(5);
        bytes[..length].copy_from_slice(&answer[..length]);
        Answer {
            bytes,
            length: length as u8,
        }
    }

    /// The bytes in order.
    pub fn iter(&self) -> std::slice::Iter<'_, u8> {
        self.bytes[..usize::from(self.length)].iter()
    }
}

/// An MF2 keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keyboard {
    /// Command that waits for its argument.
    pub command: Option<u8>,
    /// Reports keys.
    pub scanning: bool,
    /// Lamps: scroll, num, caps.
    pub leds: u8,
    /// Selected scan code set.
    pub scan_code_set: u8,
    /// Typematic rate and delay.
    pub typematic: u8,
    /// The controller's translation saw a break prefix.
    pub break_prefix: bool,
}

impl Default for Keyboard {
    fn default() -> Keyboard {
        Keyboard {
            command: None,
            scanning: true,
            leds: 0,
            scan_code_set: 2,
            typematic: 0x2B,
            break_prefix: false,
        }
    }
}

impl Keyboard {
    /// A byte arrives from the controller.
    pub fn command(&mut self, value: u8) -> Answer {
        if let Some(command) = self.command.take() {
            match (command, value) {
                (0xED, leds) if leds < 0x80 => self.leds = leds & 7,
                (0xF3, rate) if rate < 0x80 => self.typematic = rate,
                (0xF0, 0) => return Answer::new(&[ACK, self.scan_code_set]),
                (0xF0, set @ 1..=3) => self.scan_code_set = set,
                (0xF0 | 0xED | 0xF3, _) if value < 0x80 => return Answer::new(&[RESEND]),
                (0xFB..=0xFD, _) if value < 0xED => {}
                _ => return self.command(value), // a new command instead of the argument
            }
            return Answer::new(&[ACK]);
        }
        match value {
            0xED | 0xF0 | 0xF3 | 0xFB..=0xFD => self.command = Some(value),
            0xEE => return Answer::new(&[0xEE]),
            0xF2 => return Answer::new(&[ACK, 0xAB, 0x83]),
            0xF4 => self.scanning = true,
            0xF5 => {
                *self = Keyboard {
                    scanning: false,
                    leds: self.leds,
                    ..Keyboard::default()
                }
            }
            0xF6 => {
                *self = Keyboard {
                    leds: self.leds,
                    ..Keyboard::default()
                }
            }
            0xF7..=0xFA => {}
            0xFF => {
                *self = Keyboard::default();
                return Answer::new(&[ACK, SELF_TEST_PASSED]);
            }
            _ => return Answer::new(&[RESEND]),
        }
        Answer::new(&[ACK])
    }
}

/// A PS/2 mouse that becomes a wheel mouse on the usual knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mouse {
    /// Command that waits for its argument.
    pub command: Option<u8>,
    /// Reports in stream mode.
    pub reporting: bool,
    /// Remote mode: reports only when asked.
    pub remote: bool,
    /// Echoes everything.
    pub wrap: bool,
    /// Two-to-one scaling.
    pub scaling: bool,
    /// Resolution code.
    pub resolution: u8,
    /// Samples a second.
    pub rate: u8,
    /// The two sample rates set before.
    pub knock: [u8; 2],
    /// Device ID: 0, or 3 with a wheel.
    pub id: u8,
    /// Buttons held.
    pub buttons: u8,
}

impl Default for Mouse {
    fn default() -> Mouse {
        Mouse {
            command: None,
            reporting: false,
            remote: false,
            wrap: false,
            scaling: false,
            resolution: 2,
            rate: 100,
            knock: [0; 2],
            id: 0,
            buttons: 0,
        }
    }
}

impl Mouse {
    /// A byte arrives from the controller.
    pub fn command(&mut self, value: u8) -> Answer {
        if self.wrap && value != 0xEC && value != 0xFF {
            return Answer::new(&[value]);
        }
        match self.command.take() {
            Some(0xF3) => {
                if self.knock == [200, 100] && value == 80 {
                    self.id = 3;
                }
                self.knock = [self.knock[1], value];
                self.rate = value;
                return Answer::new(&[ACK]);
            }
            Some(_) => {
                self.resolution = value & 3;
                return Answer::new(&[ACK]);
            }
            None => {}
        }
        match value {
            0xE6 => self.scaling = false,
            0xE7 => self.scaling = true,
            0xE8 | 0xF3 => self.command = Some(value),
            0xE9 => {
                let flags = u8::from(self.remote) << 6
                    | u8::from(self.reporting) << 5
                    | u8::from(self.scaling) << 4
                    | (self.buttons & 1) << 2
                    | (self.buttons & 4) >> 1
                    | (self.buttons & 2) >> 1;
                return Answer::new(&[ACK, flags, self.resolution, self.rate]);
            }
            0xEA => self.remote = false,
            0xEB => {
                let (packet, length) = self.packet(0, 0, 0, self.buttons);
                let mut answer = [ACK; 5];
                answer[1..=length].copy_from_slice(&packet[..length]);
                return Answer::new(&answer[..=length]);
            }
            0xEC => self.wrap = false,
            0xEE => self.wrap = true,
            0xF0 => self.remote = true,
            0xF2 => return Answer::new(&[ACK, self.id]),
            0xF4 => self.reporting = true,
            0xF5 => self.reporting = false,
            0xF6 => {
                *self = Mouse {
                    id: self.id,
                    ..Mouse::default()
                }
            }
            0xFF => {
                *self = Mouse::default();
                return Answer::new(&[ACK, SELF_TEST_PASSED, 0x00]);
            }
            _ => return Answer::new(&[RESEND]),
        }
        Answer::new(&[ACK])
    }

    /// A movement packet and its length.
    pub fn packet(&mut self, dx: i16, dy: i16, wheel: i8, buttons: u8) -> ([u8; 4], usize) {
        self.buttons = buttons & 7;
        let (dx, dy) = (dx.clamp(-255, 255), dy.clamp(-255, 255));
        let signs = u8::from(dx < 0) << 4 | u8::from(dy < 0) << 5;
        let packet = [
            0x08 | self.buttons | signs,
            dx as u8,
            dy as u8,
            wheel.clamp(-8, 7) as u8,
        ];
        (packet, if self.id == 3 { 4 } else { 3 })
    }
}
