//! The chip's temperature, polled in the background.
//!
//! One thread reads a [`Thermometer`] once a second and publishes the value with its time in one
//! atomic word; a reader never waits for a sensor, not even for a hung one: it sees the value grow
//! old and takes it as absent. Only the start, which reads once, and the end, which joins the thread (its
//! code may be unmapped afterwards), wait for a reading. Reading at admission was rejected: some drivers take milliseconds.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Celsius, Thermometer};

/// How often a sensor is read, and how long a value outlives the failures after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time between two readings.
    pub period: Duration,
    /// Age at which a value is no longer told.
    pub keep: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self { period: Duration::from_secs(1), keep: Duration::from_secs(5) }
    }
}

/// Follows a thermometer until it is dropped.
#[derive(Debug)]
pub struct ThermalWatch {
    latest: Arc<Latest>,
    keep: Duration,
    started: Instant,
    /// Dropping it wakes and ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ThermalWatch {
    /// Reads the thermometer once, then every second in a thread of its own.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(thermometer: Box<dyn Thermometer>) -> io::Result<Self> {
        Self::start_with(thermometer, Timing::default())
    }

    /// As [`ThermalWatch::start`] with another timing.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start_with(thermometer: Box<dyn Thermometer>, timing: Timing) -> io::Result<Self> {
        let (started, latest) = (Instant::now(), Arc::new(Latest::absent()));
        let mut poll =
            Poll { thermometer, keep: timing.keep, latest: latest.clone(), ailing: false };
        poll.once(started.elapsed());

        let (stop, stopped) = mpsc::channel::<()>();
        // A subscriber of the starting thread alone must hear the warnings too.
        let subscriber = tracing::dispatcher::get_default(Clone::clone);
        let thread =
            std::thread::Builder::new().name("rewind-thermal".into()).spawn(move || {
                tracing::dispatcher::with_default(&subscriber, || {
                    while stopped.recv_timeout(timing.period) == Err(RecvTimeoutError::Timeout) {
                        poll.once(started.elapsed());
                    }
                });
            })?;
        Ok(Self { latest, keep: timing.keep, started, stop: Some(stop), thread: Some(thread) })
    }

    /// The last reading, unless the thermometer has none or has failed for too long.
    pub fn celsius(&self) -> Option<Celsius> {
        self.latest.get(self.started.elapsed(), self.keep)
    }
}

impl Drop for ThermalWatch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thermometer that panicked has stopped telling; there is nothing left to undo.
            let _ = thread.join();
        }
    }
}

/// A reading and its time in one word: milliseconds since the start above the bits of the value,
/// NaN for none. Relaxed order is enough, for nothing else is published with it.
#[derive(Debug)]
struct Latest(AtomicU64);

impl Latest {
    fn absent() -> Self {
        Self(AtomicU64::new(pack(Duration::ZERO, f32::NAN)))
    }

    fn set(&self, now: Duration, celsius: Option<Celsius>) {
        let value = celsius.map_or(f32::NAN, |celsius| celsius.0);
        self.0.store(pack(now, value), Ordering::Relaxed);
    }

    fn get(&self, now: Duration, keep: Duration) -> Option<Celsius> {
        let word = self.0.load(Ordering::Relaxed);
        // The milliseconds wrap after 49 days, and the difference with them.
        let age = millis(now).wrapping_sub((word >> 32) as u32);
        let value = f32::from_bits(word as u32);
        (!value.is_nan() && u128::from(age) <= keep.as_millis()).then_some(Celsius(value))
    }
}

fn pack(now: Duration, value: f32) -> u64 {
    u64::from(millis(now)) << 32 | u64::from(value.to_bits())
}

fn millis(time: Duration) -> u32 {
    time.as_millis() as u32
}

/// The thread's part: reads, publishes, and warns once for each time the value is lost.
struct Poll {
    thermometer: Box<dyn Thermometer>,
    keep: Duration,
    latest: Arc<Latest>,
    /// The value is lost and the warning is out.
    ailing: bool,
}

