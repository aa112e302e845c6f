//! Prompts cut from documents.

use std::collections::{BTreeMap, BTreeSet};

use rewind_engine::Token;

use crate::document::{Document, Half};

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Kind of text.
    pub domain: String,
    /// Document that it is from.
    pub document: String,
    /// Its tokens.
    pub tokens: Vec<Token>,
}

/// Tokens of a prompt that is cut out of a text.
const WINDOW: usize = 64;

/// So many prompts of each domain at most, out of the documents of one half, as evenly over these as can be; no two the
/// same.
///
/// A conversation is cut after its question or some way into the answer, with all that stands before; of another text,
/// 64 tokens are taken from different places.
pub fn prompts(documents: &[Document], halves: &[Half], half: Half, of_each: usize) -> Vec<Prompt> {
    let mut domains: BTreeMap<&str, Vec<&Document>> = BTreeMap::new();
    for (document, _) in documents.iter().zip(halves).filter(|(_, one)| **one == half) {
        domains.entry(&document.domain).or_default().push(document);
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for documents in domains.into_values() {
        let cuts = of_each.div_ceil(documents.len());
        let candidates = (0..cuts).flat_map(|cut| {
            documents.iter().map(move |document| Prompt {
                domain: document.domain.clone(),
                document: document.name.clone(),
                tokens: cut_out(document, cut, cuts).to_vec(),
            })
        });
        let fresh = candidates.filter(|prompt| seen.insert(prompt.tokens.clone()));
        found.extend(fresh.take(of_each));
    }
    found
}

/// Cut number `cut` of `cuts` of a document.
fn cut_out(document: &Document, cut: usize, cuts: usize) -> &[Token] {
    let Document { tokens, prompt, .. } = document;
    if document.domain == crate::domain::Domain::Chat.name() {
        // No further than half of the answer: after it, there is little left to say.
        let answer = tokens.len() - prompt;
        return &tokens[..prompt + cut * answer / (2 * cuts)];
    }
    let last = tokens.len().saturating_sub(WINDOW);
    let start = cut * last / cuts;
    &tokens[start..(start + WINDOW).min(tokens.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(domain: &str, name: u32, tokens: usize, prompt: usize) -> Document {
        let tokens = (0..tokens as u32).map(|at| 1000 * name + at).collect();
        Document { domain: domain.into(), name: name.to_string(), tokens, prompt }
    }

    #[test]
    fn each_domain_gives_its_share_from_the_half_that_is_asked_for() {
        let documents: Vec<_> = (0..6)
            .map(|name| document(if name < 3 { "chat" } else { "code" }, name, 300, 40))
            .collect();
        let halves = [Half::Train, Half::Test, Half::Test, Half::Test, Half::Train, Half::Test];
        let found = prompts(&documents, &halves, Half::Test, 5);
        let of = |domain: &str| found.iter().filter(|p| p.domain == domain).collect::<Vec<_>>();
        let (chat, code) = (of("chat"), of("code"));
        assert_eq!((chat.len(), code.len()), (5, 5));
        assert!(chat.iter().all(|p| ["1", "2"].contains(&&*p.document)));
        assert!(chat.iter().all(|p| p.tokens[0] % 1000 == 0 && p.tokens.len() >= 40));
        assert!(code.iter().all(|p| p.tokens.len() == WINDOW));
        let tokens: BTreeSet<_> = found.iter().map(|prompt| &prompt.tokens).collect();
        assert_eq!(tokens.len(), found.len());
        assert!(
            prompts(&documents, &halves, Half::Train, 1)
                .iter()
                .all(|p| ["0", "4"].contains(&&*p.document))
        );
    }

    #[test]
    fn equal_cuts_are_taken_once() {
        let documents = [document("code", 1, 64, 1), document("code", 1, 64, 1)];
        let found = prompts(&documents, &[Half::Test; 2], Half::Test, 4);
        assert_eq!(found.len(), 1, "all cuts are the whole text");
    }
}
