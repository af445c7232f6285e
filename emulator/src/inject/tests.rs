use super::*;
use crate::machine::MachineConfig;
use fault_injector::Fate;

const TABLES: u64 = 0x10_0000;
const USER_TEXT: u64 = 0x20_0000;
const USER_DATA: u64 = 0x20_1000;
const USER_STACK: u64 = 0x20_2000;
const KERNEL_TEXT: u64 = 0x40_0000;
const KERNEL_DATA: u64 = 0x60_0000;
const STACK_TOP: u64 = 0x7fff_ffff_f000;

fn put(machine: &mut Machine, at: u64, value: u64) {
    machine
        .vcpu
        .mem
        .store(GuestPhys(at), &value.to_le_bytes())
        .unwrap();
}

/// A machine with the address space of a small operating system: a program of two pages low, its
/// stack at the top of the lower half, a kernel in its place with text and data in large pages.
fn machine() -> Machine {
    let mut machine = Machine::new(MachineConfig {
        ram_bytes: 16 << 20,
        copies: 2,
        board: Default::default(),
        model: Default::default(),
        engine: Default::default(),
        icount_shift: Some(0),
        seed: 1,
        audit_every: None,
        acpi: true,
    })
    .unwrap();
    const TABLE: u64 = 7;
    let tables: Vec<u64> = (0..8).map(|n| TABLES + n * 0x1000).collect();
    let [root, low3, low2, low1, high3, high2, high1, kernel3] = tables[..] else {
        unreachable!()
    };
    let kernel2 = TABLES + 8 * 0x1000;
    let entries = [
        (root, 0, low3 | TABLE),
        (low3, 0, low2 | TABLE),
        (low2, 2, low1 | TABLE),
        (low1, 0, USER_TEXT | 5),
        (low1, 1, USER_DATA | 7 | 1 << 63),
        (root, 255, high3 | TABLE),
        (high3, 511, high2 | TABLE),
        (high2, 511, high1 | TABLE),
        (high1, 510, USER_STACK | 7 | 1 << 63),
        (root, 511, kernel3 | TABLE),
        (kernel3, 510, kernel2 | TABLE),
        (kernel2, 0, KERNEL_TEXT | 0x81),
        (kernel2, 1, KERNEL_DATA | 0x83 | 1 << 63),
    ];
    for (table, index, value) in entries {
        put(&mut machine, table + index * 8, value);
    }
    put(&mut machine, KERNEL_TEXT + 0x3008, 0x90);
    put(&mut machine, KERNEL_DATA + 0x5008, 1);
    let cpu = machine.vcpu.cpu_mut();
    cpu.control.cr0 = 0x8001_0011;
    cpu.control.cr3 = root;
    cpu.control.cr4 = 0x20;
    cpu.control.efer = 0xd00;
    cpu.segments = [user_segment(false); 6];
    cpu.segments[1] = user_segment(true);
    cpu.rip = 0x40_0010;
    cpu.gpr[Register::RSP] = STACK_TOP - 0x1000 + 0x7c0;
    cpu.control.tr.base = 0;
    cpu.refresh_mode();
    machine
}

fn user_segment(code: bool) -> dbt::guest::Segment {
    use dbt::guest::Segment;
    let kind = if code {
        Segment::CODE | Segment::LONG
    } else {
        0
    };
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x33,
        attributes: Segment::PRESENT | Segment::NOT_SYSTEM | Segment::WRITABLE | 0x60 | kind,
    }
}

fn all_memory(machine: &Machine) -> Vec<Vec<u8>> {
    (0..2)
        .map(|copy| {
            (0..machine.vcpu.mem.ram_pages())
                .flat_map(|number| {
                    let mut bytes = [0; 4096];
                    let page = machine.vcpu.mem.page_address(number);
                    machine.vcpu.mem.copy_bytes(page, copy, &mut bytes);
                    bytes
                })
                .collect()
        })
        .collect()
}

fn view(machine: &mut Machine) -> View<'_> {
    let state = State::of(machine.vcpu.cpu(), &HashMap::new());
    View {
        copies: 2,
        state,
        mem: &mut machine.vcpu.mem,
    }
}

