//! Cases that run one after the other, whatever becomes of each.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Error, Result, anyhow};
use rewind_cuda::CudaError;
use rewind_engine::ExecutorError;
use rewind_kernels::DeviceError;

use crate::budget::Budget;
use crate::report::{Findings, Outcome};

/// Runs every case, until one loses the device or the time is over.
///
/// # Errors
/// None; what goes wrong is in the outcome.
pub(crate) fn each<C>(
    cases: &[C],
    name: fn(&C) -> &str,
    budget: &Budget,
    findings: &mut Findings,
    mut run: impl FnMut(&C) -> Result<()>,
) -> Result<Outcome> {
    let (mut passed, mut failed) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        if budget.is_over() {
            findings.notes.push(format!("No time was left from `{}` on.", name(case)));
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
        println!("{}: {error:#}", name(case));
        findings.notes.push(format!("`{}`: {error:#}", name(case)));
        if is_lost(&error) {
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

/// Whether nothing can run on the device any more.
pub(crate) fn is_lost(error: &Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(DeviceError::Lost(_)))
            || matches!(cause.downcast_ref(), Some(CudaError::Device(DeviceError::Lost(_))))
            || matches!(cause.downcast_ref(), Some(ExecutorError::DeviceLost(_)))
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

    use anyhow::{Context, bail};
    use rewind_kernels_suite::Case;

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
        let outcome = each(
            &CASES,
            |case| case.name,
            &budget,
            &mut findings,
            |case| {
                if case.name == "norm: two" { second() } else { Ok(()) }
            },
        );
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
        let kernels = || Err(DeviceError::Lost("illegal address".into()).into());
        let executor =
            || Err(ExecutorError::DeviceLost("illegal address".into())).context("the first pass");
        for (outcome, notes) in [run(60, kernels), run(60, executor)] {
            assert_eq!(outcome, Outcome::Failed("1 of 3 cases failed, 1 passed".into()));
            assert_eq!(notes[1], "The device is lost; 1 cases were not run.");
        }
    }

    #[test]
    fn a_run_without_time_is_no_pass() {
        let (outcome, notes) = run(0, || Ok(()));
        assert!(matches!(outcome, Outcome::Skipped(_)), "{outcome:?}");
        assert_eq!(notes, ["No time was left from `norm: one` on."]);
    }
}
