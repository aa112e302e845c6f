//! The operation suite on a device: every case is right, and comes out the same bits when run again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow};
use rewind_kernels::{Device, DeviceError};
use rewind_kernels_suite::{Case, cases};

use crate::budget::Budget;
use crate::report::{Findings, Outcome};
use crate::witness::Witness;

/// Runs every case once against its reference.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub fn right(device: &mut dyn Device, budget: &Budget, findings: &mut Findings) -> Result<Outcome> {
    each(&cases(), budget, findings, |case| rewind_kernels_suite::run(case, device))
}

/// Runs every case three times and compares all bytes that come back.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub fn repeatable(
    device: &mut dyn Device,
    budget: &Budget,
    findings: &mut Findings,
) -> Result<Outcome> {
    each(&cases(), budget, findings, |case| {
        let mut digest = || {
            let mut witness = Witness::new(&mut *device);
            rewind_kernels_suite::run(case, &mut witness)?;
            Ok(witness.digest())
        };
        let first: Result<[u8; 32]> = digest();
        let first = first?;
        for run in 2..=3 {
            anyhow::ensure!(digest()? == first, "run {run} gave other bits than the first");
        }
        Ok(())
    })
}

fn each(
    cases: &[Case],
    budget: &Budget,
    findings: &mut Findings,
    mut run: impl FnMut(&Case) -> Result<()>,
) -> Result<Outcome> {
    let (mut passed, mut failed) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        if budget.is_over() {
            findings.notes.push(format!("No time was left from `{}` on.", case.name));
            break;
        }
        // A case that panics must not hide the others.
        let result = catch_unwind(AssertUnwindSafe(|| run(case)))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", said(panic.as_ref()))));
        let Err(error) = result else {
            passed += 1;
            continue;
        };
        failed += 1;
        println!("{}: {error:#}", case.name);
        findings.notes.push(format!("`{}`: {error:#}", case.name));
        if matches!(error.downcast_ref(), Some(DeviceError::Lost(_))) {
            let rest = cases.len() - index - 1;
            findings.notes.push(format!("The device is lost; {rest} cases were not run."));
            break;
        }
    }
    let all = cases.len();
    Ok(if failed > 0 {
        Outcome::Failed(format!("{failed} of {all} cases failed, {passed} passed"))
    } else if passed < all {
        Outcome::Skipped(format!("{passed} of {all} cases passed, no time was left for the rest"))
    } else {
        Outcome::Passed(format!("{all} cases"))
    })
}

/// The message of a panic.
fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    let string = panic.downcast_ref::<String>().map(String::as_str);
    string.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::bail;

    use super::*;

    const CASES: [Case; 3] = {
        const fn case(name: &'static str) -> Case {
            Case { name, run: |_| Ok(()) }
        }
        [case("norm: one"), case("norm: two"), case("norm: three")]
    };

    fn run(seconds: u64, mut second: impl FnMut() -> Result<()>) -> (Outcome, Vec<String>) {
        let budget = Budget::new(Duration::from_secs(seconds));
        let mut findings = Findings::default();
        let outcome = each(&CASES, &budget, &mut findings, |case| {
            if case.name == "norm: two" { second() } else { Ok(()) }
        });
        (outcome.unwrap(), findings.notes)
    }

    #[test]
    fn cases_that_pass_are_counted() {
        assert_eq!(run(60, || Ok(())), (Outcome::Passed("3 cases".into()), vec![]));
    }

    #[test]
    fn a_case_that_fails_or_panics_is_named_and_hides_no_other() {
        let failed = Outcome::Failed("1 of 3 cases failed, 2 passed".into());
        assert_eq!(
            run(60, || bail!("off by one")),
            (failed.clone(), vec!["`norm: two`: off by one".into()])
        );
        let panicked = vec!["`norm: two`: panicked: at row 7".into()];
        assert_eq!(run(60, || panic!("at row {}", 7)), (failed, panicked));
    }

    #[test]
    fn a_lost_device_ends_the_run() {
        let (outcome, notes) = run(60, || Err(DeviceError::Lost("illegal address".into()).into()));
        assert_eq!(outcome, Outcome::Failed("1 of 3 cases failed, 1 passed".into()));
        assert_eq!(notes[1], "The device is lost; 1 cases were not run.");
    }

    #[test]
    fn a_run_without_time_is_no_pass() {
        let (outcome, notes) = run(0, || Ok(()));
        assert!(matches!(outcome, Outcome::Skipped(_)), "{outcome:?}");
        assert_eq!(notes, ["No time was left from `norm: one` on."]);
    }
}
