//! An inference request: what came in, and its release.

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::slice;

use super::error::{Code, Error, Result};
use super::{copy_text, sys};

/// An owned request. What is read from it borrows it, so it cannot be used after its release.
#[derive(Debug)]
pub(crate) struct Request {
    raw: NonNull<sys::TRITONBACKEND_Request>,
}

// SAFETY: a request may be read and released from any thread, one at a time; ownership ensures that.
unsafe impl Send for Request {}

/// Names a request while Triton has not ended it. A rescheduled request keeps it; one that starts may
/// have the key of one that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey(usize);

/// Where in a client's sequence a request stands; only set on models with a sequence batcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    /// The first request of its sequence.
    pub(crate) start: bool,
    /// The last request of its sequence.
    pub(crate) end: bool,
}

/// A request parameter. Its text is not checked to be UTF-8, since unknown parameters are ignored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ParameterValue<'a> {
    /// A string.
    Text(&'a [u8]),
    /// An integer.
    Int(i64),
    /// A flag.
    Bool(bool),
    /// A number.
    Double(f64),
    /// Of a kind that newer servers may have.
    Other,
}

/// Element types that this backend reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DataType {
    /// BOOL, one byte each.
    Bool,
    /// INT32.
    Int32,
    /// UINT32.
    Uint32,
    /// FP32.
    Fp32,
    /// BYTES: strings, each behind its length.
    Bytes,
    /// Any other, by Triton's number.
    Other(u32),
}

/// One input tensor.
#[derive(Clone, Debug)]
pub(crate) struct Input<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Type of its elements.
    pub(crate) datatype: DataType,
    /// Its shape, batch dimension included.
    pub(crate) shape: &'a [i64],
    /// Its content, in the pieces in which it lies in memory.
    pub(crate) pieces: Vec<&'a [u8]>,
}

impl Input<'_> {
    /// Its content in one piece.
    pub(crate) fn bytes(&self) -> Cow<'_, [u8]> {
        match self.pieces.as_slice() {
            [] => Cow::Borrowed(&[]),
            [piece] => Cow::Borrowed(piece),
            pieces => Cow::Owned(pieces.concat()),
        }
    }
}

