//! The `kmemvisor` command.

use std::path::PathBuf;

fn main() {
    let mut args = std::env::args().skip(1);
    let kernel = PathBuf::from(args.next().unwrap());
    let initrd = args.next().map(PathBuf::from);
    let append = args.next().unwrap_or_default();
    let copies = std::env::var("COPIES")
        .ok()
        .and_then(|c| c.parse().ok())
        .unwrap_or(2);
    let interpret_only = std::env::var("INTERP").is_ok();
    let icount_shift = std::env::var("ICOUNT").ok().and_then(|c| c.parse().ok());
    let mut machine = emulator::machine::Machine::new(emulator::machine::MachineConfig {
        ram_bytes: 512 << 20,
        copies,
        board: devices::BoardConfig {
            serials: [Some(Box::new(std::io::stdout())), None, None, None],
            ..Default::default()
        },
        model: Default::default(),
        engine: dbt::EngineOptions {
            interpret_only,
            ..Default::default()
        },
        icount_shift,
        seed: 1,
        audit_every: None,
    })
    .unwrap();
    emulator::linux::load(&mut machine.vcpu, &kernel, initrd.as_deref(), &append).unwrap();
    let (send, events) = crossbeam::channel::unbounded();
    let request = machine.vcpu.exit_request() as usize;
    std::thread::spawn(move || {
        use std::io::Read;
        let mut buf = [0; 256];
        while let Ok(n) = std::io::stdin().read(&mut buf) {
            if n == 0 {
                break;
            }
            if send
                .send(emulator::machine::HostEvent::Serial(buf[..n].to_vec()))
                .is_err()
            {
                break;
            }
            unsafe {
                (*(request as *const std::sync::atomic::AtomicU32))
                    .store(1, std::sync::atomic::Ordering::Release)
            };
        }
        std::thread::park();
    });
    let end = machine.run(&events, &mut |_| u64::MAX);
    machine.pc.borrow_mut().board.flush_output();
    eprintln!(
        "{end:?} rip={:x} instructions={} {:?}",
        machine.vcpu.cpu().rip,
        machine.vcpu.instructions(),
        machine.vcpu.statistics()
    );
    eprintln!("audit {:?}", machine.audit());
}
