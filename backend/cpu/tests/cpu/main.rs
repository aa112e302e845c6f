//! What is the CPU executor's own; `suite.rs` has what every executor must do.

mod loading;
mod settings;
