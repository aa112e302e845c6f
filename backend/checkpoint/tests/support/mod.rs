//! Tiny checkpoints for tests, written by code that shares nothing with the readers.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod folder;
pub(crate) mod gguf;
pub(crate) mod quantized;
pub(crate) mod tiny;
