//! How a token shows what happened to it: by colour on a terminal, by brackets elsewhere and under NO_COLOR.

use console::Style;

use crate::answer::Event;

/// What happened to a piece of text, the most remarkable last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    /// The draft's token, not suspect; or the shadow's under the policy that has no draft.
    Plain,
    /// Suspect; the shadow chose the same token.
    Verified,
    /// Suspect; the shadow's token took its place.
    Rewound,
}

impl Mark {
    fn of(decision: &str) -> Self {
        match decision {
            "verified" => Self::Verified,
            "rewound" => Self::Rewound,
            _ => Self::Plain,
        }
    }

    fn brackets(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain => ("", ""),
            Self::Verified => ("{", "}"),
            Self::Rewound => ("[", "]"),
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Verified => Style::new().green(),
            Self::Rewound => Style::new().red().bold().underlined(),
        }
    }

    fn apply(self, text: &str, colours: bool) -> String {
        if text.is_empty() {
            return String::new();
        }
        if colours {
            return self.style().force_styling(true).apply_to(text).to_string();
        }
        let (open, close) = self.brackets();
        format!("{open}{text}{close}")
    }
}

/// The text of `event`, marked by the most remarkable of its tokens.
///
/// `held` keeps a mark for text that is still to come: a token may end in half a character, and then its text arrives
/// with the next token.
pub(crate) fn marked(event: &Event, held: &mut Held, colours: bool) -> String {
    let mark = event.tokens().map(|token| Mark::of(token.decision)).max();
    let mark = mark.max(held.0).unwrap_or(Mark::Plain);
    let text = event.text();
    held.0 = text.is_empty().then_some(mark);
    mark.apply(&text, colours)
}

/// The mark of tokens whose text has not arrived yet.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Mark>);

/// One line that explains the marks.
pub(crate) fn legend(colours: bool) -> String {
    let verified = Mark::Verified.apply("suspect, shadow agreed", colours);
    let rewound = Mark::Rewound.apply("suspect, rewound: the shadow's token instead", colours);
    format!("draft  {verified}  {rewound}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str, decisions: &[&str]) -> Event {
        let ones = vec![1; decisions.len()];
        let json = serde_json::json!({
            "text_output": text, "decision": decisions,
            "token_ids": ones, "entropy": ones, "score": ones, "threshold": ones,
        });
        Event::read(&json.to_string()).unwrap()
    }

    fn plain(text: &str, decisions: &[&str]) -> String {
        marked(&event(text, decisions), &mut Held::default(), false)
    }

    #[test]
    fn brackets_tell_decisions_apart() {
        assert_eq!(plain(" a", &["draft"]), " a");
        assert_eq!(plain(" a", &["shadow"]), " a");
        assert_eq!(plain(" a", &["verified"]), "{ a}");
        assert_eq!(plain(" a", &["rewound"]), "[ a]");
        assert_eq!(plain(" a b c", &["draft", "rewound", "verified"]), "[ a b c]");
        assert_eq!(plain("", &["rewound"]), "");
    }

    #[test]
    fn colours_are_escapes_around_the_text() {
        let coloured = marked(&event("a", &["rewound"]), &mut Held::default(), true);
        assert_ne!(coloured, "a");
        assert_eq!(console::strip_ansi_codes(&coloured), "a");
        assert_eq!(marked(&event("a", &["draft"]), &mut Held::default(), true), "a");
    }

    #[test]
    fn a_mark_waits_for_its_text() {
        let mut held = Held::default();
        assert_eq!(marked(&event("", &["rewound"]), &mut held, false), "");
        assert_eq!(marked(&event("😀", &["draft"]), &mut held, false), "[😀]");
        assert_eq!(marked(&event("a", &["draft"]), &mut held, false), "a");
    }
}
