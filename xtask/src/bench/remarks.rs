//! The part of a generated document that people write.
//!
//! It stands between two comments. Everything else is written anew by every run, so that no figure can be touched up.

/// Where the remarks begin and end, each on a line of its own.
const BEGIN: &str = "<!-- Remarks: what stands from here … -->";
const END: &str = "<!-- … to here is kept when this file is written again. -->";

/// What stands between the marks of `document`; nothing if it has none.
pub(super) fn of(document: &str) -> &str {
    document
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.rsplit_once(END))
        .map_or("", |(remarks, _)| remarks.trim())
}

/// `remarks` between their marks.
pub(super) fn marked(remarks: &str) -> String {
    match remarks.trim() {
        "" => format!("{BEGIN}\n\n{END}\n"),
        remarks => format!("{BEGIN}\n\n{remarks}\n\n{END}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_survive_any_number_of_times() {
        let written = "Prefill is short.\n\n- tried: `tiles`";
        let mut document = format!("# Old\n\n{}\n## After\n", marked(written));
        for _ in 0..3 {
            assert_eq!(of(&document), written);
            document = format!("# New\n{}", marked(of(&document)));
        }
    }

    #[test]
    fn without_marks_there_are_none() {
        for document in ["", "# Title\ntext", BEGIN, &format!("{END}\n{BEGIN}\ntext")] {
            assert_eq!(of(document), "", "{document}");
        }
        assert_eq!(of(&marked("")), "");
    }
}
