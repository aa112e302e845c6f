//! Which state of the project was measured.

use std::process::Command;

use crate::process;
use crate::project::Project;

/// The commit that was measured, and whether the files still were those of it.
pub(super) fn of(project: &Project) -> String {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(project.path(""));
        process::capture(command).ok()
    };
    let commit = git(&["rev-parse", "--short", "HEAD"]);
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    match (commit, changes) {
        (Some(commit), Some(changes)) if changes.is_empty() => format!("commit {}", commit.trim()),
        (Some(commit), _) => format!("commit {} with changes", commit.trim()),
        _ => "no commit".into(),
    }
}