impl Poll {
    fn once(&mut self, now: Duration) {
        match self.thermometer.read() {
            Ok(celsius) => {
                self.latest.set(now, celsius);
                if self.ailing {
                    tracing::info!(thermometer = self.thermometer.name(), "thermometer is back");
                }
                self.ailing = false;
            }
            Err(error) => {
                if !self.ailing && self.latest.get(now, self.keep).is_none() {
                    // Stored, so that the wrapping clock cannot bring an old value back.
                    self.latest.set(now, None);
                    self.ailing = true;
                    tracing::warn!(
                        thermometer = self.thermometer.name(),
                        "no temperature, the thermal coefficient is 1 until it is back: {error}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};

    use super::*;
    use crate::ThermometerError;
    use crate::thermometer::{Absent, Fixed};

    /// Gives what the test puts in.
    #[derive(Clone, Default)]
    struct Scripted(Arc<Mutex<Option<f32>>>);

    impl Thermometer for Scripted {
        fn read(&mut self) -> Result<Option<Celsius>, ThermometerError> {
            match *self.0.lock().unwrap() {
                Some(value) => Ok(Some(Celsius(value))),
                None => {
                    Err(ThermometerError::NotANumber { path: "script".into(), text: "x".into() })
                }
            }
        }

        fn name(&self) -> &str {
            "scripted"
        }
    }

    /// Counts warnings.
    #[derive(Clone, Default)]
    struct Warnings(Arc<AtomicUsize>);

    impl Subscriber for Warnings {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            if *event.metadata().level() == Level::WARN {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    #[test]
    fn a_value_outlives_failures_for_a_while_then_one_warning() {
        let (script, warnings) = (Scripted::default(), Warnings::default());
        let keep = Duration::from_secs(5);
        let latest = Arc::new(Latest::absent());
        let mut poll = Poll {
            thermometer: Box::new(script.clone()),
            keep,
            latest: latest.clone(),
            ailing: false,
        };
        let mut at = |seconds: u64, reading: Option<f32>| {
            *script.0.lock().unwrap() = reading;
            let now = Duration::from_secs(seconds);
            tracing::subscriber::with_default(warnings.clone(), || poll.once(now));
            (latest.get(now, keep).map(|celsius| celsius.0), warnings.0.load(Ordering::Relaxed))
        };
        assert_eq!(at(0, Some(50.0)), (Some(50.0), 0));
        assert_eq!(at(1, Some(51.0)), (Some(51.0), 0));
        assert_eq!(at(2, None), (Some(51.0), 0));
        assert_eq!(at(6, None), (Some(51.0), 0));
        assert_eq!(at(7, None), (None, 1));
        assert_eq!(at(8, None), (None, 1));
        assert_eq!(at(9, Some(40.0)), (Some(40.0), 1));
        assert_eq!(at(15, None), (None, 2));
    }

    #[test]
    fn a_value_grows_old_even_if_no_reading_ends() {
        let latest = Latest::absent();
        let (wrap, second) = (Duration::from_millis(1 << 32), Duration::from_secs(1));
        latest.set(wrap - second, Some(Celsius(70.0)));
        assert_eq!(latest.get(wrap + second, 2 * second), Some(Celsius(70.0)));
        assert_eq!(latest.get(wrap + 2 * second, 2 * second), None);
    }

    #[test]
    fn the_thread_follows_the_thermometer_and_stops_at_once() {
        let script = Scripted::default();
        *script.0.lock().unwrap() = Some(33.0);
        let timing = Timing { period: Duration::from_millis(2), keep: Duration::from_millis(40) };
        let watch = ThermalWatch::start_with(Box::new(script.clone()), timing).unwrap();
        assert_eq!(watch.celsius(), Some(Celsius(33.0)));

        let wait_for = |expected: Option<f32>| {
            let begin = Instant::now();
            while watch.celsius() != expected.map(Celsius) {
                assert!(begin.elapsed() < Duration::from_secs(20), "never {expected:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        *script.0.lock().unwrap() = Some(66.0);
        wait_for(Some(66.0));
        *script.0.lock().unwrap() = None;
        wait_for(None);
    }

    #[test]
    fn a_long_period_does_not_delay_the_end() {
        let timing = Timing { period: Duration::from_secs(3600), ..Timing::default() };
        let watch = ThermalWatch::start_with(Box::new(Fixed(Celsius(45.0))), timing).unwrap();
        assert_eq!(watch.celsius(), Some(Celsius(45.0)));
        let begin = Instant::now();
        drop(watch);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn without_a_thermometer_there_is_no_value() {
        assert_eq!(ThermalWatch::start(Box::new(Absent)).unwrap().celsius(), None);
    }
}
