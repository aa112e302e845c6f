//! Every mistake is seen, in every order of the threads, and nothing is seen where there is none.

use super::*;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: Address,
    out: Address,
    wrong: u32,
    distance: u32,
}

/// Runs a kernel of `mistakes.cu`.
fn run(kernel: &'static str, wrong: u32, blocks: u32, settings: Settings) -> Result<(), Fault> {
    let mut emulator = Emulator::new(settings).unwrap();
    let input = put(&mut emulator, &[1; 128]);
    // Exactly as long as the kernels need it.
    let words = match kernel {
        "test_race_global" => 256,
        _ => 128,
    };
    let out = emulator.allocate(4 * words, Fill::Zeros).unwrap().address;
    let distance = (out.0.wrapping_sub(input.0) / 4) as u32;
    let arguments = Arguments { input, out, wrong, distance };
    match launch(&mut emulator, kernel, blocks, 128, &arguments) {
        Ok(()) => Ok(()),
        Err(DeviceError::Lost(message)) => {
            let fault = emulator.fault().cloned().unwrap();
            assert_eq!(fault.message, message);
            assert_eq!(fault.kernel, kernel);
            assert!(message.contains(kernel) && message.contains("mistakes.cu:"), "{message}");
            Err(fault)
        }
        Err(error) => panic!("{kernel}: {error}"),
    }
}

/// Right without the mistake, and this fault with it, whatever the order. The right one runs a few times over,
/// so that what one launch remembers is not held against the next.
fn check(kernel: &'static str, mistakes: &[u32], blocks: u32, expected: Wrong) -> Vec<Fault> {
    let mut faults = Vec::new();
    for order in ORDERS {
        let settings = Settings { order, seed: 3, ..Settings::default() };
        run(kernel, 0, blocks, settings).unwrap_or_else(|fault| panic!("{}", fault.message));
        for &wrong in mistakes {
            let fault = run(kernel, wrong, blocks, settings)
                .expect_err(&format!("{kernel}, mistake {wrong}, {order:?}: not seen"));
            assert_eq!(fault.wrong, expected, "{}", fault.message);
            faults.push(fault);
        }
    }
    faults
}

#[test]
fn indexes_out_of_global_memory() {
    for fault in check("test_bounds_store", &[1], 1, Wrong::Bounds) {
        assert_eq!(fault.thread, 127);
        assert!(
            fault.message.contains("writes 4 bytes at byte 512 of an allocation of 512"),
            "{}",
            fault.message
        );
    }
}

#[test]
fn indexes_from_one_allocation_into_another() {
    check("test_bounds_load", &[1], 1, Wrong::Bounds);
}

#[test]
fn addresses_that_are_not_aligned() {
    for fault in check("test_alignment", &[1, 2, 3], 1, Wrong::Alignment) {
        assert_eq!(fault.thread, 0);
    }
}

#[test]
fn indexes_out_of_a_shared_array() {
    // The memory behind the array is the block's too.
    for fault in check("test_bounds_shared", &[1], 1, Wrong::Bounds) {
        assert!(fault.thread >= 96, "{}", fault.message);
    }
}

#[test]
fn arrays_out_of_shared_memory() {
    check("test_taken_shared", &[200], 1, Wrong::Bounds);
}

#[test]
fn reads_of_shared_memory_that_nobody_wrote() {
    for fault in check("test_unwritten_shared", &[1], 1, Wrong::Unwritten) {
        assert_eq!(fault.thread, 127 - 77);
    }
}

#[test]
fn races_on_shared_memory() {
    check("test_race_shared", &[1, 2], 1, Wrong::Race);
    check("test_race_warp", &[1, 2], 1, Wrong::Race);
    for fault in check("test_race_overwrite", &[1], 1, Wrong::Race) {
        let both = [fault.thread, fault.other.unwrap()];
        assert!(both.contains(&64), "{}", fault.message);
    }
}

#[test]
fn races_on_global_memory() {
    for fault in check("test_race_twice", &[1], 1, Wrong::Race) {
        let mut both = [fault.thread, fault.other.unwrap()];
        both.sort_unstable();
        assert_eq!(both, [3, 100]);
    }
    check("test_race_global", &[1], 1, Wrong::Race);
}

#[test]
fn races_between_blocks() {
    for fault in check("test_race_blocks", &[1], 2, Wrong::Race) {
        let (x, other) = (fault.block[0], 1 - fault.block[0]);
        assert!(
            fault.message.contains(&format!("block ({x}, 0, 0): thread 9")),
            "{}",
            fault.message
        );
        assert!(
            fault.message.contains(&format!("thread 9 of block ({other}, 0, 0)")),
            "{}",
            fault.message
        );
    }
    check("test_race_blocks_read", &[1], 2, Wrong::Race);
}

