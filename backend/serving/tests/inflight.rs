//! The in-flight driver over a mock device: whatever happens, one final event for each request.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rewind_engine::{Event, Load, Policy, Refusal, Step};
use rewind_serving::{ErrorKind, Inflight, NoObserver, Observer, RequestError, Sink};
use support::{Lever, engine, request};

/// Everything a sink was told.
#[derive(Default)]
struct Record {
    cancelled: AtomicBool,
    events: Mutex<Vec<Event>>,
}

impl Record {
    fn finals(&self) -> usize {
        self.events.lock().unwrap().iter().filter(|event| event.is_final()).count()
    }

    fn last(&self) -> Option<Event> {
        self.events.lock().unwrap().last().cloned()
    }

    fn text(&self) -> String {
        let events = self.events.lock().unwrap();
        events
            .iter()
            .map(|event| match event {
                Event::Token { committed, .. } => committed.text.as_str(),
                Event::Finished { text, .. } => text.as_str(),
                _ => "",
            })
            .collect()
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

struct Recorder(Arc<Record>);

impl Sink for Recorder {
    fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::Relaxed)
    }

    fn event(&mut self, event: Event) {
        self.0.events.lock().unwrap().push(event);
    }
}

/// Panics at its first event.
struct Bomb;

impl Sink for Bomb {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn event(&mut self, _: Event) {
        panic!("a sink's own mistake");
    }
}

fn record() -> (Arc<Record>, Box<Recorder>) {
    let record = Arc::new(Record::default());
    (Arc::clone(&record), Box::new(Recorder(record)))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn sixty_four_at_once_give_what_each_gives_alone() {
    let run = |prompts: &[u32]| {
        let inflight = Inflight::start(engine(64, 100, &Arc::default()), Box::new(NoObserver));
        let records: Vec<_> = prompts
            .iter()
            .map(|&token| {
                let (record, sink) = record();
                let policy = match token % 3 {
                    0 => Policy::Off,
                    1 => Policy::Step { refresh: 2 },
                    _ => Policy::Lossless { tokens: 3 },
                };
                inflight.submit(request(&[token % 26, 1], 8 + token % 9, policy), sink).unwrap();
                record
            })
            .collect();
        inflight.shutdown();
        for record in &records {
            assert_eq!(record.finals(), 1);
        }
        records.iter().map(|record| record.text()).collect::<Vec<_>>()
    };
    let together = run(&(0..64).collect::<Vec<_>>());
    for (token, text) in together.iter().enumerate() {
        assert_eq!(text.len(), 8 + token % 9);
        assert_eq!(run(&[token as u32])[0], *text);
    }
}

#[test]
fn refusals_return_the_sink_unused() {
    let inflight = Inflight::start(engine(16, 4, &Arc::default()), Box::new(NoObserver));
    let (unused, sink) = record();
    let rejected = inflight.submit(request(&[], 4, Policy::Off), sink).unwrap_err();
    assert_eq!(rejected.error, RequestError::Refused(Refusal::EmptyPrompt));
    let rejected = inflight.submit(request(&[99], 4, Policy::Off), rejected.sink).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::InvalidArgument);
    drop(rejected);
    assert!(unused.events.lock().unwrap().is_empty());
}

#[test]
fn the_queue_is_bounded_and_drains() {
    let lever = Arc::new(Lever::default());
    lever.slow.store(500, Ordering::Relaxed);
    // 16 pages of 4: one long sequence at a time.
    let inflight = Inflight::start(engine(16, 3, &lever), Box::new(NoObserver));
    let (mut accepted, mut refused) = (Vec::new(), 0);
    for _ in 0..20 {
        let (record, sink) = record();
        match inflight.submit(request(&[1], 60, Policy::Off), sink) {
            Ok(()) => accepted.push(record),
            Err(rejected) => {
                assert_eq!(rejected.error.kind(), ErrorKind::Unavailable);
                refused += 1;
            }
        }
    }
    assert!(inflight.load().waiting <= 3);
    // One may run, three may wait.
    assert!((3..=4).contains(&accepted.len()), "{} accepted", accepted.len());
    assert_eq!(refused, 20 - accepted.len());
    wait_for("the queue to drain", || accepted.iter().all(|record| record.finals() == 1));
    let load = inflight.load();
    assert_eq!((load.waiting, load.drafting, load.pages_used), (0, 0, 0));
    let (record, sink) = record();
    inflight.submit(request(&[1], 4, Policy::Off), sink).unwrap();
    inflight.shutdown();
    assert_eq!(record.text().len(), 4);
}

