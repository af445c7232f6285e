//! Traces: the instructions of hot code as one straight run, along the way that it took when it was
//! recorded: over several pages, into the functions that it calls and back.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic};
use mmu::{GuestPhys, PAGE_SIZE};

use super::parts::Part;
use super::paths::Paths;
use crate::decode::BLOCK_LIMIT;
use crate::guest::{CodeSegment, Mode};

/// Loops shorter than this are repeated within their trace.
const SHORT: usize = 24;
/// How often at the most.
const REPEATS: usize = 4;

/// A trace that does not come back is no longer than this, unless it is entered so often that it is worth
/// more: it gains less than a loop, and costs as much to translate.
const OPEN: usize = 24;

/// Pages that a trace may have code on.
const PAGES: usize = 4;
/// Calls that may be open at one time.
const DEPTH: usize = 4;

/// What a trace may follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Calls and their returns, and other pages.
    pub calls: bool,
    /// Jumps and calls through registers and memory.
    pub indirect: bool,
    /// Whether it may be as long as any block, although it does not come back.
    pub open: bool,
}

/// A call that a trace follows.
#[derive(Clone, Copy)]
struct Call {
    /// The call within which it is.
    outer: Option<usize>,
    /// RIP behind it.
    next: u64,
}

/// A trace that is being recorded, or is ready to be translated.
pub struct Trace {
    insns: Vec<Instruction>,
    /// The call within which each of them is.
    within: Vec<Option<usize>>,
    calls: Vec<Call>,
    /// The innermost call that is open.
    call: Option<usize>,
    /// The pages: linear number and physical address; the first is that of the beginning.
    pages: Vec<(u64, GuestPhys)>,
    code: CodeSegment,
    reach: Reach,
    closed: bool,
}

impl Trace {
    /// An empty trace that begins on a page.
    pub fn new(code: CodeSegment, page: (u64, GuestPhys), reach: Reach) -> Trace {
        Trace {
            insns: Vec::new(),
            within: Vec::new(),
            calls: Vec::new(),
            call: None,
            pages: vec![page],
            code,
            reach,
            closed: false,
        }
    }

    /// The instructions in the order in which they are executed.
    pub fn insns(&self) -> &[Instruction] {
        &self.insns
    }

    /// The RIP of each of its instructions, and where it leads back, that of its beginning.
    pub fn path(&self) -> Vec<u64> {
        let back = self.insns.first().filter(|_| self.closed);
        self.insns.iter().chain(back).map(Instruction::ip).collect()
    }

    /// Cuts it behind the first jump or call through a register or memory that has led elsewhere, too.
    pub fn cut(&mut self, paths: &Paths) {
        let path = self.path();
        let mut steps = self.insns.iter().zip(&path[1..]);
        let strays = steps.position(|(insn, &to)| is_indirect(insn) && !paths.lead(insn.ip(), to));
        if let Some(last) = strays {
            self.insns.truncate(last + 1);
            self.closed = false;
        }
    }

    /// How many jumps and calls through registers and memory it follows.
    pub fn indirect(&self) -> u64 {
        let inner = self.insns.split_last().map_or(&[][..], |(_, inner)| inner);
        inner.iter().filter(|insn| is_indirect(insn)).count() as u64
    }

    /// Whether it leads back to its beginning.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether it may have code on a page. `slots`: the number of page guards; no two pages of a
    /// trace may share one.
    pub fn takes_page(&mut self, page: (u64, GuestPhys), slots: usize) -> bool {
        if let Some(known) = self.pages.iter().find(|known| known.0 == page.0) {
            return *known == page;
        }
        let slot = |page: u64| page % slots as u64;
        let shared = self.pages.iter().any(|known| slot(known.0) == slot(page.0));
        let room = self.reach.calls && self.pages.len() < PAGES && !shared;
        if room {
            self.pages.push(page);
        }
        room
    }

    /// Whether there is room for the instruction that comes next. None comes twice within the same
    /// calls: a trace ends where it meets itself, in front of a loop within it if not at its own beginning.
    pub fn takes(&mut self, insn: &Instruction) -> bool {
        let mut own = self.insns.iter().zip(&self.within);
        let known = own.position(|(own, within)| own.ip() == insn.ip() && *within == self.call);
        self.closed = known == Some(0);
        known.is_none() && self.insns.len() < BLOCK_LIMIT
    }

    /// Adds the instruction that comes next.
    pub fn push(&mut self, insn: Instruction) {
        self.insns.push(insn);
        self.within.push(self.call);
    }