#[test]
fn each_class_is_found_where_the_tables_say() {
    let mut machine = machine();
    let before = all_memory(&machine);
    let mut view = view(&mut machine);
    let mut random = Random::new(5);
    let mut others = 0;
    for _ in 0..200 {
        for class in Class::ALL {
            let pick = view.sample(class, &mut random);
            let page = pick.map(|pick| pick.page.0);
            match class {
                Class::PageTable => {
                    let number = (page.unwrap() - TABLES) >> 12;
                    assert!(number <= 8, "{page:x?}");
                }
                Class::KernelText => assert_eq!(page, Some(KERNEL_TEXT + 0x3000)),
                // Random mappings only: there is no task-state segment here.
                Class::KernelData => {
                    assert!(
                        page.is_none() || page == Some(KERNEL_DATA + 0x5000),
                        "{page:x?}"
                    );
                }
                Class::UserText => assert_eq!(page, Some(USER_TEXT)),
                Class::UserData => {
                    assert!([USER_DATA, USER_STACK].contains(&page.unwrap()));
                }
                Class::UserStack => {
                    assert_eq!(page, Some(USER_STACK));
                    assert_eq!(pick.unwrap().line, Some(0x7c0 / 64));
                }
                // Few pages are in use here, and it does not look at all of them.
                Class::Other => {
                    let Some(pick) = pick else { continue };
                    let mut bytes = [0; 4096];
                    assert!(view.mem.copy_bytes(pick.page, 0, &mut bytes));
                    assert!(bytes.iter().any(|&byte| byte != 0));
                    others += 1;
                }
            }
        }
    }
    assert!(others > 0);
    drop(view);
    assert!(all_memory(&machine) == before, "looking changes nothing");
}

#[test]
fn the_stack_is_found_from_the_kernel_too() {
    let mut machine = machine();
    let cpu = machine.vcpu.cpu_mut();
    for segment in &mut cpu.segments {
        segment.attributes &= !0x60;
    }
    cpu.refresh_mode();
    assert_eq!(cpu.cpl(), 0);
    let pick = view(&mut machine).user_stack(&mut Random::new(1));
    assert_eq!(pick.map(|pick| pick.page.0), Some(USER_STACK));
}

#[test]
fn bad_tables_are_read_from_the_mirror_without_being_recovered() {
    let mut machine = machine();
    for number in 0..9 {
        let page = GuestPhys(TABLES + number * 0x1000);
        machine.vcpu.mem.corrupt(page, 0, u64::MAX, &mut || 0x55);
    }
    let view = view(&mut machine);
    let leaf = view.tables().unwrap().look(view.mem, 0x40_1234).unwrap();
    assert_eq!(leaf.physical, GuestPhys(USER_DATA + 0x234));
    assert!(leaf.user && leaf.writable && !leaf.executable);
    assert_eq!(view.mem.poisoned_lines(GuestPhys(TABLES), 0), u64::MAX);
    assert_eq!(machine.vcpu.mem.take_events(), []);
}

#[test]
fn every_class_is_hit_by_a_plan_and_the_fates_come_back() {
    let mut machine = machine();
    let plan = Plan::parse("every=1000,count=100,where=used,size=line").unwrap();
    assert!(plan.needs_counting());
    let mut injector = Injector::new(plan, 2).unwrap();
    assert_eq!(injector.poll(&mut machine), 1000);
    machine.vcpu.set_goal(200_000);
    // The guest does not run here: its memory is read as a whole instead, now and then.
    for round in 1..=100 {
        machine.vcpu.cpu_mut().instructions = round * 1000;
        let now = Moment {
            instructions: round * 1000,
            nanoseconds: 0,
        };
        let state = State::of(machine.vcpu.cpu(), &HashMap::new());
        let mut view = View {
            copies: 2,
            state,
            mem: &mut machine.vcpu.mem,
        };
        injector.session.inject_due(&mut view, now);
        if round % 10 == 0 {
            let mut bytes = vec![0; 0x60_0000 - 0x10_0000];
            machine
                .vcpu
                .mem
                .load(GuestPhys(0x10_0000), &mut bytes)
                .unwrap();
        }
    }
    injector.settle(&mut machine);
    let counts = injector.ledger().counts();
    assert_eq!((counts.injected, counts.sum(), counts.lost), (100, 100, 0));
    assert!(counts.recovered > 20, "{counts:?}");
    let classes = injector.ledger().by_class();
    for class in Class::ALL {
        assert!(classes.contains_key(&class), "{} not hit", class.name());
    }
    let native_read = injector
        .ledger()
        .entries()
        .iter()
        .any(|entry| entry.copy == 0 && entry.fate() == Fate::Recovered);
    assert!(native_read);
}
