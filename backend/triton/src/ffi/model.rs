//! A model as Triton sees it.

use std::ffi::{c_char, c_void};
use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::slice;

use super::error::{Code, Error, Result};
use super::state::Keeper;
use super::{BackendHandle, copy_text, sys};

/// Version of the model configuration format that is read and written.
const CONFIG_VERSION: u32 = 1;

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    /// Plain host memory.
    Host,
    /// Page-locked host memory.
    PinnedHost,
    /// The memory of this GPU.
    Gpu(u32),
}

/// A model, for the length of one entry point.
#[derive(Debug)]
pub(crate) struct ModelHandle {
    raw: NonNull<sys::TRITONBACKEND_Model>,
}

impl ModelHandle {
    /// # Safety
    /// `raw` is null or a model that outlives the handle.
    pub(super) unsafe fn from_raw(raw: *mut sys::TRITONBACKEND_Model) -> Result<Self> {
        let raw = NonNull::new(raw).ok_or_else(|| Error::internal("Triton passed no model"))?;
        Ok(Self { raw })
    }

    /// Its name in the repository.
    pub(crate) fn name(&self) -> Result<String> {
        let mut name = ptr::null();
        // SAFETY: a live model; the name lives as long as it does and is copied at once.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelName(self.raw.as_ptr(), &raw mut name))?;
            Ok(copy_text(name))
        }
    }

    /// The version that is being loaded.
    pub(crate) fn version(&self) -> Result<u64> {
        let mut version = 0;
        // SAFETY: a live model and a live integer.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelVersion(self.raw.as_ptr(), &raw mut version))
        }?;
        Ok(version)
    }

    /// The version folder, to which paths of the configuration are relative.
    ///
    /// # Errors
    /// The repository is not a folder of this machine's file system.
    pub(crate) fn folder(&self) -> Result<PathBuf> {
        let mut kind = 0;
        let mut location = ptr::null();
        // SAFETY: a live model; the location lives as long as it does and is copied at once.
        let location = unsafe {
            Error::check(sys::TRITONBACKEND_ModelRepository(
                self.raw.as_ptr(),
                &raw mut kind,
                &raw mut location,
            ))?;
            copy_text(location)
        };
        if kind != sys::TRITONBACKEND_ARTIFACT_FILESYSTEM {
            return Err(Error::new(
                Code::Unsupported,
                format!("the model repository {location} is not a folder of this file system"),
            ));
        }
        Ok(PathBuf::from(location).join(self.version()?.to_string()))
    }

    /// The configuration as JSON.
    pub(crate) fn config(&self) -> Result<serde_json::Value> {
        let mut message = ptr::null_mut();
        // SAFETY: a live model; the message becomes ours.
        let message = unsafe {
            Error::check(sys::TRITONBACKEND_ModelConfig(
                self.raw.as_ptr(),
                CONFIG_VERSION,
                &raw mut message,
            ))?;
            Message(message)
        };
        let (mut base, mut size) = (ptr::null::<c_char>(), 0_usize);
        // SAFETY: a live message and live variables.
        unsafe {
            Error::check(sys::TRITONSERVER_MessageSerializeToJson(
                message.0,
                &raw mut base,
                &raw mut size,
            ))?;
        }
        if base.is_null() {
            return Err(Error::internal("Triton's model configuration is empty"));
        }
        // SAFETY: not null; the text belongs to the message and is parsed before that is deleted.
        let text = unsafe { slice::from_raw_parts(base.cast::<u8>(), size) };
        serde_json::from_slice(text).map_err(|error| {
            Error::internal(format!("Triton's model configuration is no JSON: {error}"))
        })
    }

    /// Whether the server wants a missing part of the configuration filled in.
    pub(crate) fn wants_completion(&self) -> Result<bool> {
        let mut wants = false;
        // SAFETY: a live model and a live flag.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelAutoCompleteConfig(
                self.raw.as_ptr(),
                &raw mut wants,
            ))
        }?;
        Ok(wants)
    }

    /// Replaces the configuration; only while the model initializes.
    pub(crate) fn set_config(&self, config: &serde_json::Value) -> Result<()> {
        let text = config.to_string();
        let mut message = ptr::null_mut();
        // SAFETY: base and size are those of `text`; the message becomes ours.
        let message = unsafe {
            Error::check(sys::TRITONSERVER_MessageNewFromSerializedJson(
                &raw mut message,
                text.as_ptr().cast(),
                text.len(),
            ))?;
            Message(message)
        };
        // SAFETY: a live model and a live message; Triton copies what it needs.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelSetConfig(
                self.raw.as_ptr(),
                CONFIG_VERSION,
                message.0,
            ))
        }
    }

    /// Reports how many bytes of each kind of memory unloading the model would free.
    pub(crate) fn report_memory(&self, amounts: &[(MemoryKind, u64)]) -> Result<()> {
        let usage: Vec<BufferAttributes> = amounts
            .iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|&(kind, bytes)| BufferAttributes::new(kind, bytes))
            .collect::<Result<_>>()?;
        let mut raw: Vec<_> = usage.iter().map(|attributes| attributes.0).collect();
        // SAFETY: a live model and live attributes, as many as are told; Triton copies them.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelReportMemoryUsage(
                self.raw.as_ptr(),
                raw.as_mut_ptr(),
                raw.len() as u32,
            ))
        }
    }

    /// The backend it belongs to.
    pub(super) fn backend(&self) -> Result<BackendHandle> {
        let mut backend = ptr::null_mut();
        // SAFETY: a live model, which keeps its backend alive.
        unsafe {
            Error::check(sys::TRITONBACKEND_ModelBackend(self.raw.as_ptr(), &raw mut backend))?;
            BackendHandle::from_raw(backend)
        }
    }
}

