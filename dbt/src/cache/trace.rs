//! Traces: the instructions of a hot loop as one straight run, along the way that it took when it
//! was recorded.

use iced_x86::{FlowControl, Instruction, Mnemonic};

use crate::decode::BLOCK_LIMIT;

/// Loops shorter than this are repeated within their trace.
const SHORT: usize = 24;
/// How often at the most.
const REPEATS: usize = 4;

/// A trace that does not come back is no longer than this: it gains less than a loop, and costs as much
/// to translate.
const OPEN: usize = 24;

/// A trace that is being recorded, or is ready to be translated: of one page.
#[derive(Default)]
pub struct Trace {
    insns: Vec<Instruction>,
    closed: bool,
}

impl Trace {
    /// The instructions in the order in which they are executed.
    pub fn insns(&self) -> &[Instruction] {
        &self.insns
    }

    /// Whether it leads back to its beginning.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether there is room for the instruction that comes next. None comes twice: a trace
    /// ends where it meets itself, in front of a loop within it if not at its own beginning.
    pub fn takes(&mut self, insn: &Instruction) -> bool {
        let known = self.insns.iter().position(|own| own.ip() == insn.ip());
        self.closed = known == Some(0);
        known.is_none() && self.insns.len() < BLOCK_LIMIT
    }

    /// Adds the instruction that comes next.
    pub fn push(&mut self, insn: Instruction) {
        self.insns.push(insn);
    }

    /// Repeats a short loop, so that its checks serve several rounds; cuts a trace that is none
    /// behind a jump.
    pub fn finish(&mut self) {
        let once = self.insns.len();
        if !self.closed && once > OPEN {
            let jumps = |insn: &Instruction| insn.flow_control() != FlowControl::Next;
            let last = self.insns[..OPEN].iter().rposition(jumps);
            self.insns.truncate(last.map_or(once, |last| last + 1));
        }
        if self.closed && once <= SHORT {
            for _ in 1..(BLOCK_LIMIT / once).min(REPEATS) {
                self.insns.extend_from_within(..once);
            }
        }
    }

    /// RIP of the lowest byte of its code, and the bytes from there to the highest.
    pub fn range(&self) -> (u64, u32) {
        let ips = self.insns.iter().map(Instruction::ip);
        let ends = self.insns.iter().map(Instruction::next_ip);
        let lowest = ips.min().unwrap_or(0);
        let highest = ends.max().unwrap_or(0);
        (lowest, highest.wrapping_sub(lowest) as u32)
    }
}

/// Whether a trace can go on behind an instruction, in the same mode, wherever that leads.
pub fn goes_on(insn: &Instruction) -> bool {
    match insn.flow_control() {
        FlowControl::Next => !matches!(insn.mnemonic(), Mnemonic::Stac | Mnemonic::Clac),
        FlowControl::UnconditionalBranch => insn.is_jmp_short_or_near(),
        FlowControl::ConditionalBranch => insn.is_jcc_short_or_near(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Register};

    fn at(ip: u64) -> Instruction {
        let mut insn = Instruction::with2(Code::Add_rm32_r32, Register::EAX, Register::EAX)
            .expect("an addition can be made");
        insn.set_len(2);
        insn.set_ip(ip);
        insn
    }

    fn recorded(ips: &[u64]) -> Trace {
        let mut trace = Trace::default();
        for &ip in ips {
            if !trace.takes(&at(ip)) {
                break;
            }
            trace.push(at(ip));
        }
        trace
    }

    #[test]
    fn a_trace_ends_where_it_meets_itself() {
        let mut closed = recorded(&[10, 12, 4, 10, 12]);
        assert!(closed.is_closed());
        assert_eq!(closed.insns().len(), 3);
        assert_eq!(closed.range(), (4, 10));
        closed.finish();
        assert_eq!(closed.insns().len(), 3 * REPEATS);
        let mut around = recorded(&[10, 12, 4, 12, 4]);
        around.finish();
        assert!(!around.is_closed());
        assert_eq!(around.insns().len(), 3);
    }

    #[test]
    fn an_open_trace_is_cut_behind_a_jump() {
        let jump = |ip, target| {
            let mut insn =
                Instruction::with_branch(Code::Jmp_rel8_64, target).expect("a jump can be made");
            insn.set_len(2);
            insn.set_ip(ip);
            insn
        };
        let with_jumps = |jumps: &[usize]| {
            let mut trace = Trace::default();
            for index in 0..40 {
                let ip = 2 * index as u64;
                trace.push(match jumps.contains(&index) {
                    true => jump(ip, ip + 2),
                    false => at(ip),
                });
            }
            trace.finish();
            trace.insns().len()
        };
        assert_eq!(with_jumps(&[5, 20, 30]), 21);
        assert_eq!(with_jumps(&[30]), 40);
    }

    #[test]
    fn a_full_trace_can_close() {
        let mut ips: Vec<u64> = (0..BLOCK_LIMIT as u64).map(|at| 2 * at).collect();
        ips.push(0);
        assert!(recorded(&ips).is_closed());
        ips[BLOCK_LIMIT] = 2 * BLOCK_LIMIT as u64;
        let open = recorded(&ips);
        assert!(!open.is_closed());
        assert_eq!(open.insns().len(), BLOCK_LIMIT);
    }
}
