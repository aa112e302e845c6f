//! The race check against the definition of a race: random programs, judged by looking at every pair of accesses.

use rewind_kernels_suite::Random;

use super::*;

const BLOCKS: usize = 3;
const THREADS: usize = 96;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    program: Address,
    memory: Address,
    phases: u32,
    unused: u32,
}

/// What stands between two phases.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Nothing,
    WarpBarrier,
    Barrier,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Deed {
    Load = 1,
    Store = 2,
    Atomic = 3,
}

#[derive(Clone, Copy, Debug)]
struct Access {
    block: usize,
    phase: usize,
    thread: usize,
    deed: Deed,
    word: usize,
    shared: bool,
}

#[derive(Debug)]
struct Program {
    between: Vec<Between>,
    accesses: Vec<Access>,
}

impl Program {
    /// A few accesses of a few threads, which often meet.
    fn random(random: &mut Random) -> Self {
        let between: Vec<_> = (0..2 + random.below(5))
            .map(|_| [Between::Nothing, Between::WarpBarrier, Between::Barrier][random.below(3)])
            .collect();
        let mut accesses: Vec<Access> = Vec::new();
        // Mostly reads, or hardly any program would be right.
        let deeds = [Deed::Load, Deed::Load, Deed::Load, Deed::Atomic, Deed::Atomic, Deed::Store];
        let usual = deeds[random.below(4)];
        for _ in 0..2 + random.below(7) {
            let access = Access {
                block: [0, 0, 0, 1, 2][random.below(5)],
                phase: random.below(between.len()),
                thread: [0, 1, 31, 32, 70][random.below(5)],
                deed: if random.below(3) == 0 { deeds[random.below(6)] } else { usual },
                word: random.below(2),
                shared: random.below(2) == 0,
            };
            // A thread does one thing a phase.
            let place = |one: &Access| (one.block, one.phase, one.thread);
            accesses.retain(|one| place(one) != place(&access));
            accesses.push(access);
        }
        Self { between, accesses }
    }

    /// As `program.cu` reads it.
    fn words(&self) -> Vec<u32> {
        let phases = self.between.len();
        let mut words: Vec<_> = self.between.iter().map(|&between| between as u32).collect();
        words.resize(phases * (1 + BLOCKS * THREADS), 0);
        for one in &self.accesses {
            words[phases + (one.block * phases + one.phase) * THREADS + one.thread] =
                one.deed as u32 | (one.word as u32) << 4 | u32::from(one.shared) << 8;
        }
        words
    }

    fn races(&self) -> bool {
        self.accesses.iter().any(|a| self.accesses.iter().any(|b| self.race(a, b)))
    }

    fn race(&self, a: &Access, b: &Access) -> bool {
        let meet = a.word == b.word && a.shared == b.shared && (!a.shared || a.block == b.block);
        // Reads go together, and so do atomics.
        let conflict = a.deed != b.deed || a.deed == Deed::Store;
        meet && conflict && !self.ordered(a, b)
    }

    fn ordered(&self, a: &Access, b: &Access) -> bool {
        let between = &self.between[a.phase.min(b.phase)..a.phase.max(b.phase)];
        a.block == b.block
            && (a.thread == b.thread
                || between.contains(&Between::Barrier)
                || (a.thread / 32 == b.thread / 32 && between.contains(&Between::WarpBarrier)))
    }
}

#[test]
fn every_race_is_seen_and_nothing_else() {
    let mut random = Random::new(61);
    let mut emulators = ORDERS.map(emulator);
    let mut raced = 0;
    let programs = 2000;
    for _ in 0..programs {
        let program = Program::random(&mut random);
        let words = program.words();
        raced += usize::from(program.races());
        for (emulator, order) in emulators.iter_mut().zip(ORDERS) {
            let source = put(emulator, &words);
            let memory = emulator.allocate(16, Fill::Zeros).unwrap().address;
            let phases = program.between.len() as u32;
            let arguments = Arguments { program: source, memory, phases, unused: 0 };
            // On memory that has seen a launch already.
            let result = (0..2).try_for_each(|_| {
                launch(emulator, "test_program", BLOCKS as u32, THREADS as u32, &arguments)
            });
            assert_eq!(result.is_err(), program.races(), "{order:?}, {result:?}: {program:#?}");
            if result.is_err() {
                assert_eq!(emulator.fault().unwrap().wrong, Wrong::Race);
                *emulator = super::emulator(order);
            }
        }
    }
    assert!(
        (programs / 4..programs * 3 / 4).contains(&raced),
        "{raced} of {programs} programs race"
    );
}
