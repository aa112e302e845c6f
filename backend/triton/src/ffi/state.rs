//! What Triton keeps for us with a backend, a model or an instance: one pointer each.

use std::ffi::c_void;
use std::ptr;

use super::error::Result;

/// An object of Triton's that keeps a pointer.
pub(super) trait Keeper {
    /// The pointer; null if none was set.
    fn kept(&self) -> Result<*mut c_void>;

    /// Sets the pointer.
    fn keep(&self, state: *mut c_void) -> Result<()>;

    /// Hands a state to Triton's keeping.
    fn set_state<T: Send + Sync>(&self, state: Box<T>) -> Result<()> {
        let state = Box::into_raw(state);
        let set = self.keep(state.cast());
        if set.is_err() {
            // SAFETY: made from a box above, and Triton did not take it.
            drop(unsafe { Box::from_raw(state) });
        }
        set
    }

    /// The state, if one was set.
    ///
    /// # Safety
    /// The state was set as a `T`, and is not taken while the borrow lives.
    unsafe fn state<T>(&self) -> Result<Option<&T>> {
        // SAFETY: the contract above.
        Ok(unsafe { self.kept()?.cast::<T>().as_ref() })
    }

    /// Takes the state back.
    ///
    /// # Safety
    /// The state was set as a `T`, and no borrow of it is alive.
    unsafe fn take_state<T>(&self) -> Result<Option<Box<T>>> {
        let state = self.kept()?;
        self.keep(ptr::null_mut())?;
        // SAFETY: set from a box of this type by the contract above, and taken once.
        Ok((!state.is_null()).then(|| unsafe { Box::from_raw(state.cast()) }))
    }
}
