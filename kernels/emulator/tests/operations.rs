//! The operation suite on the emulator: every case with threads and blocks in several orders.
//!
//! `cargo test -p rewind-kernels-emulator --test operations -- norm` runs the cases whose names hold "norm".

use libtest_mimic::{Arguments, Trial};
use rewind_kernels_emulator::{Emulator, Order, Settings};

fn main() {
    let orders = [
        ("ascending", Order::Ascending, 0),
        ("descending", Order::Descending, 0),
        ("shuffled", Order::Shuffled, 1),
    ];
    let trials = rewind_kernels_suite::cases().into_iter().flat_map(|case| {
        orders.map(|(name, order, seed)| {
            let settings = Settings { order, seed, ..Settings::default() };
            Trial::test(format!("{}, {name}", case.name), move || {
                let mut emulator = Emulator::new(settings)?;
                rewind_kernels_suite::run(&case, &mut emulator)
                    .map_err(|error| format!("{error:#}").into())
            })
        })
    });
    let compiled = Trial::test("every kernel file compiles", || {
        let refused = Emulator::refused_kernel_files();
        if refused.is_empty() { Ok(()) } else { Err(format!("not compiled: {refused:?}").into()) }
    });
    let trials = trials.chain([compiled]).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
