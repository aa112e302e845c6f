//! The bytes that each token stands for.

use std::collections::HashMap;

/// What SentencePiece writes for a space.
pub(crate) const SPACE: char = '▁';

/// One run of bytes for every id, in a single buffer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    longest: usize,
}

impl Pieces {
    pub(crate) fn with_capacity(ids: usize) -> Self {
        Self { bytes: Vec::with_capacity(8 * ids), ends: Vec::with_capacity(ids), longest: 0 }
    }

    pub(crate) fn get(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    pub(crate) fn max_len(&self) -> usize {
        self.longest
    }

    /// The next id is a special token, or none at all.
    pub(crate) fn push_nothing(&mut self) {
        self.push(&[]);
    }

    /// The next id is a token of a byte-level vocabulary. One that strays from the alphabet, as added
    /// tokens may, stands for its own text.
    pub(crate) fn push_byte_level(&mut self, token: &str, alphabet: &Alphabet) {
        let bytes: Option<Vec<u8>> = token.chars().map(|c| alphabet.byte(c)).collect();
        match bytes {
            Some(bytes) => self.push(&bytes),
            None => self.push(token.as_bytes()),
        }
    }

    /// The next id is a token of a SentencePiece vocabulary: text, or a byte as `<0xNN>`.
    pub(crate) fn push_sentence_piece(&mut self, token: &str) {
        match byte_token(token) {
            Some(byte) => self.push(&[byte]),
            None => self.push(token.replace(SPACE, " ").as_bytes()),
        }
    }

    fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        self.longest = self.longest.max(piece.len());
        // Vocabularies come out of files of at most 2²⁸ bytes of text.
        self.ends.push(self.bytes.len() as u32);
    }
}

/// The byte of a token such as `<0x0A>`.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: a printable character for each byte.
#[derive(Clone, Debug)]
pub(crate) struct Alphabet(HashMap<char, u8>);

impl Alphabet {
    pub(crate) fn new() -> Self {
        // Bytes that are printable in Latin-1 stand for themselves, the others for the characters
        // from 256 on, in order.
        let mut shifted = 256_u32..;
        let map = (0..=255_u8).filter_map(|byte| {
            let c = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => Some(char::from(byte)),
                _ => shifted.next().and_then(char::from_u32),
            };
            Some((c?, byte))
        });
        Self(map.collect())
    }

    fn byte(&self, c: char) -> Option<u8> {
        self.0.get(&c).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection_with_known_corners() {
        let alphabet = Alphabet::new();
        let mut bytes: Vec<u8> = alphabet.0.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        for (c, byte) in [('a', b'a'), ('Ġ', b' '), ('Ċ', b'\n'), ('Ń', 0xad), ('ÿ', 0xff)] {
            assert_eq!(alphabet.byte(c), Some(byte), "{c}");
        }
        assert_eq!(alphabet.byte('▁'), None);
    }

    #[test]
    fn pieces_of_both_kinds() {
        let alphabet = Alphabet::new();
        let mut pieces = Pieces::default();
        pieces.push_byte_level("Ġhé", &alphabet);
        pieces.push_nothing();
        pieces.push_byte_level("日本", &alphabet);
        pieces.push_sentence_piece("▁▁x");
        pieces.push_sentence_piece("<0xE6>");
        pieces.push_sentence_piece("<0x+1>");
        let expected: [&[u8]; 7] =
            [b" h\xe9", b"", "日本".as_bytes(), b"  x", b"\xe6", b"<0x+1>", b""];
        for (id, piece) in expected.iter().enumerate() {
            assert_eq!(pieces.get(id as u32), *piece, "{id}");
        }
        assert_eq!(pieces.max_len(), 6);
        assert_eq!(pieces.get(u32::MAX), b"");
    }
}
