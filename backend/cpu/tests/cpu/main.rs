//! What is the CPU executor's own; `suite.rs` has what every executor must do.

mod flaws;
mod loading;
mod settings;
mod stored;
mod threads;
