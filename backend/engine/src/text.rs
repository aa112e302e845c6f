//! From committed tokens to text: whole characters only, and never a piece of a stop string.
//!
//! Text leaves once no later token can change it. Two things are held back: an incomplete UTF-8
//! character at the end (3 bytes at most), and the longest end of the text that may be the start of
//! a stop string. Each stop string is matched by a Knuth–Morris–Pratt automaton, so to match a byte
//! costs the same however long the answer is and whatever the stop string; to search the text again
//! with each token was rejected for that.
//!
//! The stop string that is *complete* first ends the text, as if it had come byte by byte; of those
//! complete at the same byte, the longest. So the text does not depend on how tokens cut it, and a
//! sequence never has to go on to learn whether a longer stop string would have come.

use std::mem;
use std::sync::Arc;

/// The bytes that each token adds to the text.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    bytes: Arc<[u8]>,
    ends: Arc<[u32]>,
}

impl Vocabulary {
    /// From one byte string for each token id, in order; empty for tokens that add no text.
    pub fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for piece in pieces {
            bytes.extend_from_slice(piece);
            ends.push(bytes.len() as u32);
        }
        Self { bytes: bytes.into(), ends: ends.into() }
    }

    /// Bytes of a token; empty if the id is not in the vocabulary.
    pub fn piece(&self, token: u32) -> &[u8] {
        let Some(&end) = self.ends.get(token as usize) else { return &[] };
        let start = if token == 0 { 0 } else { self.ends[token as usize - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

/// Text of one sequence on its way out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TextStream {
    stops: Arc<[StopString]>,
    /// How much of each stop string the end of `held` matches.
    matched: Vec<usize>,
    /// Characters that may belong to a stop string.
    held: String,
    /// Start of a character whose rest has not come.
    incomplete: Vec<u8>,
}

/// What a token did to the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// This much became certain (may be empty).
    Text(String),
    /// A stop string is complete: the text before it; the stream is over.
    Stopped(String),
}

impl TextStream {
    /// A stream that ends before any of `stops`. Empty ones are ignored.
    pub fn new(stops: Arc<[String]>) -> Self {
        let stops: Arc<[_]> = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .map(|stop| StopString::new(stop))
            .collect();
        Self { matched: vec![0; stops.len()], stops, held: String::new(), incomplete: Vec::new() }
    }

    /// From here on the stream also ends before any of `stops`; text that is already out does not
    /// count as the start of one.
    pub fn watch(&mut self, stops: Arc<[String]>) {
        let Self { stops, matched, .. } = Self::new(stops);
        self.stops = stops;
        self.matched = matched;
    }

    /// Adds a token's bytes. Invalid UTF-8 becomes U+FFFD once it is certain to be invalid, one for
    /// each maximal subpart, as [`String::from_utf8_lossy`] has it.
    pub fn push(&mut self, piece: &[u8]) -> Pushed {
        let new = self.held.len();
        self.decode(piece);
        self.advance(new)
    }

    /// The held-back rest, at the end of a sequence that no stop string ended.
    pub fn finish(&mut self) -> String {
        let new = self.held.len();
        if !mem::take(&mut self.incomplete).is_empty() {
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        match self.advance(new) {
            Pushed::Text(mut text) => {
                text.push_str(&mem::take(&mut self.held));
                self.matched.fill(0);
                text
            }
            // The replacement character completed a stop string.
            Pushed::Stopped(text) => text,
        }
    }

    /// Moves whole characters to `held`.
    fn decode(&mut self, piece: &[u8]) {
        let mut joined = mem::take(&mut self.incomplete);
        let bytes = if joined.is_empty() {
            piece
        } else {
            joined.extend_from_slice(piece);
            &joined
        };
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            self.held.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            // Only at the very end can the bytes to come make it valid.
            if chunks.peek().is_none() && is_incomplete(invalid) {
                self.incomplete = invalid.to_vec();
            } else {
                self.held.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Matches the stop strings against `held[new..]` and lets go of what is certain.
    fn advance(&mut self, new: usize) -> Pushed {
        for (index, &byte) in self.held.as_bytes().iter().enumerate().skip(new) {
            let mut complete = 0;
            for (stop, matched) in self.stops.iter().zip(&mut self.matched) {
                *matched = stop.next(*matched, byte);
                if *matched == stop.text.len() {
                    complete = complete.max(stop.text.len());
                }
            }
            if complete > 0 {
                let mut text = mem::take(&mut self.held);
                text.truncate(index + 1 - complete);
                self.matched.fill(0);
                self.incomplete.clear();
                return Pushed::Stopped(text);
            }
        }
        let possible = self.matched.iter().copied().max().unwrap_or(0);
        if possible == self.held.len() {
            return Pushed::Text(String::new());
        }
        // Stop strings and `held` are both UTF-8, so a match begins at a whole character.
        let rest = self.held.split_off(self.held.len() - possible);
        Pushed::Text(mem::replace(&mut self.held, rest))
    }
}

fn is_incomplete(bytes: &[u8]) -> bool {
    str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// A stop string with its failure function.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StopString {
    /// Not empty.
    text: Box<[u8]>,
    /// Entry `n`: length of the longest proper prefix of `text[..=n]` that is also its suffix.
    border: Box<[usize]>,
}

impl StopString {
    fn new(text: &str) -> Self {
        let mut stop = Self { text: text.as_bytes().into(), border: vec![0; text.len()].into() };
        let mut matched = 0;
        for n in 1..text.len() {
            matched = stop.next(matched, stop.text[n]);
            stop.border[n] = matched;
        }
        stop
    }

    /// How much is matched after one more byte. `matched` is less than the whole.
    fn next(&self, mut matched: usize, byte: u8) -> usize {
        while self.text[matched] != byte {
            if matched == 0 {
                return 0;
            }
            matched = self.border[matched - 1];
        }
        matched + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str]) -> TextStream {
        TextStream::new(stops.iter().map(|&stop| stop.to_owned()).collect())
    }

    fn text(pushed: Pushed) -> String {
        match pushed {
            Pushed::Text(text) => text,
            Pushed::Stopped(text) => panic!("stopped after {text:?}"),
        }
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let mut stream = stream(&[]);
        let bytes = "a🦀".as_bytes();
        assert_eq!(text(stream.push(&bytes[..2])), "a");
        assert_eq!(text(stream.push(&bytes[2..4])), "");
        assert_eq!(text(stream.push(&bytes[4..])), "🦀");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn invalid_bytes_are_replaced_once_certain() {
        let mut stream = stream(&[]);
        assert_eq!(text(stream.push(b"\xE2\x82")), "");
        assert_eq!(text(stream.push(b"x\xFF")), "\u{FFFD}x\u{FFFD}");
        assert_eq!(text(stream.push(b"\xF0\x9F")), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }

    #[test]
    fn the_start_of_a_stop_string_waits() {
        let mut stream = stream(&["</s>", "\n\n"]);
        assert_eq!(text(stream.push(b"one</")), "one");
        assert_eq!(text(stream.push(b"p>\n")), "</p>");
        assert_eq!(text(stream.push(b"two<")), "\ntwo");
        assert_eq!(stream.push(b"/s>three"), Pushed::Stopped(String::new()));
        let mut stream = self::stream(&["</s>"]);
        assert_eq!(text(stream.push(b"one<")), "one");
        assert_eq!(stream.finish(), "<");
    }

    #[test]
    fn the_stop_string_complete_first_wins_then_the_longest() {
        assert_eq!(stream(&["bc", "abcd"]).push(b"xabcd"), Pushed::Stopped("xa".into()));
        assert_eq!(stream(&["c", "bc"]).push(b"xabcd"), Pushed::Stopped("xa".into()));
        assert_eq!(stream(&["cd", "ab"]).push(b"xabcd"), Pushed::Stopped("x".into()));
        // A failed match falls back to a shorter one inside it.
        let mut stream = stream(&["aab"]);
        assert_eq!(text(stream.push(b"aaa")), "a");
        assert_eq!(stream.push(b"b"), Pushed::Stopped(String::new()));
    }

    #[test]
    fn a_stop_string_of_the_replacement_character_can_end_the_rest() {
        let mut stream = stream(&["x\u{FFFD}"]);
        assert_eq!(text(stream.push(b"yx\xE2")), "y");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn an_empty_stop_string_never_stops() {
        assert_eq!(text(stream(&[""]).push(b"abc")), "abc");
    }

    #[test]
    fn pieces_of_the_vocabulary() {
        let pieces: [&[u8]; 4] = [b"one", b"", b"\xFF", b"two"];
        let vocabulary = Vocabulary::new(pieces);
        for (token, piece) in pieces.iter().enumerate() {
            assert_eq!(vocabulary.piece(token as u32), *piece);
        }
        assert_eq!(vocabulary.piece(4), b"");
        assert_eq!(vocabulary.piece(u32::MAX), b"");
    }

    /// The definition: all of it decoded, cut before the stop string that is complete first.
    fn oracle(bytes: &[u8], stops: &[String]) -> (String, bool) {
        let text = String::from_utf8_lossy(bytes);
        let stops = || stops.iter().filter(|stop| !stop.is_empty());
        for end in 1..=text.len() {
            let complete = stops().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(longest) = complete.map(String::len).max() {
                return (text[..end - longest].to_owned(), true);
            }
        }
        (text.into_owned(), false)
    }

    /// Few different bytes, so that stop strings overlap and characters break in every way.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte =
            prop::sample::select(b"aab\xC3\xA9\xE2\x82\xAC\xF0\x9F\xA6\x80\xFF\xED\xA0".as_slice());
        let character = prop::sample::select(vec!["a", "b", "é", "€", "🦀", "\u{FFFD}"])
            .prop_map(|text| text.as_bytes().to_vec());
        let part = prop_oneof![1 => byte.prop_map(|byte| vec![byte]), 3 => character];
        prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
    }

    fn stops() -> impl Strategy<Value = Vec<String>> {
        let character = prop::sample::select(vec!['a', 'a', 'b', 'é', '€', '🦀', '\u{FFFD}']);
        let stop = prop::collection::vec(character, 0..6).prop_map(String::from_iter);
        prop::collection::vec(stop, 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn any_split_gives_the_text_cut_at_the_first_stop(
            bytes in bytes(),
            stops in stops(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let (expected, stopped) = oracle(&bytes, &stops);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();

            let longest = stops.iter().map(String::len).max().unwrap_or(0);
            let mut stream = TextStream::new(stops.into());
            let (mut got, mut over) = (String::new(), false);
            for cut in cuts.windows(2) {
                match stream.push(&bytes[cut[0]..cut[1]]) {
                    Pushed::Text(text) => got.push_str(&text),
                    Pushed::Stopped(text) => {
                        got.push_str(&text);
                        over = true;
                        break;
                    }
                }
                prop_assert!(stream.incomplete.len() <= 3);
                prop_assert!(stream.held.len() <= longest.saturating_sub(1));
            }
            if over {
                prop_assert!(stopped);
            } else {
                got.push_str(&stream.finish());
            }
            prop_assert_eq!(got, expected);
        }
    }

    /// Quadratic matching would take minutes here.
    #[test]
    fn a_stop_string_that_almost_matches_all_the_time_is_no_burden() {
        let stop = "a".repeat(100_000) + "b";
        let mut stream = TextStream::new([stop].into());
        let answer = "a".repeat(1_000_000);
        let pushed: usize = answer.as_bytes().chunks(400).map(|c| text(stream.push(c)).len()).sum();
        assert_eq!(pushed, 900_000);
        assert_eq!(stream.push(b"b"), Pushed::Stopped(String::new()));
    }
}