impl Request {
    /// # Safety
    /// `raw` is null or a request that becomes the caller's.
    pub(super) unsafe fn from_raw(raw: *mut sys::TRITONBACKEND_Request) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton passed no request"))?;
        Ok(Self { raw })
    }

    pub(super) fn as_raw(&self) -> *mut sys::TRITONBACKEND_Request {
        self.raw.as_ptr()
    }

    /// See [`RequestKey`].
    pub(crate) fn key(&self) -> RequestKey {
        RequestKey(self.raw.as_ptr().addr())
    }

    /// The client's name for it; may be empty.
    pub(crate) fn id(&self) -> Result<String> {
        let mut id = ptr::null();
        // SAFETY: a live request; the id lives as long as it does and is copied at once.
        unsafe {
            Error::check(sys::TRITONBACKEND_RequestId(self.as_raw(), &raw mut id))?;
            Ok(copy_text(id))
        }
    }

    /// Its place in a sequence.
    pub(crate) fn flags(&self) -> Result<Flags> {
        let mut flags: u32 = 0;
        // SAFETY: a live request and a live integer.
        unsafe { Error::check(sys::TRITONBACKEND_RequestFlags(self.as_raw(), &raw mut flags)) }?;
        Ok(Flags {
            start: flags & sys::TRITONSERVER_REQUEST_FLAG_SEQUENCE_START != 0,
            end: flags & sys::TRITONSERVER_REQUEST_FLAG_SEQUENCE_END != 0,
        })
    }

    /// Id of its sequence, number or text; `None` outside of a sequence, as warm-up requests are.
    pub(crate) fn correlation_id(&self) -> Result<Option<String>> {
        let mut number = 0;
        // SAFETY: a live request and a live integer.
        let is_number = unsafe {
            Error::check(sys::TRITONBACKEND_RequestCorrelationId(self.as_raw(), &raw mut number))
        };
        if is_number.is_ok() {
            return Ok((number != 0).then(|| number.to_string()));
        }
        let mut text = ptr::null();
        // SAFETY: a live request; the text lives as long as it does and is copied at once.
        let text = unsafe {
            Error::check(sys::TRITONBACKEND_RequestCorrelationIdString(
                self.as_raw(),
                &raw mut text,
            ))?;
            copy_text(text)
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// Names of the outputs that the client wants.
    pub(crate) fn outputs(&self) -> Result<Vec<&str>> {
        let mut count = 0;
        // SAFETY: a live request and a live integer.
        unsafe {
            Error::check(sys::TRITONBACKEND_RequestOutputCount(self.as_raw(), &raw mut count))
        }?;
        (0..count)
            .map(|index| {
                let mut name = ptr::null();
                // SAFETY: a live request and an index below the count.
                unsafe {
                    Error::check(sys::TRITONBACKEND_RequestOutputName(
                        self.as_raw(),
                        index,
                        &raw mut name,
                    ))?;
                    self.text(name, "the name of an output")
                }
            })
            .collect()
    }

    /// Its parameters.
    pub(crate) fn parameters(&self) -> Result<Vec<(&str, ParameterValue<'_>)>> {
        let mut count = 0;
        // SAFETY: a live request and a live integer.
        unsafe {
            Error::check(sys::TRITONBACKEND_RequestParameterCount(self.as_raw(), &raw mut count))
        }?;
        (0..count).map(|index| self.parameter(index)).collect()
    }

    /// Its input tensors.
    ///
    /// # Errors
    /// A tensor lies in GPU memory.
    pub(crate) fn inputs(&self) -> Result<Vec<Input<'_>>> {
        let mut count = 0;
        // SAFETY: a live request and a live integer.
        unsafe {
            Error::check(sys::TRITONBACKEND_RequestInputCount(self.as_raw(), &raw mut count))
        }?;
        (0..count).map(|index| self.input(index)).collect()
    }

    /// Gives the request back to Triton for good.
    pub(crate) fn release(self) {
        drop(self);
    }

    /// Gives the request back to Triton, to be executed again.
    ///
    /// # Errors
    /// Triton does not take it; it is still the caller's.
    pub(crate) fn reschedule(self) -> Result<(), (Self, Error)> {
        // SAFETY: a live request, which stays ours only if the call fails.
        let released = unsafe {
            Error::check(sys::TRITONBACKEND_RequestRelease(
                self.as_raw(),
                sys::TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
            ))
        };
        match released {
            Ok(()) => {
                self.give_back();
                Ok(())
            }
            Err(error) => Err((self, error)),
        }
    }

    /// Forgets a request whose owner is Triton.
    pub(super) fn give_back(self) {
        std::mem::forget(self);
    }

    fn parameter(&self, index: u32) -> Result<(&str, ParameterValue<'_>)> {
        let (mut key, mut kind, mut value) = (ptr::null(), 0, ptr::null::<c_void>());
        // SAFETY: a live request and an index below the count.
        let key = unsafe {
            Error::check(sys::TRITONBACKEND_RequestParameter(
                self.as_raw(),
                index,
                &raw mut key,
                &raw mut kind,
                &raw mut value,
            ))?;
            self.text(key, "the name of a request parameter")?
        };
        if value.is_null() {
            return Ok((key, ParameterValue::Other));
        }
        // SAFETY: the value is of the kind that was told, and lives as long as the request.
        let value = unsafe {
            match kind {
                sys::TRITONSERVER_PARAMETER_STRING => {
                    ParameterValue::Text(CStr::from_ptr(value.cast()).to_bytes())
                }
                sys::TRITONSERVER_PARAMETER_INT => ParameterValue::Int(*value.cast()),
                sys::TRITONSERVER_PARAMETER_BOOL => ParameterValue::Bool(*value.cast::<u8>() != 0),
                sys::TRITONSERVER_PARAMETER_DOUBLE => ParameterValue::Double(*value.cast()),
                _ => ParameterValue::Other,
            }
        };
        Ok((key, value))
    }

    fn input(&self, index: u32) -> Result<Input<'_>> {
        let mut input = ptr::null_mut();
        let (mut name, mut datatype, mut shape) = (ptr::null(), 0, ptr::null());
        let (mut dims, mut size, mut pieces) = (0, 0, 0);
        // SAFETY: a live request and an index below the count; the properties live as long as it does.
        let (name, shape) = unsafe {
            Error::check(sys::TRITONBACKEND_RequestInputByIndex(
                self.as_raw(),
                index,
                &raw mut input,
            ))?;
            Error::check(sys::TRITONBACKEND_InputProperties(
                input,
                &raw mut name,
                &raw mut datatype,
                &raw mut shape,
                &raw mut dims,
                &raw mut size,
                &raw mut pieces,
            ))?;
            (self.text(name, "the name of an input")?, self.slice(shape, u64::from(dims)))
        };
        let pieces = (0..pieces)
            .map(|piece| {
                let (mut base, mut size) = (ptr::null::<c_void>(), 0);
                let (mut memory, mut memory_id) = (sys::TRITONSERVER_MEMORY_CPU, 0);
                // SAFETY: a live input and an index below its count of buffers.
                unsafe {
                    Error::check(sys::TRITONBACKEND_InputBuffer(
                        input,
                        piece,
                        &raw mut base,
                        &raw mut size,
                        &raw mut memory,
                        &raw mut memory_id,
                    ))
                }?;
                if memory == sys::TRITONSERVER_MEMORY_GPU {
                    return Err(Error::new(
                        Code::Unsupported,
                        format!("input '{name}' lies in GPU memory: send it in host memory"),
                    ));
                }
                // SAFETY: host memory of that size, which lives as long as the request.
                Ok(unsafe { self.slice(base.cast::<u8>(), size) })
            })
            .collect::<Result<_>>()?;
        Ok(Input { name, datatype: DataType::from_raw(datatype), shape, pieces })
    }

    /// Borrows a string of the request.
    ///
    /// # Safety
    /// `text` is null or a NUL-terminated string that lives as long as the request.
    unsafe fn text(&self, text: *const c_char, what: &str) -> Result<&str> {
        if text.is_null() {
            return Ok("");
        }
        // SAFETY: the contract above.
        unsafe { CStr::from_ptr(text) }
            .to_str()
            .map_err(|error| Error::invalid(format!("{what} is not UTF-8: {error}")))
    }

    /// Borrows an array of the request.
    ///
    /// # Safety
    /// `base` is null or points to `count` values that live as long as the request.
    unsafe fn slice<T>(&self, base: *const T, count: u64) -> &[T] {
        if base.is_null() || count == 0 {
            return &[];
        }
        // SAFETY: the contract above.
        unsafe { slice::from_raw_parts(base, count as usize) }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // SAFETY: a live request, not used again.
        let released = unsafe {
            Error::check(sys::TRITONBACKEND_RequestRelease(
                self.as_raw(),
                sys::TRITONSERVER_REQUEST_RELEASE_ALL,
            ))
        };
        if let Err(error) = released {
            tracing::error!("a request could not be released: {error}");
        }
    }
}

