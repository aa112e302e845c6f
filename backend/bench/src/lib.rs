//! How fast an executor is, and what the monitor and a rewind cost on it.
//!
//! Every measurement is made of *rounds*. What is to be compared runs in every round, one after the
//! other, and the bandwidth of this machine's memory is sampled between them: whatever else the machine
//! does meanwhile meets all sides alike. All samples are kept; a figure is their median, with the
//! interval that a bootstrap gives for it.
//!
//! [`Decode`], [`Prefill`], [`Overhead`] and [`RewindCost`] drive an [`Executor`] pass by pass;
//! [`Throughput`] drives whole [engines](rewind_engine::Engine), as a server does. Nothing here loads a
//! model or prints.
//!
//! [`Executor`]: rewind_engine::Executor
#![forbid(unsafe_code)]

mod bandwidth;
mod error;
mod flow;
mod forced;
mod machine;
mod overhead;
mod report;
mod rewind_cost;
mod rig;
mod session;
mod speed;
mod statistics;
mod sweep;
mod throughput;
mod weights;

pub use bandwidth::{Bandwidth, ReadSweep, ThreadsBandwidth};
pub use error::BenchError;
pub use forced::Forced;
pub use machine::Machine;
pub use overhead::{Overhead, OverheadFigures};
pub use report::{Measurement, ModelNames, Report};
pub use rewind_cost::{Choosing, RewindCost, RewindCostFigures, RewindCostLine};
pub use rig::Room;
pub use session::{Copies, Copy, Session};
pub use speed::{Decode, Prefill};
pub use statistics::{Interval, Summary, median, quantile};
pub use sweep::{Pooling, PoolingChoice, PoolingFigures, PoolingLine};
pub use throughput::{BreakEven, Throughput, ThroughputFigures, ThroughputLine, Verdict};
pub use weights::WeightBytes;