    /// What it can follow behind an instruction.
    pub fn follows(&self, insn: &Instruction, mode: Mode) -> bool {
        match insn.flow_control() {
            FlowControl::Next => !matches!(insn.mnemonic(), Mnemonic::Stac | Mnemonic::Clac),
            FlowControl::UnconditionalBranch => insn.is_jmp_short_or_near(),
            FlowControl::ConditionalBranch => insn.is_jcc_short_or_near(),
            FlowControl::Call => self.reach.calls && is_call(insn, mode) && self.is_shallow(),
            FlowControl::IndirectBranch => self.reach.indirect && is_usual(insn, mode),
            FlowControl::IndirectCall => {
                self.reach.indirect && is_usual(insn, mode) && self.is_shallow()
            }
            FlowControl::Return => self.call.is_some() && is_return(insn, mode),
            _ => false,
        }
    }

    /// Whether one more call may be open.
    fn is_shallow(&self) -> bool {
        let open = std::iter::successors(self.call, |&call| self.calls[call].outer);
        open.count() < DEPTH
    }

    /// Follows an instruction that was added and executed to where RIP is now. `false`: that is not where
    /// a return was to lead.
    pub fn follow(&mut self, insn: &Instruction, rip: u64) -> bool {
        match insn.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => {
                let call = Call {
                    outer: self.call,
                    next: insn.next_ip(),
                };
                let known = |own: &Call| (own.outer, own.next) == (call.outer, call.next);
                let known = self.calls.iter().position(known);
                self.call = Some(known.unwrap_or(self.calls.len()));
                if known.is_none() {
                    self.calls.push(call);
                }
                true
            }
            FlowControl::Return => {
                let Some(call) = self.call.map(|call| self.calls[call]) else {
                    return false;
                };
                self.call = call.outer;
                call.next == rip
            }
            _ => true,
        }
    }

    /// Repeats a short loop, so that its checks serve several rounds; cuts a trace that is none
    /// behind a jump.
    pub fn finish(&mut self) {
        let once = self.insns.len();
        let most = if self.reach.open {
            BLOCK_LIMIT - 1
        } else {
            OPEN
        };
        if !self.closed && once > most {
            let last = self.insns[..most].iter().rposition(|insn| {
                !matches!(insn.flow_control(), FlowControl::Next | FlowControl::Return)
            });
            self.insns.truncate(last.map_or(once, |last| last + 1));
        }
        if self.closed && once <= SHORT {
            for _ in 1..(BLOCK_LIMIT / once).min(REPEATS) {
                self.insns.extend_from_within(..once);
            }
        }
    }

    /// The bytes of each page from the lowest one of its code to the highest, that of the beginning
    /// first.
    pub fn parts(&self) -> Vec<Part> {
        let ranges = self.pages.iter().filter_map(|&(page, physical)| {
            let own = self
                .insns
                .iter()
                .filter(|insn| self.code.page(insn.ip()) == page);
            let starts = own.map(|insn| (self.code.linear(insn.ip()) % PAGE_SIZE, insn.len()));
            let (lowest, highest) =
                starts.fold(None, |range: Option<(u64, u64)>, (start, len)| {
                    let (lowest, highest) = range.unwrap_or((start, start));
                    Some((lowest.min(start), highest.max(start + len as u64)))
                })?;
            Some(Part {
                page,
                lowest: physical.add(lowest),
                len: (highest - lowest) as u32,
            })
        });
        ranges.collect()
    }
}

/// Whether an instruction is a call of a known address, of the mode's own width.
fn is_call(insn: &Instruction, mode: Mode) -> bool {
    let code64 = mode.has(Mode::CODE64);
    match insn.code() {
        Code::Call_rel32_64 => code64,
        Code::Call_rel32_32 => !code64,
        _ => false,
    }
}

/// Whether an instruction jumps or calls through a register or memory.
fn is_indirect(insn: &Instruction) -> bool {
    matches!(
        insn.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall
    )
}

/// Whether an instruction is a near jump or call through a register or memory, of the mode's own width.
fn is_usual(insn: &Instruction, mode: Mode) -> bool {
    let code64 = mode.has(Mode::CODE64);
    match insn.code() {
        Code::Jmp_rm64 | Code::Call_rm64 => code64,
        Code::Jmp_rm32 | Code::Call_rm32 => !code64,
        _ => false,
    }
}

