//! The state that XSAVE manages, and what CPUID leaf 0xD says of it (SDM volume 1, chapter 13).

use super::cpuid::{CpuModel, Feature};
use super::state::CpuState;

/// Legacy area and header of an XSAVE area, in bytes.
pub const XSAVE_MINIMUM: usize = 576;

/// A state component of an XSAVE area behind its header (SDM volume 1, 13.5).
#[derive(Clone, Copy, Debug)]
pub struct StateComponent {
    /// Its bit in XCR0.
    pub bit: u64,
    /// Bytes.
    pub size: usize,
    /// Where it is in the standard format.
    pub offset: usize,
    feature: Feature,
}

/// The upper halves of the YMM registers.
pub const AVX_STATE: StateComponent = StateComponent {
    bit: 1 << 2,
    size: 256,
    offset: XSAVE_MINIMUM,
    feature: Feature::Avx,
};

/// PKRU.
pub const PKRU_STATE: StateComponent = StateComponent {
    bit: 1 << 9,
    size: 8,
    offset: AVX_STATE.offset + AVX_STATE.size,
    feature: Feature::Pku,
};

/// All of them, in the order of their bits.
pub const STATE_COMPONENTS: [StateComponent; 2] = [AVX_STATE, PKRU_STATE];

impl StateComponent {
    /// Where the component is in the compacted format with the components of `layout`; none
    /// has to be aligned.
    pub fn compacted_offset(&self, layout: u64) -> usize {
        XSAVE_MINIMUM
            + STATE_COMPONENTS
                .iter()
                .filter(|other| other.bit < self.bit && layout & other.bit != 0)
                .map(|other| other.size)
                .sum::<usize>()
    }
}

/// The state components that XCR0 can enable: x87, SSE and those behind the header.
pub fn xcr0_bits(model: &CpuModel) -> u64 {
    STATE_COMPONENTS
        .iter()
        .filter(|component| model.has(component.feature))
        .fold(3, |bits, component| bits | component.bit)
}

/// Bytes of an XSAVE area with these components, in the standard format.
pub fn xsave_size(components: u64) -> usize {
    STATE_COMPONENTS
        .iter()
        .filter(|component| components & component.bit != 0)
        .map(|component| component.offset + component.size)
        .fold(XSAVE_MINIMUM, usize::max)
}

/// As [`xsave_size`], in the compacted format.
pub fn compacted_size(components: u64) -> usize {
    STATE_COMPONENTS
        .iter()
        .filter(|component| components & component.bit != 0)
        .fold(XSAVE_MINIMUM, |size, component| size + component.size)
}

/// EAX, EBX, ECX and EDX of CPUID leaf 0xD.
pub(super) fn leaf(cpu: &CpuState, subleaf: u32) -> [u32; 4] {
    let supported = xcr0_bits(&cpu.model);
    match subleaf {
        0 => [
            supported as u32,
            xsave_size(cpu.control.xcr0) as u32,
            xsave_size(supported) as u32,
            0,
        ],
        1 => {
            let [eax, ..] = cpu.model.bits(0xd, 1);
            let size = if cpu.model.has(Feature::Xsavec) {
                compacted_size(cpu.control.xcr0) as u32
            } else {
                0
            };
            [eax, size, 0, 0]
        }
        _ => STATE_COMPONENTS
            .iter()
            .find(|component| {
                component.bit.trailing_zeros() == subleaf && supported & component.bit != 0
            })
            .map_or([0; 4], |component| {
                [component.size as u32, component.offset as u32, 0, 0]
            }),
    }
}