#[test]
fn atomics_with_plain_reads() {
    check("test_race_atomic", &[1], 2, Wrong::Race);
}

#[test]
fn bytes_of_a_word_are_apart() {
    check("test_bytes", &[1], 1, Wrong::Race);
}

#[test]
fn streaming_loads_of_what_the_launch_writes() {
    check("test_stale", &[1], 1, Wrong::Stale);
}

#[test]
fn warps_that_split() {
    for fault in check("test_divergence_operation", &[1], 1, Wrong::Divergence) {
        let both = [fault.thread, fault.other.unwrap()];
        assert!(both.iter().all(|&thread| thread / 32 == 2), "{}", fault.message);
        assert_ne!(both[0] % 32 < 16, both[1] % 32 < 16);
        assert!(
            fault.message.contains("ballot") && fault.message.contains("shuffle"),
            "{}",
            fault.message
        );
    }
    check("test_divergence_place", &[1], 1, Wrong::Divergence);
}

#[test]
fn barriers_that_split_the_block() {
    for fault in check("test_divergence_barrier", &[1], 1, Wrong::Divergence) {
        let both = [fault.thread / 32, fault.other.unwrap() / 32];
        assert!(both.contains(&1) && both[0] != both[1], "{}", fault.message);
    }
    for fault in check("test_unreached_barrier", &[1], 1, Wrong::Unreached) {
        let both = [fault.thread / 32, fault.other.unwrap() / 32];
        assert!(both.contains(&3) && both[0] != both[1], "{}", fault.message);
    }
}

#[test]
fn lanes_that_leave() {
    for fault in check("test_unreached_lane", &[1], 1, Wrong::Unreached) {
        assert!([Some(fault.thread), fault.other].contains(&Some(37)), "{}", fault.message);
    }
}

#[test]
fn without_checks_bounds_and_collectives_remain() {
    let settings = Settings { checks: false, ..Settings::default() };
    for kernel in ["test_unwritten_shared", "test_race_shared", "test_race_global", "test_stale"] {
        run(kernel, 1, 1, settings).unwrap_or_else(|fault| panic!("{}", fault.message));
    }
    for (kernel, expected) in [
        ("test_bounds_store", Wrong::Bounds),
        ("test_bounds_shared", Wrong::Bounds),
        ("test_alignment", Wrong::Alignment),
        ("test_divergence_place", Wrong::Divergence),
        ("test_unreached_barrier", Wrong::Unreached),
    ] {
        assert_eq!(run(kernel, 1, 1, settings).unwrap_err().wrong, expected);
    }
}

#[test]
fn global_memory_that_is_null_freed_or_unwritten() {
    let read = |prepare: &dyn Fn(&mut Emulator) -> Address| {
        let mut emulator = emulator(Order::Ascending);
        let input = prepare(&mut emulator);
        let out = put(&mut emulator, &[0; 128]);
        let arguments = Arguments { input, out, wrong: 0, distance: 0 };
        launch(&mut emulator, "test_bounds_load", 1, 128, &arguments)
            .map_err(|error| (emulator.fault().unwrap().wrong, error.to_string()))
    };
    let (wrong, message) = read(&|_| Address::NULL).unwrap_err();
    assert!(wrong == Wrong::Bounds && message.contains("null"), "{message}");

    let freed = read(&|emulator| {
        let memory = emulator.allocate(512, Fill::Zeros).unwrap();
        emulator.free(memory).unwrap();
        memory.address
    });
    let (wrong, message) = freed.unwrap_err();
    assert!(wrong == Wrong::Bounds && message.contains("freed"), "{message}");

    let (wrong, message) =
        read(&|emulator| emulator.allocate(512, Fill::Nothing).unwrap().address).unwrap_err();
    assert!(wrong == Wrong::Unwritten && message.contains("byte 0"), "{message}");

    // All but the last byte; and a copy is as unwritten as its source.
    let (wrong, message) = read(&|emulator| {
        let from = emulator.allocate(512, Fill::Nothing).unwrap().address;
        let to = emulator.allocate(512, Fill::Zeros).unwrap().address;
        emulator.upload(&[0; 511], from).unwrap();
        emulator.copy(from, to, 512).unwrap();
        to
    })
    .unwrap_err();
    assert!(wrong == Wrong::Unwritten && message.contains("byte 511"), "{message}");
    read(&|emulator| emulator.allocate(512, Fill::Zeros).unwrap().address).unwrap();
}