impl Keeper for ModelHandle {
    fn kept(&self) -> Result<*mut c_void> {
        let mut state = ptr::null_mut();
        // SAFETY: a live model and a live pointer.
        unsafe { Error::check(sys::TRITONBACKEND_ModelState(self.raw.as_ptr(), &raw mut state)) }?;
        Ok(state)
    }

    fn keep(&self, state: *mut c_void) -> Result<()> {
        // SAFETY: a live model; the pointer is only ever read back by [`Keeper`].
        unsafe { Error::check(sys::TRITONBACKEND_ModelSetState(self.raw.as_ptr(), state)) }
    }
}

/// An owned message.
struct Message(*mut sys::TRITONSERVER_Message);

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once. There is nothing to do about an error.
        let _ = unsafe { Error::check(sys::TRITONSERVER_MessageDelete(self.0)) };
    }
}

/// Owned buffer attributes.
struct BufferAttributes(*mut sys::TRITONSERVER_BufferAttributes);

impl BufferAttributes {
    fn new(kind: MemoryKind, bytes: u64) -> Result<Self> {
        let (kind, id) = match kind {
            MemoryKind::Host => (sys::TRITONSERVER_MEMORY_CPU, 0),
            MemoryKind::PinnedHost => (sys::TRITONSERVER_MEMORY_CPU_PINNED, 0),
            MemoryKind::Gpu(id) => (sys::TRITONSERVER_MEMORY_GPU, i64::from(id)),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the attributes become ours, and are alive.
        unsafe {
            Error::check(sys::TRITONSERVER_BufferAttributesNew(&raw mut raw))?;
            let attributes = Self(raw);
            Error::check(sys::TRITONSERVER_BufferAttributesSetMemoryType(raw, kind))?;
            Error::check(sys::TRITONSERVER_BufferAttributesSetMemoryTypeId(raw, id))?;
            Error::check(sys::TRITONSERVER_BufferAttributesSetByteSize(raw, bytes as usize))?;
            Ok(attributes)
        }
    }
}

impl Drop for BufferAttributes {
    fn drop(&mut self) {
        // SAFETY: owned, and deleted once. There is nothing to do about an error.
        let _ = unsafe { Error::check(sys::TRITONSERVER_BufferAttributesDelete(self.0)) };
    }
}
