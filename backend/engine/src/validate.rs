//! Is a pass one that an executor can run?
//!
//! Everything is checked before anything is done, so that what follows may index without doubt and a
//! defect of the engine is one message, not half a pass.

use crate::executor::{ExecutorError, Input, Limits, Pass, Row, Slot, Weights};

/// Most log-probabilities that a row may ask for.
const MAX_LOGPROBS: u8 = 20;

/// Checks a pass for an executor of these limits that has the weights for which `has` is true. What
/// depends on earlier passes (the last token of a slot) is for the executor to check when it runs.
///
/// # Errors
/// [`ExecutorError::InvalidPass`], naming the row and the rule.
pub fn validate(
    pass: &Pass,
    limits: &Limits,
    has: impl Fn(Weights) -> bool,
) -> Result<(), ExecutorError> {
    check(pass, limits, has).map_err(ExecutorError::InvalidPass)
}

fn check(pass: &Pass, limits: &Limits, has: impl Fn(Weights) -> bool) -> Result<(), String> {
    if !has(pass.weights) {
        let wanted = match pass.weights {
            Weights::Draft => "draft",
            Weights::Full => "shadow",
        };
        return Err(format!("this model has no {wanted} weights"));
    }
    if pass.layers != (0..limits.layers) {
        let all = limits.layers;
        return Err(format!(
            "layers {:?}: only whole passes, 0..{all}, are supported yet",
            pass.layers
        ));
    }
    if pass.rows.len() > limits.rows as usize {
        return Err(format!("{} rows; at most {} fit", pass.rows.len(), limits.rows));
    }
    for copy in &pass.copies {
        for page in [copy.from, copy.to] {
            if page.0 >= limits.pages {
                return Err(format!("copy of page {}; there are {}", page.0, limits.pages));
            }
        }
    }
    check_tables(pass, limits)?;
    for (number, row) in pass.rows.iter().enumerate() {
        check_row(row, pass, limits).map_err(|what| format!("row {number}: {what}"))?;
    }
    check_order(pass, limits)
}

fn check_slot(slot: Slot, limits: &Limits) -> Result<(), String> {
    if slot.0 >= limits.slots {
        return Err(format!("slot {}; there are {}", slot.0, limits.slots));
    }
    Ok(())
}

fn check_tables(pass: &Pass, limits: &Limits) -> Result<(), String> {
    let mut seen = vec![false; limits.slots as usize];
    for table in &pass.tables {
        check_slot(table.slot, limits)?;
        if std::mem::replace(&mut seen[table.slot.0 as usize], true) {
            return Err(format!("two page tables for slot {}", table.slot.0));
        }
        if let Some(page) = table.pages.iter().find(|page| page.0 >= limits.pages) {
            let (slot, pages) = (table.slot.0, limits.pages);
            return Err(format!("page {} in the table of slot {slot}; there are {pages}", page.0));
        }
    }
    Ok(())
}

fn check_row(row: &Row, pass: &Pass, limits: &Limits) -> Result<(), String> {
    check_slot(row.slot, limits)?;
    if row.position >= limits.positions {
        return Err(format!(
            "position {}; sequences have {} at most",
            row.position, limits.positions
        ));
    }
    let Some(table) = pass.tables.iter().find(|table| table.slot == row.slot) else {
        return Err(format!("slot {} has no page table", row.slot.0));
    };
    let needed = row.position / limits.page_tokens + 1;
    if table.pages.len() < needed as usize {
        let (position, pages) = (row.position, table.pages.len());
        return Err(format!("position {position} needs {needed} pages; its table has {pages}"));
    }
    match row.input {
        Input::Token(token) if token >= limits.vocabulary => {
            return Err(format!("token {token}; the vocabulary has {}", limits.vocabulary));
        }
        Input::Token(_) => {}
        Input::LastOf(slot) => check_slot(slot, limits)?,
        Input::Hidden(_) => return Err("hidden states as input are not supported yet".into()),
    }
    if let Some(adapter) = row.adapter {
        return Err(format!("adapter {}; this model has none", adapter.0));
    }
    check_outputs(row, limits)
}

fn check_outputs(row: &Row, limits: &Limits) -> Result<(), String> {
    let outputs = &row.outputs;
    if let Some(count) = outputs.logprobs.filter(|&count| count > MAX_LOGPROBS) {
        return Err(format!("{count} log-probabilities; at most {MAX_LOGPROBS} can be had"));
    }
    if let Some(last) = outputs.taps.clone().next_back().filter(|&last| last > limits.layers) {
        return Err(format!("tap after {last} layers; there are {}", limits.layers));
    }
    match row.gate {
        Some(_) if !outputs.needs_head() => {
            return Err("a gate on a row that wants nothing from the LM head".into());
        }
        Some(gate) if gate.detector.reads_margin() && outputs.choose.is_none() => {
            return Err(format!("a {} gate on a row that chooses no token", gate.detector));
        }
        _ => {}
    }
    let words = limits.vocabulary.div_ceil(64) as usize;
    let mask = outputs.choose.as_ref().and_then(|choose| choose.mask.as_ref());
    if let Some(mask) = mask.filter(|mask| mask.0.len() < words) {
        return Err(format!(
            "a token mask of {} words; the vocabulary needs {words}",
            mask.0.len()
        ));
    }
    Ok(())
}

/// Rows of one slot are neighbours and ascend in position.
fn check_order(pass: &Pass, limits: &Limits) -> Result<(), String> {
    let mut seen = vec![false; limits.slots as usize];
    for (number, row) in pass.rows.iter().enumerate() {
        let before = number.checked_sub(1).map(|before| &pass.rows[before]);
        match before.filter(|before| before.slot == row.slot) {
            Some(before) if before.position >= row.position => {
                let (a, b) = (before.position, row.position);
                return Err(format!("row {number}: position {b} follows position {a} of its slot"));
            }
            Some(_) => {}
            None if std::mem::replace(&mut seen[row.slot.0 as usize], true) => {
                return Err(format!(
                    "row {number}: the rows of slot {} are no neighbours",
                    row.slot.0
                ));
            }
            None => {}
        }
    }
    Ok(())
}
