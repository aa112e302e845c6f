//! The rewind engine: which rows run next, on which weights, and what becomes of their results.
//!
//! [`Core`] is pure: no threads, clocks, channels or floating-point keys. `plan()` gives the passes
//! of one iteration, `apply()` takes their results and gives events. It is `Clone + Hash + Eq`, so
//! the very code that serves is the code that is model-checked. [`Engine`] joins it with an
//! [`Executor`], the seam to a device.
#![forbid(unsafe_code)]

mod core;
mod engine;
mod event;
mod executor;
mod pages;
mod request;
mod sequence;
mod validate;

pub mod sampling;
pub mod text;

pub use crate::core::{Audit, Core, Load, Passes, Selection, Settings};
pub use crate::engine::{Engine, PassReport, Step};
pub use crate::event::{Committed, Decision, Event, FinishReason, RewindReason, SequenceError};
pub use crate::executor::{
    Adapter, Choose, Executor, ExecutorError, Input, Limits, Outputs, PageCopy, PageTable, Pass,
    Row, RowClass, RowResult, Slot, Ticket, Token, TokenLogprob, TokenMask, Weights,
};
pub use crate::pages::{PageId, Pin};
pub use crate::request::{GateChoice, Policy, Refusal, Request, RequestId, Stop};
pub use crate::validate::validate;
