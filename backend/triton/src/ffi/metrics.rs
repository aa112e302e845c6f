//! Metrics on Triton's own endpoint.

use std::ffi::{CString, c_uint};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::error::{Code, Error, Result};
use super::sys;

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MetricKind {
    /// Only rises.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations below these bounds, which ascend.
    Histogram(&'static [f64]),
}

/// A family of metrics: one name, any labels. Cloning shares it; the last clone, metrics included,
/// deletes it, as Triton refuses to delete a family that has metrics.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    raw: Arc<RawFamily>,
    kind: MetricKind,
}

/// One metric of a family.
#[derive(Debug)]
pub(crate) struct Metric {
    raw: NonNull<sys::TRITONSERVER_Metric>,
    // Declared last, so that the metric is deleted before its family may be.
    _family: Arc<RawFamily>,
}

#[derive(Debug)]
struct RawFamily(NonNull<sys::TRITONSERVER_MetricFamily>);

// SAFETY: families and metrics wrap prometheus-cpp objects, whose methods may run on any threads.
unsafe impl Send for RawFamily {}
// SAFETY: as above.
unsafe impl Sync for RawFamily {}
// SAFETY: as above.
unsafe impl Send for Metric {}
// SAFETY: as above.
unsafe impl Sync for Metric {}

impl Family {
    /// Registers a family. `None` where the server was built without metrics.
    ///
    /// # Errors
    /// The name is in use for another kind.
    pub(crate) fn new(name: &str, description: &str, kind: MetricKind) -> Result<Option<Self>> {
        let (name, description) = (text(name)?, text(description)?);
        let mut raw = ptr::null_mut();
        // SAFETY: NUL-terminated strings, which Triton copies; the family becomes ours.
        let made = unsafe {
            Error::check(sys::TRITONSERVER_MetricFamilyNew(
                &raw mut raw,
                kind.to_raw(),
                name.as_ptr(),
                description.as_ptr(),
            ))
        };
        match made {
            Ok(()) => Ok(NonNull::new(raw).map(|raw| Self { raw: Arc::new(RawFamily(raw)), kind })),
            Err(error) if error.code() == Code::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The metric with these labels.
    pub(crate) fn metric(&self, labels: &[(&str, &str)]) -> Result<Metric> {
        let labels = labels
            .iter()
            .map(|(name, value)| Label::new(name, value))
            .collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<*const sys::TRITONSERVER_Parameter> =
            labels.iter().map(|label| label.0.as_ptr().cast_const()).collect();
        let bounds = match self.kind {
            MetricKind::Histogram(bounds) => Some(Bounds::new(bounds)?),
            MetricKind::Counter | MetricKind::Gauge => None,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: a live family, live labels and bounds, which Triton copies; the metric becomes ours.
        unsafe {
            Error::check(sys::TRITONSERVER_MetricNewWithArgs(
                &raw mut raw,
                self.raw.0.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len() as u64,
                bounds.as_ref().map_or(ptr::null(), |bounds| bounds.0.as_ptr().cast_const()),
            ))?;
        }
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton made no metric"))?;
        Ok(Metric { raw, _family: Arc::clone(&self.raw) })
    }
}

impl Metric {
    /// Adds to a counter or gauge.
    pub(crate) fn add(&self, value: f64) {
        // SAFETY: a live metric. An error means a wrong kind, a defect that a test of it would show.
        let done =
            unsafe { Error::check(sys::TRITONSERVER_MetricIncrement(self.raw.as_ptr(), value)) };
        debug_assert_eq!(done, Ok(()));
    }

    /// Sets a gauge.
    pub(crate) fn set(&self, value: f64) {
        // SAFETY: as in `add`.
        let done = unsafe { Error::check(sys::TRITONSERVER_MetricSet(self.raw.as_ptr(), value)) };
        debug_assert_eq!(done, Ok(()));
    }

    /// Counts one observation in a histogram.
    pub(crate) fn observe(&self, value: f64) {
        // SAFETY: as in `add`.
        let done =
            unsafe { Error::check(sys::TRITONSERVER_MetricObserve(self.raw.as_ptr(), value)) };
        debug_assert_eq!(done, Ok(()));
    }
}

impl Drop for Metric {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once, before its family; there is nothing to do about an error.
        let _ = unsafe { Error::check(sys::TRITONSERVER_MetricDelete(self.raw.as_ptr())) };
    }
}

impl Drop for RawFamily {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once, after its metrics; there is nothing to do about an error.
        let _ = unsafe { Error::check(sys::TRITONSERVER_MetricFamilyDelete(self.0.as_ptr())) };
    }
}

impl MetricKind {
    fn to_raw(self) -> c_uint {
        match self {
            Self::Counter => sys::TRITONSERVER_METRIC_KIND_COUNTER,
            Self::Gauge => sys::TRITONSERVER_METRIC_KIND_GAUGE,
            Self::Histogram(_) => sys::TRITONSERVER_METRIC_KIND_HISTOGRAM,
        }
    }
}

/// An owned label.
struct Label(NonNull<sys::TRITONSERVER_Parameter>);

impl Label {
    fn new(name: &str, value: &str) -> Result<Self> {
        let (name, value) = (text(name)?, text(value)?);
        // SAFETY: NUL-terminated strings, which Triton copies; the label becomes ours.
        let raw = unsafe {
            sys::TRITONSERVER_ParameterNew(
                name.as_ptr(),
                sys::TRITONSERVER_PARAMETER_STRING,
                value.as_ptr().cast(),
            )
        };
        NonNull::new(raw).map(Self).ok_or_else(|| Error::internal("Triton made no label"))
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once.
        unsafe { sys::TRITONSERVER_ParameterDelete(self.0.as_ptr()) };
    }
}

/// Owned bounds of a histogram.
struct Bounds(NonNull<sys::TRITONSERVER_MetricArgs>);

impl Bounds {
    fn new(bounds: &[f64]) -> Result<Self> {
        let mut raw = ptr::null_mut();
        // SAFETY: the object becomes ours.
        unsafe { Error::check(sys::TRITONSERVER_MetricArgsNew(&raw mut raw)) }?;
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton made no histogram"))?;
        let args = Self(raw);
        // SAFETY: a live object and an array of that length, which Triton copies.
        unsafe {
            Error::check(sys::TRITONSERVER_MetricArgsSetHistogram(
                args.0.as_ptr(),
                bounds.as_ptr(),
                bounds.len() as u64,
            ))?;
        }
        Ok(args)
    }
}

impl Drop for Bounds {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once; there is nothing to do about an error.
        let _ = unsafe { Error::check(sys::TRITONSERVER_MetricArgsDelete(self.0.as_ptr())) };
    }
}

fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{text:?} contains a NUL character")))
}
