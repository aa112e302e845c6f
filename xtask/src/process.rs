//! Running other programs: silently, in full view, or in full view while listening.

use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use console::strip_ansi_codes;

/// How much of a failed program's output its error repeats.
const TAIL_LINES: usize = 25;

/// Runs `command` with its output hidden and returns its standard output.
///
/// # Errors
/// The program cannot be started, or fails: then the error ends with the last lines it printed.
pub(crate) fn capture(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed ({}):\n{}", output.status, tail(&format!("{stdout}{stderr}")));
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed invalid UTF-8"))
}

/// Runs `command` with its standard error in view and returns its standard output.
///
/// # Errors
/// The program cannot be started, or fails.
pub(crate) fn printed(mut command: Command) -> Result<String> {
    let shown = show(&command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}` failed ({})", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed invalid UTF-8"))
}

/// Runs `command` with our own terminal as its output.
///
/// # Errors
/// The program cannot be started, or fails.
pub(crate) fn visible(mut command: Command) -> Result<()> {
    let shown = show(&command);
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// Runs `command`, passes all it prints on to our standard output, and shows every line, without colours, to `listen`.
///
/// Standard output and standard error share one pipe, so that their lines keep their order.
///
/// # Errors
/// The program cannot be started, fails, or its output cannot be passed on.
pub(crate) fn overheard(mut command: Command, mut listen: impl FnMut(&str)) -> Result<()> {
    let shown = show(&command);
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always").env("PY_COLORS", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot share a pipe")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    // The command holds the pipe's writing ends; while it lives the reader never sees the end.
    drop(command);

    let mut lines = BufReader::new(reader);
    let mut line = Vec::new();
    let mut out = io::stdout().lock();
    while lines.read_until(b'\n', &mut line).context("cannot read a program's output")? > 0 {
        out.write_all(&line).and_then(|()| out.flush()).context("cannot write to the terminal")?;
        listen(strip_ansi_codes(String::from_utf8_lossy(&line).trim_end()).as_ref());
        line.clear();
    }
    let status = child.wait().with_context(|| format!("lost `{shown}`"))?;
    ensure!(status.success(), "`{shown}` failed ({status})");
    Ok(())
}

/// True if `program` can be run with `arguments` and succeeds.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The last lines of `text`.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// The command as a person would type it.
fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy();
    command.get_args().fold(name.into_owned(), |mut shown, argument| {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn capture_returns_standard_output() {
        assert_eq!(capture(shell("echo out; echo err >&2")).unwrap(), "out\n");
    }

    #[test]
    fn printed_returns_standard_output_alone() {
        assert_eq!(printed(shell("echo out; echo seen >&2")).unwrap(), "out\n");
        assert!(printed(shell("exit 3")).unwrap_err().to_string().contains("exit status: 3"));
    }

    #[test]
    fn a_failure_names_the_command_and_repeats_its_last_words() {
        let error = capture(shell("echo disk full >&2; exit 3")).unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("disk full"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = capture(Command::new("no-such-program-1")).unwrap_err().to_string();
        assert!(error.contains("no-such-program-1"), "{error}");
    }

    #[test]
    fn overheard_lines_keep_their_order_and_lose_their_colours() {
        let mut heard = Vec::new();
        let script = "printf '\\033[31mone\\033[0m\\n'; echo two >&2; printf three; exit 4";
        let error = overheard(shell(script), |line| heard.push(line.to_owned())).unwrap_err();
        assert_eq!(heard, ["one", "two", "three"]);
        assert!(error.to_string().contains("exit status: 4"), "{error}");
        overheard(shell("exit 0"), |_| ()).unwrap();
    }

    #[test]
    fn tail_keeps_the_end() {
        let text: String = (0..100).map(|line| format!("{line}\n")).collect();
        assert!(tail(&text).starts_with("75\n") && tail(&text).ends_with("99"));
        assert_eq!(tail("short"), "short");
    }
}
