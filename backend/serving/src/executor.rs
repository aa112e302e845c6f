//! The executor of a loaded model, whichever device it is on.
//!
//! An enum, not a trait object: there are two, both are known here, and whoever has one can ask which.
//! The dispatch costs one comparison a pass.

use std::fmt;

use rewind_cpu::CpuExecutor;
use rewind_cuda::CudaExecutor;
use rewind_engine::{Engine, Executor, ExecutorError, Limits, Pass, RowResult, Ticket, Weights};

/// The engine over whichever device the model is on.
pub type AnyEngine = Engine<AnyExecutor>;

/// An executor on any device.
pub enum AnyExecutor {
    /// On the CPU.
    Cpu(Box<CpuExecutor>),
    /// On an NVIDIA GPU.
    Cuda(Box<CudaExecutor>),
}

impl fmt::Debug for AnyExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Cpu(_) => "AnyExecutor::Cpu",
            Self::Cuda(_) => "AnyExecutor::Cuda",
        };
        // What they hold are weights and buffers, of no use to read.
        f.debug_struct(name).field("limits", self.limits()).finish_non_exhaustive()
    }
}

impl Executor for AnyExecutor {
    fn limits(&self) -> &Limits {
        match self {
            Self::Cpu(executor) => executor.limits(),
            Self::Cuda(executor) => executor.limits(),
        }
    }

    fn identity(&self, weights: Weights) -> String {
        match self {
            Self::Cpu(executor) => executor.identity(weights),
            Self::Cuda(executor) => executor.identity(weights),
        }
    }

    fn submit(&mut self, pass: Pass) -> Result<Ticket, ExecutorError> {
        match self {
            Self::Cpu(executor) => executor.submit(pass),
            Self::Cuda(executor) => executor.submit(pass),
        }
    }

    fn wait(&mut self, ticket: Ticket) -> Result<Vec<RowResult>, ExecutorError> {
        match self {
            Self::Cpu(executor) => executor.wait(ticket),
            Self::Cuda(executor) => executor.wait(ticket),
        }
    }
}
