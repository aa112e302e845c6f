//! A prompt on its way to token ids.

use crate::error::RequestError;

/// What to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text, tokenized as the model's tokenizer does with a whole prompt.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<i32>),
}

impl Prompt {
    /// A text prompt from bytes.
    ///
    /// # Errors
    /// The bytes are not UTF-8; the first bad one is named.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, RequestError> {
        String::from_utf8(bytes).map(Self::Text).map_err(|error| RequestError::NotUtf8 {
            what: "the prompt",
            index: error.utf8_error().valid_up_to(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_must_be_utf8() {
        let text = Prompt::from_bytes("né".into()).unwrap();
        assert_eq!(text, Prompt::Text("né".into()));
        let error = Prompt::from_bytes(vec![b'n', 0xc3, b'x']).unwrap_err();
        assert_eq!(error, RequestError::NotUtf8 { what: "the prompt", index: 1 });
    }
}
