//! The emulator as a device: what it refuses, what it records, and copies beside the stream.

use super::*;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Arguments {
    input: Address,
    out: Address,
    wrong: u32,
    distance: u32,
}

/// A device with 128 words in and 128 words out, for `test_bounds_load`, which copies them.
struct Bench {
    emulator: Emulator,
    arguments: Arguments,
}

impl Bench {
    fn new(input: u32) -> Self {
        let mut emulator = emulator(Order::Ascending);
        let input = put(&mut emulator, &[input; 128]);
        let out = put(&mut emulator, &[0; 128]);
        Self { emulator, arguments: Arguments { input, out, wrong: 0, distance: 0 } }
    }

    fn launch(&mut self) -> Result<(), DeviceError> {
        launch(&mut self.emulator, "test_bounds_load", 1, 128, &self.arguments)
    }

    fn out(&mut self) -> u32 {
        get(&mut self.emulator, self.arguments.out, 128)[127]
    }
}

#[test]
fn launches_that_make_no_sense_are_refused() {
    let mut bench = Bench::new(1);
    let arguments = bytemuck::bytes_of(&bench.arguments).to_vec();
    let right = Launch {
        kernel: "test_bounds_load",
        grid: [1, 1, 1],
        threads: 128,
        shared: 0,
        arguments: &arguments,
    };
    let refused = [
        Launch { arguments: &arguments[4..], ..right },
        Launch { threads: 0, ..right },
        Launch { threads: 100, ..right },
        Launch { threads: 160, ..right },
        Launch { grid: [1, 0, 1], ..right },
        Launch { grid: [1, 1 << 16, 1], ..right },
        Launch { shared: (227 << 10) + 1, ..right },
    ];
    for launch in refused {
        let error = bench.emulator.launch(launch).unwrap_err();
        assert!(
            matches!(&error, DeviceError::Refused { what, .. } if what == right.kernel),
            "{error}"
        );
    }
    let unknown = Launch { kernel: "nothing", ..right };
    assert_eq!(bench.emulator.launch(unknown), Err(DeviceError::NoKernel("nothing")));
    bench.emulator.launch(Launch { threads: 96, shared: 227 << 10, ..right }).unwrap();
    assert_eq!(bench.emulator.fault(), None);
}

#[test]
fn copies_that_make_no_sense_are_refused() {
    let mut bench = Bench::new(1);
    let Arguments { input, out, .. } = bench.arguments;
    let emulator = &mut bench.emulator;
    let refused = [
        emulator.upload(&[0; 513], input),
        emulator.upload(&[0; 1], Address::NULL),
        emulator.copy(input.offset(4), out, 512),
        emulator.copy(input, out.offset(4), 512),
        emulator.copy(input, input.offset(256), 260),
        emulator.download(input, 516).map(drop),
    ];
    for result in refused {
        assert!(matches!(result, Err(DeviceError::Refused { .. })), "{result:?}");
    }
    emulator.copy(input, input.offset(256), 256).unwrap();
    let memory = emulator.allocate(4, Fill::Zeros).unwrap();
    emulator.free(memory).unwrap();
    assert!(matches!(emulator.free(memory), Err(DeviceError::Refused { .. })));
}

#[test]
fn memory_ends() {
    let settings = Settings { memory: 1000, ..Settings::default() };
    let mut emulator = Emulator::new(settings).unwrap();
    assert_eq!(emulator.description().free_memory, 1000);
    let most = emulator.allocate(1000, Fill::Nothing).unwrap();
    assert_eq!(
        emulator.allocate(1, Fill::Zeros),
        Err(DeviceError::OutOfMemory { wanted: 1, place: "device" })
    );
    emulator.free(most).unwrap();
    let half = emulator.allocate(500, Fill::Zeros).unwrap();
    assert_eq!(half.address.0 % 256, 0);
}

#[test]
fn after_a_fault_the_device_is_lost() {
    let mut bench = Bench::new(1);
    let input = bench.arguments.input;
    bench.arguments.input = Address::NULL;
    let lost = bench.launch().unwrap_err();
    assert!(matches!(lost, DeviceError::Lost(_)));
    bench.arguments.input = input;
    assert_eq!(bench.launch(), Err(lost.clone()));
    assert_eq!(bench.emulator.upload(&[], input), Err(lost.clone()));
    assert_eq!(bench.emulator.download(input, 4), Err(lost));
}

#[test]
fn what_was_recorded_runs_again_with_the_arguments_of_then() {
    let mut bench = Bench::new(5);
    let Arguments { input, out, .. } = bench.arguments;
    let second = put(&mut bench.emulator, &[6; 128]);
    bench.emulator.begin_capture().unwrap();
    bench.launch().unwrap();
    bench.emulator.copy(second, input, 512).unwrap();
    assert!(matches!(bench.emulator.download(out, 4), Err(DeviceError::Refused { .. })));
    let graph = bench.emulator.end_capture().unwrap();
    assert_eq!(bench.out(), 0, "recording runs nothing");

    bench.arguments.input = Address::NULL;
    bench.emulator.replay(graph).unwrap();
    assert_eq!(bench.out(), 5);
    bench.emulator.replay(graph).unwrap();
    assert_eq!(bench.out(), 6);
}

#[test]
fn a_prefetch_is_there_when_it_was_waited_for() {
    let mut bench = Bench::new(1);
    let host = bench.emulator.keep_on_host(&7u32.to_le_bytes().repeat(128)).unwrap();
    let mark = bench.emulator.prefetch(host, bench.arguments.input, None).unwrap();
    bench.emulator.wait_for(mark).unwrap();
    bench.launch().unwrap();
    assert_eq!(bench.out(), 7);
}

#[test]
fn a_launch_that_does_not_wait_for_a_prefetch_is_seen() {
    let mut bench = Bench::new(1);
    let host = bench.emulator.keep_on_host(&[7; 512]).unwrap();
    bench.emulator.prefetch(host, bench.arguments.input, None).unwrap();
    bench.launch().unwrap_err();
    assert_eq!(bench.emulator.fault().unwrap().wrong, Wrong::Stale);
}

#[test]
fn a_prefetch_that_does_not_wait_for_a_launch_is_seen() {
    let mut bench = Bench::new(1);
    let host = bench.emulator.keep_on_host(&[7; 512]).unwrap();
    let input = bench.arguments.input;
    let before = bench.emulator.mark().unwrap();
    bench.launch().unwrap();
    for after in [None, Some(before)] {
        let error = bench.emulator.prefetch(host, input, after).unwrap_err();
        assert!(matches!(error, DeviceError::Refused { .. }), "{error}");
    }
    let behind = bench.emulator.mark().unwrap();
    bench.emulator.prefetch(host, input, Some(behind)).unwrap();

    // Once the host has seen the launch's output, there is nothing to wait for.
    let mut bench = Bench::new(1);
    let host = bench.emulator.keep_on_host(&[7; 512]).unwrap();
    bench.launch().unwrap();
    bench.out();
    bench.emulator.prefetch(host, bench.arguments.input, None).unwrap();
}
