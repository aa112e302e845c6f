//! Texts that no one means.

use fastrand::Rng;
use rewind_engine::Token;

use super::{Content, Source};

/// Documents of each kind.
const EACH: u64 = 6;

/// Tokens of those that are drawn as tokens.
const TOKENS: usize = 400;

/// Bytes of the others, at least.
const LENGTH: usize = 1200;

/// Sentences of ours to spoil.
const SENTENCES: [&str; 6] = [
    "The quick repair of the old bridge surprised everyone in the village. ",
    "Please send the report to the office before the end of the week. ",
    "A small error in the first step can change the whole answer. ",
    "Nobody knew why the lights in the harbour went out at midnight. ",
    "Open the file, read the third line, and tell me what it says. ",
    "Every morning she counted the boats and wrote the number down. ",
];

/// Makes the content of a document.
type Make = fn(&mut Rng, u32) -> Content;

pub(super) fn sources(vocabulary: u32) -> Vec<Source> {
    let kinds: [(&str, Make); 6] = [
        ("random tokens", random_tokens),
        ("endless repetition", repetition),
        ("look-alike letters", look_alikes),
        ("control characters", control),
        ("mixed scripts", scripts),
        ("random characters", characters),
    ];
    let of_kind = |(name, make): (&'static str, Make)| {
        (0..EACH).map(move |seed| Source {
            name: format!("{name} {seed}"),
            content: make(&mut Rng::with_seed(2000 + seed), vocabulary),
        })
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

fn random_tokens(random: &mut Rng, vocabulary: u32) -> Content {
    Content::Tokens((0..TOKENS).map(|_| random.u32(..vocabulary.max(1)) as Token).collect())
}

/// One thing, again and again, with a flaw now and then in every other document.
fn repetition(random: &mut Rng, _: u32) -> Content {
    let units = ["ha", "no ", "10", "the same ", "abc ", "\n- ", "yes, and ", "=+="];
    let (unit, flawed) = (units[random.usize(..units.len())], random.bool());
    let mut text = String::new();
    while text.len() < LENGTH {
        text.push_str(if flawed && random.u32(..40) == 0 { "but " } else { unit });
    }
    // Two seeds may draw the same unit.
    Content::Text(format!("Repeat {}: {text}", random.u32(..1_000_000)))
}

/// Letters that only look like the ones that are meant.
fn look_alikes(random: &mut Rng, _: u32) -> Content {
    spoiled(random, |random, letter| {
        let other = match letter {
            'a' => 'а',
            'c' => 'с',
            'e' => 'е',
            'i' => 'і',
            'o' => 'о',
            'p' => 'р',
            's' => 'ѕ',
            'x' => 'х',
            'y' => 'у',
            'A' => 'Α',
            'E' => 'Ε',
            'N' => 'Ν',
            'O' => 'Ο',
            'P' => 'Ρ',
            'T' => 'Τ',
            letter => letter,
        };
        if random.u32(..2) == 0 { vec![other] } else { vec![letter] }
    })
}

/// Characters that nothing shows: controls, zero-width joiners, changes of direction, stacked accents.
fn control(random: &mut Rng, _: u32) -> Content {
    const HIDDEN: [char; 12] = [
        '\u{1}', '\u{7}', '\u{8}', '\u{1b}', '\u{7f}', '\u{200b}', '\u{200d}', '\u{202e}',
        '\u{feff}', '\u{301}', '\u{334}', '\u{fffd}',
    ];
    spoiled(random, |random, letter| {
        if random.u32(..6) == 0 {
            vec![letter, HIDDEN[random.usize(..HIDDEN.len())]]
        } else {
            vec![letter]
        }
    })
}

fn spoiled(random: &mut Rng, mut change: impl FnMut(&mut Rng, char) -> Vec<char>) -> Content {
    let mut text = String::new();
    while text.len() < LENGTH {
        let sentence = SENTENCES[random.usize(..SENTENCES.len())];
        text.extend(sentence.chars().flat_map(|letter| change(random, letter)));
    }
    Content::Text(text)
}

/// Words of several languages without order.
fn scripts(random: &mut Rng, _: u32) -> Content {
    const WORDS: [&str; 16] = [
        "дорога",
        "вода",
        "θάλασσα",
        "λόγος",
        "水",
        "山の上",
        "한국어",
        "नमस्ते",
        "שלום",
        "سلام",
        "ไทย",
        "straße",
        "naïve",
        "ñandú",
        "🙂🙃",
        "∑∂",
    ];
    words(random, |random| WORDS[random.usize(..WORDS.len())].to_owned())
}

/// Any characters at all, in words of up to twelve.
fn characters(random: &mut Rng, _: u32) -> Content {
    words(random, |random| {
        let length = random.usize(1..=12);
        (0..length).map(|_| random.char('!'..='\u{2fff}')).collect()
    })
}

fn words(random: &mut Rng, mut word: impl FnMut(&mut Rng) -> String) -> Content {
    let mut text = String::new();
    while text.len() < LENGTH {
        text.push_str(&word(random));
        text.push(' ');
    }
    Content::Text(text)
}
