//! Files of prompts: one to a line, with `\n`, `\t` and `\\` for what a line cannot hold.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// Reads a file of prompts; empty lines are skipped.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the prompts in {}", path.display()))?;
    let prompts = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(number, line)| {
            unescape(line).with_context(|| format!("{}, line {}", path.display(), number + 1))
        })
        .collect::<Result<Vec<_>>>()?;
    if prompts.is_empty() {
        bail!("{} holds no prompt: write one on each line", path.display());
    }
    Ok(prompts)
}

fn unescape(line: &str) -> Result<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match rest.next() {
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('\\') => text.push('\\'),
            Some(other) => bail!("unknown escape \\{other}: known are \\n, \\t and \\\\"),
            None => bail!("a backslash ends the line: write \\\\ for a backslash"),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape(r"a\n\tb\\n").unwrap(), "a\n\tb\\n");
        assert!(unescape(r"a\x").is_err());
        assert!(unescape("a\\").is_err());
    }

    #[test]
    fn the_shipped_prompts_are_fifty_different_ones() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/prompts.txt");
        let mut prompts = read(&path).unwrap();
        assert_eq!(prompts.len(), 50);
        prompts.sort();
        prompts.dedup();
        assert_eq!(prompts.len(), 50);
    }
}