#[test]
fn cancellation_reaches_running_and_waiting_requests() {
    let lever = Arc::new(Lever::default());
    lever.slow.store(2_000, Ordering::Relaxed);
    let inflight = Inflight::start(engine(16, 8, &lever), Box::new(NoObserver));
    let (running, sink) = record();
    inflight.submit(request(&[1], 60, Policy::Off), sink).unwrap();
    let (waiting, sink) = record();
    inflight.submit(request(&[2], 60, Policy::Off), sink).unwrap();
    wait_for("the first to run", || !running.events.lock().unwrap().is_empty());
    waiting.cancel();
    wait_for("the waiting one to end", || waiting.finals() == 1);
    assert!(matches!(waiting.last(), Some(Event::Cancelled { .. })));
    assert_eq!(running.finals(), 0, "the other one goes on");
    running.cancel();
    let before = lever.passes.load(Ordering::Relaxed);
    wait_for("the running one to end", || running.finals() == 1);
    assert!(lever.passes.load(Ordering::Relaxed) - before <= 2, "cancelled within an iteration");
    wait_for("its pages", || inflight.load().pages_used == 0);
}

#[test]
fn an_idle_engine_does_not_spin() {
    let lever = Arc::new(Lever::default());
    let steps = Arc::new(Mutex::new(0));
    struct Count(Arc<Mutex<u32>>);
    impl Observer for Count {
        fn step(&mut self, _: &Step, _: &Load, _: Duration) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let inflight = Inflight::start(engine(16, 8, &lever), Box::new(Count(Arc::clone(&steps))));
    let (record, sink) = record();
    inflight.submit(request(&[1], 4, Policy::Off), sink).unwrap();
    wait_for("the answer", || record.finals() == 1);
    std::thread::sleep(Duration::from_millis(5));
    let settled = *steps.lock().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(*steps.lock().unwrap(), settled);
}

#[test]
fn the_time_with_work_covers_passes_and_leaves_out_waits() {
    #[derive(Default)]
    struct Times {
        active: Duration,
        passes: Duration,
    }
    struct Clock(Arc<Mutex<Times>>);
    impl Observer for Clock {
        fn step(&mut self, step: &Step, _: &Load, active: Duration) {
            let mut times = self.0.lock().unwrap();
            times.active += active;
            times.passes += step.passes.iter().map(|pass| pass.time).sum::<Duration>();
        }
    }
    let lever = Arc::new(Lever::default());
    lever.slow.store(1_000, Ordering::Relaxed);
    let times = Arc::new(Mutex::new(Times::default()));
    let inflight = Inflight::start(engine(16, 8, &lever), Box::new(Clock(Arc::clone(&times))));
    const WAIT: Duration = Duration::from_millis(50);
    let start = Instant::now();
    for _ in 0..2 {
        std::thread::sleep(WAIT);
        let (record, sink) = record();
        inflight.submit(request(&[1], 4, Policy::Off), sink).unwrap();
        wait_for("the answer", || record.finals() == 1);
    }
    let all = start.elapsed();
    let times = times.lock().unwrap();
    assert!(times.passes >= Duration::from_millis(8) && times.active >= times.passes);
    assert!(times.active <= all - 2 * WAIT);
}

#[test]
fn a_panic_fails_everyone_and_is_told_to_later_callers() {
    let lever = Arc::new(Lever::default());
    lever.slow.store(1_000, Ordering::Relaxed);
    let inflight = Inflight::start(engine(16, 8, &lever), Box::new(NoObserver));
    let records: Vec<_> = (0..4)
        .map(|token| {
            let (record, sink) = record();
            inflight.submit(request(&[token], 60, Policy::Off), sink).unwrap();
            record
        })
        .collect();
    wait_for("a first token", || !records[0].events.lock().unwrap().is_empty());
    assert!(inflight.is_alive());
    lever.panic.store(true, Ordering::Relaxed);
    wait_for("the end of all", || records.iter().all(|record| record.finals() == 1));
    for record in &records {
        let Some(Event::Failed { error, .. }) = record.last() else { panic!("not failed") };
        assert!(error.to_string().contains("engine stopped"), "{error}");
    }
    assert!(!inflight.is_alive());
    let (unused, sink) = record();
    let rejected = inflight.submit(request(&[1], 4, Policy::Off), sink).unwrap_err();
    assert_eq!(rejected.error.kind(), ErrorKind::Unavailable);
    assert!(rejected.error.to_string().contains("pulled the lever"), "{}", rejected.error);
    drop(rejected);
    assert!(unused.events.lock().unwrap().is_empty());
    inflight.shutdown();
}

#[test]
fn a_sink_that_panics_takes_no_final_event_from_the_others() {
    let inflight = Inflight::start(engine(64, 8, &Arc::default()), Box::new(NoObserver));
    let (record, sink) = record();
    inflight.submit(request(&[1], 60, Policy::Off), sink).unwrap();
    inflight.submit(request(&[1], 60, Policy::Off), Box::new(Bomb)).unwrap();
    wait_for("an end", || record.finals() == 1);
    wait_for("death", || !inflight.is_alive());
}

#[test]
fn a_failed_pass_fails_its_sequences_only() {
    let lever = Arc::new(Lever::default());
    let inflight = Inflight::start(engine(16, 8, &lever), Box::new(NoObserver));
    lever.fail.store(true, Ordering::Relaxed);
    let (failed, sink) = record();
    inflight.submit(request(&[1], 8, Policy::Off), sink).unwrap();
    wait_for("the failure", || failed.finals() == 1);
    assert!(matches!(failed.last(), Some(Event::Failed { .. })));
    lever.fail.store(false, Ordering::Relaxed);
    let (fine, sink) = record();
    inflight.submit(request(&[1], 8, Policy::Off), sink).unwrap();
    inflight.shutdown();
    assert!(matches!(fine.last(), Some(Event::Finished { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Requests of all sizes, cancelled at any time, with or without a panic or an early shutdown.
    #[test]
    fn exactly_one_final_event(
        requests in proptest::collection::vec((0..26_u32, 1..40_u32, 0..6_u8, 0..3_u8), 1..30),
        panic_after in proptest::option::weighted(0.3, 0..2_000_u64),
        slow in 0..200_u64,
    ) {
        let lever = Arc::new(Lever::default());
        lever.slow.store(slow, Ordering::Relaxed);
        let inflight = Inflight::start(engine(24, 64, &lever), Box::new(NoObserver));
        let mut records = Vec::new();
        for (token, tokens, policy, cancel) in requests {
            let (record, sink) = record();
            let policy = match policy {
                0 => Policy::Off,
                1 => Policy::Observe,
                2 => Policy::Step { refresh: 3 },
                3 => Policy::Window { tokens: 4, refresh: 2 },
                4 => Policy::Lossless { tokens: 4 },
                _ => Policy::Shadow,
            };
            if cancel == 1 {
                record.cancel();
            }
            match inflight.submit(request(&[token, token], tokens, policy), sink) {
                Ok(()) => records.push((record, cancel)),
                Err(rejected) => {
                    prop_assert!(!inflight.is_alive(), "{}", rejected.error);
                    drop(rejected);
                    prop_assert_eq!(record.finals(), 0);
                }
            }
        }
        if let Some(after) = panic_after {
            std::thread::sleep(Duration::from_micros(after));
            lever.panic.store(true, Ordering::Relaxed);
        }
        for (record, cancel) in &records {
            if *cancel == 2 {
                record.cancel();
            }
        }
        inflight.shutdown();
        for (record, _) in &records {
            let events = record.events.lock().unwrap();
            prop_assert_eq!(events.iter().filter(|event| event.is_final()).count(), 1);
            prop_assert!(events.last().unwrap().is_final());
        }
    }
}
