//! What a quantized draft costs in tokens that nobody needed, and what each policy gives back.
//!
//! An answer is compared with the shadow's own to the same request and seed. What is computed at or after the first
//! token that differs is *dead*: the answer has left the one that the full-precision model gives. [`Play`] runs
//! requests under one policy through an engine, with the detector's verdicts or with [drawn](Verdict) ones, and keeps
//! what the executor answered to each row. [`composed`] runs the same engine over those answers again at any number
//! of sequences side by side, without a model, which tells every pass that a server would have run; a
//! [`CostTable`] gives these passes a price. So tokens are generated once, as fast as the machine can, and priced for
//! every batch size: they do not depend on it.
//!
//! Definitions are those of the design: *hazard* is the chance per token that an answer leaves the shadow's, *dead
//! compute* the cost of tokens at or after that place over the cost of all, drafts thrown away and rewinds included, at a
//! stated length. *Shadow regret* is the mean of max ln p − ln p(served), by the shadow reading the served answer from a
//! clean cache.

mod compose;
mod cost;
mod play;
mod prompts;
mod regret;
mod score;
mod verdict;
mod witness;

pub use compose::{Costs, composed};
pub use cost::{CostTable, Curve, CurveError};
pub use play::{Answer, Play, PlayError, threshold_at};
pub use prompts::{Prompt, prompts};
pub use regret::regret;
pub use score::{Case, Figure, Figures, divergence};
pub use verdict::Verdict;
pub use witness::{Told, Witness};
