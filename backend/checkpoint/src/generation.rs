//! What a checkpoint suggests for generation.

/// Special tokens and sampling settings that the checkpoint comes with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Tokens that end a sequence, ascending; empty if the checkpoint names none.
    pub eos: Vec<u32>,
    /// Token that begins a sequence. Whether prompts get it is the tokenizer's business.
    pub bos: Option<u32>,
    /// Suggested temperature; `None` if the checkpoint suggests none, or no sampling at all.
    pub temperature: Option<f32>,
    /// Suggested top-p, likewise.
    pub top_p: Option<f32>,
    /// Suggested top-k, likewise; 0 means no limit.
    pub top_k: Option<u32>,
}
