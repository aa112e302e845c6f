//! Another program, run for a limited time.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::budget::Budget;

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// None if its time was over and it was stopped.
    pub(crate) status: Option<ExitStatus>,
    /// Everything that it printed, errors too.
    pub(crate) printed: String,
}

/// Runs a command until it ends or its time is over.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run(mut command: Command, budget: &Budget) -> Result<Ended> {
    let (mut reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    // A group of its own: to stop it is to stop what it started, too.
    let mut child = command.process_group(0).spawn()?;
    // The command holds the pipe's writing ends; while it lives the reader never sees the end.
    drop(command);
    let listener = thread::spawn(move || {
        let mut printed = Vec::new();
        reader.read_to_end(&mut printed).map(|_| printed)
    });
    let status = waited(&mut child, budget)?;
    let printed = listener.join().map_err(|_| anyhow!("the listener panicked"))??;
    Ok(Ended { status, printed: String::from_utf8_lossy(&printed).into_owned() })
}

/// How it ended; none if it had to be stopped.
fn waited(child: &mut Child, budget: &Budget) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if budget.is_over() {
            kill_process_group(Pid::from_child(child), Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, seconds: u64) -> Ended {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, &Budget::new(Duration::from_secs(seconds))).unwrap()
    }

    #[test]
    fn what_it_prints_and_how_it_ends_is_known() {
        let ended = shell("echo one; echo two >&2; exit 3", 60);
        assert_eq!(ended.printed, "one\ntwo\n");
        assert_eq!(ended.status.and_then(|status| status.code()), Some(3));
    }

    #[test]
    fn what_it_printed_before_it_was_stopped_is_kept() {
        let ended = shell("echo one; sleep 60", 1);
        assert_eq!(ended, Ended { status: None, printed: "one\n".into() });
    }
}