/// Whether an instruction is a near return, of the mode's own width.
fn is_return(insn: &Instruction, mode: Mode) -> bool {
    let code64 = mode.has(Mode::CODE64);
    match insn.code() {
        Code::Retnq | Code::Retnq_imm16 => code64,
        Code::Retnd | Code::Retnd_imm16 => !code64,
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

    const MODE: Mode = Mode(Mode::CODE64);

    fn empty(open: bool) -> Trace {
        let reach = Reach {
            calls: true,
            indirect: true,
            open,
        };
        Trace::new(CodeSegment::FLAT, (0, GuestPhys(0x5000)), reach)
    }

    fn recorded(ips: &[u64]) -> Trace {
        let mut trace = empty(false);
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
        let part = Part {
            page: 0,
            lowest: GuestPhys(0x5004),
            len: 10,
        };
        assert_eq!(closed.parts(), [part]);
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
        let with_jumps = |open, jumps: &[usize]| {
            let mut trace = empty(open);
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
        assert_eq!(with_jumps(false, &[5, 20, 30]), 21);
        assert_eq!(with_jumps(false, &[30]), 40);
        assert_eq!(with_jumps(true, &[5, 20, 30]), 40);
    }

    fn near(code: Code, ip: u64, target: u64) -> Instruction {
        let mut insn = match code {
            Code::Retnq => Instruction::with(code),
            _ => Instruction::with_branch(code, target).expect("a jump can be made"),
        };
        insn.set_len(if code == Code::Retnq { 1 } else { 5 });
        insn.set_ip(ip);
        insn
    }

    /// Adds an instruction behind which RIP is an address; whether the trace goes on.
    fn executed(trace: &mut Trace, insn: Instruction, rip: u64) -> bool {
        let goes_on = trace.takes(&insn) && trace.follows(&insn, MODE);
        trace.push(insn);
        goes_on && trace.follow(&insn, rip)
    }

    #[test]
    fn a_trace_follows_a_function_twice() {
        let mut trace = empty(false);
        for call in [0x10, 0x15] {
            let called = near(Code::Call_rel32_64, call, 0x40);
            assert!(executed(&mut trace, called, 0x40));
            assert!(executed(&mut trace, at(0x40), 0x42));
            assert!(executed(&mut trace, near(Code::Retnq, 0x42, 0), call + 5));
        }
        let around = near(Code::Jmp_rel32_64, 0x1a, 0x10);
        assert!(executed(&mut trace, around, 0x10));
        assert!(!trace.takes(&near(Code::Call_rel32_64, 0x10, 0x40)));
        assert!(trace.is_closed());
    }

    #[test]
    fn a_return_ends_a_trace_that_has_not_called() {
        let trace = empty(false);
        assert!(!trace.follows(&near(Code::Retnq, 0x10, 0), MODE));
        let mut trace = empty(false);
        let called = near(Code::Call_rel32_64, 0x10, 0x40);
        assert!(executed(&mut trace, called, 0x40));
        // It goes elsewhere.
        assert!(!executed(&mut trace, near(Code::Retnq, 0x40, 0), 0x16));
    }

    #[test]
    fn calls_are_open_to_a_depth() {
        let mut trace = empty(true);
        for depth in 0..=DEPTH as u64 {
            let insn = near(Code::Call_rel32_64, 0x10 * depth, 0x10 * depth + 0x10);
            let goes_on = executed(&mut trace, insn, 0x10 * depth + 0x10);
            assert_eq!(goes_on, depth < DEPTH as u64);
        }
    }

    #[test]
    fn pages_are_few_and_their_guards_their_own() {
        let mut trace = empty(true);
        let page = |number| (number, GuestPhys(number * 0x1000));
        assert!(trace.takes_page((0, GuestPhys(0x5000)), 16));
        assert!(!trace.takes_page((0, GuestPhys(0x6000)), 16));
        assert!(!trace.takes_page(page(16), 16));
        assert!(trace.takes_page(page(17), 16));
        assert!(!trace.takes_page(page(33), 16));
        assert!(trace.takes_page(page(18), 16));
        assert!(trace.takes_page(page(19), 16));
        assert!(!trace.takes_page(page(20), 16));
        assert!(trace.takes_page(page(18), 16));
        for ip in [0x10, 0x12_345, 0x12_400] {
            trace.push(at(ip));
        }
        let parts = trace.parts();
        assert_eq!(parts[1].lowest, GuestPhys(0x12_345));
        assert_eq!(parts[1].len, 0xbd);
        assert_eq!(parts.len(), 2);
    }

    #[test]
    fn a_trace_is_cut_behind_a_jump_that_leads_elsewhere() {
        let through = |ip| {
            let mut insn =
                Instruction::with1(Code::Jmp_rm64, Register::RAX).expect("a jump can be made");
            insn.set_len(2);
            insn.set_ip(ip);
            insn
        };
        let around = |middle| {
            let mut trace = empty(true);
            for (insn, rip) in [
                (through(0x10), 0x20),
                (through(0x20), middle),
                (through(middle), 0x10),
            ] {
                assert!(executed(&mut trace, insn, rip));
            }
            assert!(!trace.takes(&through(0x10)));
            trace
        };
        let cut = |others: &[u64]| {
            let mut paths = Paths::default();
            for &middle in others {
                paths.add(around(middle).path());
            }
            let mut trace = around(0x30);
            trace.cut(&paths);
            (trace.insns().len(), trace.is_closed())
        };
        assert_eq!(cut(&[0x30, 0x30, 0x30]), (3, true));
        assert_eq!(cut(&[0x30, 0x30, 0x40]), (2, false));
        assert_eq!(cut(&[0x30, 0x30]), (1, false));
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
