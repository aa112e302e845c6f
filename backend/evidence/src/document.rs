//! Documents, and which of them a fit may see.

use std::collections::BTreeMap;

use rewind_engine::Token;

/// A text as a model reads it, or a piece of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What kind of text it is; profiles bear this name.
    pub domain: String,
    /// Its own name; pieces of one text bear the same name and are never parted.
    pub name: String,
    /// All tokens, those of a prompt first.
    pub tokens: Vec<Token>,
    /// How many of them are the prompt: read, but not judged. At least 1.
    pub prompt: usize,
}

/// Which half of the documents one belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// Fits see it.
    Train,
    /// Held out: figures are measured on it.
    Test,
}

/// Share of the documents of a domain that are held out.
const TEST_SHARE: f64 = 0.4;

/// Fewest documents on either side: a bootstrap over one document has no width.
const FEWEST: usize = 2;

/// Fewest documents of a domain that can be split.
pub(crate) const FEWEST_DOCUMENTS: usize = 2 * FEWEST;

/// Splits each domain by document, never inside of one: neighbouring positions of a text resemble each other, and a
/// fit that has seen one knows the other.
///
/// The documents with the lowest hashes of their tokens are held out, about 40 % and at least two: the same documents
/// split the same way whatever their names and order, and two with the same tokens are on the same side.
pub fn split(documents: &[Document]) -> Vec<Half> {
    let mut hashers: BTreeMap<(&str, &str), blake3::Hasher> = BTreeMap::new();
    for document in documents {
        let hasher = hashers.entry((&document.domain, &document.name)).or_default();
        for token in &document.tokens {
            hasher.update(&token.to_le_bytes());
        }
    }
    let hashes: BTreeMap<_, [u8; 32]> =
        hashers.iter().map(|(&key, hasher)| (key, *hasher.finalize().as_bytes())).collect();
    let mut by_domain: BTreeMap<&str, Vec<[u8; 32]>> = BTreeMap::new();
    for (&(domain, _), &hash) in &hashes {
        by_domain.entry(domain).or_default().push(hash);
    }
    let last_held: BTreeMap<_, _> = by_domain
        .into_iter()
        .map(|(domain, mut hashes)| {
            hashes.sort_unstable();
            let held = (TEST_SHARE * hashes.len() as f64).round() as usize;
            // The last one that is held out; equal documents follow it.
            (domain, hashes.get(held.max(FEWEST) - 1).copied())
        })
        .collect();
    documents
        .iter()
        .map(|document| {
            let hash = hashes.get(&(document.domain.as_str(), document.name.as_str()));
            match (hash, last_held.get(document.domain.as_str())) {
                (Some(hash), Some(Some(last))) if hash > last => Half::Train,
                _ => Half::Test,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn document(domain: &str, name: usize, tokens: &[Token]) -> Document {
        let (domain, name) = (domain.to_owned(), name.to_string());
        Document { domain, name, tokens: tokens.to_vec(), prompt: 1 }
    }

    fn count(halves: &[Half], half: Half) -> usize {
        halves.iter().filter(|&&one| one == half).count()
    }

    #[test]
    fn two_fifths_are_held_out() {
        for (documents, held) in [(4, 2), (5, 2), (10, 4), (33, 13)] {
            let documents: Vec<_> =
                (0..documents).map(|number| document("a", number as usize, &[number])).collect();
            let halves = split(&documents);
            assert_eq!(count(&halves, Half::Test), held);
            assert_eq!(halves, split(&documents));
        }
    }

    #[test]
    fn each_domain_has_its_own_halves() {
        let documents: Vec<_> =
            ["a", "b"].iter().flat_map(|d| (0..10).map(|n| document(d, n, &[n as u32]))).collect();
        let halves = split(&documents);
        assert_eq!(halves[..10], halves[10..]);
        assert_eq!(count(&halves[..10], Half::Test), 4);
    }

    #[test]
    fn pieces_of_a_document_are_not_parted() {
        let pieces: Vec<_> =
            (0..60).map(|n| document("a", (n % 12) as usize, &[n, n + 1, n + 2])).collect();
        let halves = split(&pieces);
        assert!((0..60).all(|n| halves[n] == halves[n % 12]));
        assert_eq!(count(&halves[..12], Half::Test), 5);
    }

    proptest! {
        #[test]
        fn names_order_and_copies_leak_nothing(
            tokens in prop::collection::vec(prop::collection::vec(0..4_u32, 0..3), 4..30),
        ) {
            let documents: Vec<_> =
                tokens.iter().enumerate().map(|(number, t)| document("a", number, t)).collect();
            let halves = split(&documents);
            for (a, half) in documents.iter().zip(&halves) {
                for (b, other) in documents.iter().zip(&halves) {
                    prop_assert!(a.tokens != b.tokens || half == other);
                }
            }
            let backwards: Vec<_> = documents.iter().rev().cloned().collect();
            let mut again = split(&backwards);
            again.reverse();
            prop_assert_eq!(again, halves);
        }
    }
}