impl DataType {
    fn from_raw(datatype: c_uint) -> Self {
        match datatype {
            sys::TRITONSERVER_TYPE_BOOL => Self::Bool,
            sys::TRITONSERVER_TYPE_INT32 => Self::Int32,
            sys::TRITONSERVER_TYPE_UINT32 => Self::Uint32,
            sys::TRITONSERVER_TYPE_FP32 => Self::Fp32,
            sys::TRITONSERVER_TYPE_BYTES => Self::Bytes,
            other => Self::Other(other),
        }
    }

    pub(super) fn to_raw(self) -> c_uint {
        match self {
            Self::Bool => sys::TRITONSERVER_TYPE_BOOL,
            Self::Int32 => sys::TRITONSERVER_TYPE_INT32,
            Self::Uint32 => sys::TRITONSERVER_TYPE_UINT32,
            Self::Fp32 => sys::TRITONSERVER_TYPE_FP32,
            Self::Bytes => sys::TRITONSERVER_TYPE_BYTES,
            Self::Other(other) => other,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool => f.write_str("BOOL"),
            Self::Int32 => f.write_str("INT32"),
            Self::Uint32 => f.write_str("UINT32"),
            Self::Fp32 => f.write_str("FP32"),
            Self::Bytes => f.write_str("BYTES"),
            Self::Other(number) => write!(f, "data type {number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stand_in::{Act, Given, Server, live_errors};
    use super::*;

    #[test]
    fn is_released_once_however_it_ends() {
        let server = Server::new();
        server.request(Given::default()).release();
        drop(server.request(Given::default()));
        assert_eq!(server.acts(), [Act::Released, Act::Released]);
        server.request(Given::default()).reschedule().unwrap();
        assert_eq!(server.acts(), [Act::Rescheduled]);
        assert_eq!(server.owed(), 0);
        server.request(Given::default()).give_back();
        assert_eq!(server.acts(), []);
    }

    #[test]
    fn stays_ours_if_triton_does_not_take_it_back() {
        let server = Server::new();
        server.break_down("reschedule");
        let (request, error) = server.request(Given::default()).reschedule().unwrap_err();
        assert!(error.to_string().contains("reschedule"), "{error}");
        assert_eq!(server.acts(), []);
        request.release();
        assert_eq!(server.acts(), [Act::Released]);
        assert_eq!((server.owed(), live_errors()), (0, 0));
    }

    #[test]
    fn tells_its_place_in_a_sequence() {
        let server = Server::new();
        let flags = sys::TRITONSERVER_REQUEST_FLAG_SEQUENCE_START;
        let first = server.request(Given { flags, sequence: 7, ..Given::default() });
        assert_eq!(first.flags(), Ok(Flags { start: true, end: false }));
        assert_eq!(first.correlation_id(), Ok(Some("7".into())));
        let warm_up = server.request(Given::default());
        assert_eq!(warm_up.flags(), Ok(Flags { start: false, end: false }));
        assert_eq!(warm_up.correlation_id(), Ok(None));
        assert_ne!(first.key(), warm_up.key());
    }
}
