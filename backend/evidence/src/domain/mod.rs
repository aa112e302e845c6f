//! Texts of five kinds, for calibration without a text of one's own.
//!
//! Prose and code are shipped (`texts/README.md` says where they are from), mathematics and adversarial texts are made
//! from fixed seeds, and a chat is a question of ours that the shadow itself answers.

mod adversarial;
mod arithmetic;

use std::fmt;
use std::str::FromStr;

use rewind_engine::Token;

/// A kind of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// Questions and requests, with the model's own answers.
    Chat,
    /// Source code.
    Code,
    /// Word problems with worked solutions, and tables of arithmetic.
    Math,
    /// A novel.
    Prose,
    /// What no one means: random tokens, endless repetition, look-alike letters, control characters.
    Adversarial,
}

/// What a document is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<Token>),
    /// A user's message. The document is the chat template's prompt for it and the shadow's greedy answer.
    Chat(String),
}

/// A document before it is tokenized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub content: Content,
}

impl Domain {
    /// Every domain.
    pub const ALL: [Self; 5] = [Self::Chat, Self::Code, Self::Math, Self::Prose, Self::Adversarial];

    /// Its name, which its profile bears.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Code => "code",
            Self::Math => "math",
            Self::Prose => "prose",
            Self::Adversarial => "adversarial",
        }
    }

    /// What it is, for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Chat => "Questions and requests, with the model's own answers",
            Self::Code => "Source code in Python, Rust and CUDA",
            Self::Math => "Word problems with worked solutions, and tables of arithmetic",
            Self::Prose => "A novel in English",
            Self::Adversarial => {
                "Random tokens, repetition, look-alike letters, control characters"
            }
        }
    }

    /// Its documents, the same for every call; `vocabulary` is the number of tokens that random ones are drawn from.
    pub fn sources(self, vocabulary: u32) -> Vec<Source> {
        match self {
            Self::Chat => chat(include_str!("../../texts/chat.txt")),
            Self::Code => sections(include_str!("../../texts/code.txt")),
            Self::Math => arithmetic::sources(),
            Self::Prose => sections(include_str!("../../texts/prose.txt")),
            Self::Adversarial => adversarial::sources(vocabulary),
        }
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is not a domain's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown domain {0:?}: expected chat, code, math, prose or adversarial")]
pub struct UnknownDomain(pub String);

impl FromStr for Domain {
    type Err = UnknownDomain;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(|| UnknownDomain(name.into()))
    }
}

/// Begins the line with the name of a document.
const HEAD: &str = "=== ";

/// Documents of a shipped file: each begins with a line that names it.
fn sections(text: &str) -> Vec<Source> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix(HEAD), found.last_mut()) {
            (Some(name), _) => found.push((name.to_owned(), String::new())),
            (None, Some((_, text))) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    let source = |(name, text)| Source { name, content: Content::Text(text) };
    found.into_iter().map(source).collect()
}

/// A message on each line.
fn chat(text: &str) -> Vec<Source> {
    text.lines()
        .map(|line| Source { name: line.to_owned(), content: Content::Chat(line.to_owned()) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_domain_has_enough_documents_that_differ() {
        for domain in Domain::ALL {
            let sources = domain.sources(1000);
            assert!(sources.len() >= 30, "{domain} has {}", sources.len());
            assert_eq!(sources, domain.sources(1000));
            let names: BTreeSet<_> = sources.iter().map(|source| &source.name).collect();
            assert_eq!(names.len(), sources.len(), "{domain}");
            for (place, source) in sources.iter().enumerate() {
                assert!(sources[..place].iter().all(|other| other.content != source.content));
                let long = match &source.content {
                    Content::Text(text) => text.len() >= 600,
                    Content::Tokens(tokens) => tokens.len() >= 300,
                    Content::Chat(message) => !message.is_empty(),
                };
                assert!(long, "{domain}: {} is short", source.name);
            }
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for domain in Domain::ALL {
            assert_eq!(domain.to_string().parse(), Ok(domain));
        }
        assert!("poetry".parse::<Domain>().unwrap_err().to_string().contains("\"poetry\""));
    }

    #[test]
    fn sections_are_whole() {
        let found = sections("=== one\na\n\nb\n=== two\nc\n");
        let text = |text: &str| Content::Text(text.to_owned());
        assert_eq!(found[0], Source { name: "one".into(), content: text("a\n\nb\n") });
        assert_eq!(found[1], Source { name: "two".into(), content: text("c\n") });
    }
}
