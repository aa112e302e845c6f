//! "Did you mean": the known name that is nearest to a mistyped one.

/// The name in `known` most like `name`, if one is like enough to be worth suggesting.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Below this two names share little more than their length.
    const ALIKE: f64 = 0.75;
    // Names are short; what is not need not be compared.
    let name: String = name.chars().take(64).collect();
    let name = name.to_ascii_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name, known), known))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// `: did you mean "x"?`, or nothing.
pub(crate) fn hint(nearest: Option<&str>) -> String {
    nearest.map(|known| format!(": did you mean {known:?}?")).unwrap_or_default()
}
