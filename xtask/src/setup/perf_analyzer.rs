//! perf_analyzer, Triton's own load generator, as its makers ship it.
//!
//! The program in the pinned wheel is made for glibc 2.38. Where the machine's is older, the libraries of the
//! distribution's next release are put beside it, and their loader starts it: apt fetches and checks them, with folders
//! of its own, so that nothing of the machine's is touched.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::stamp::Stamp;
use super::venv::Python;
use super::wheel;
use crate::process;
use crate::progress::{Activity, Steps};
use crate::project::Project;

const PIN: &str = include_str!("../../pins/perf-analyzer.txt");

/// The wheel is marked for this Linux, and pip on an older one must be told to take it all the same.
const PLATFORM: &str = "manylinux_2_38";
const PROGRAM: &str = "perf_analyzer/bin/perf_analyzer";

/// What the program is linked with, by the names of Debian trixie and Ubuntu noble.
const LIBRARIES: [&str; 6] =
    ["libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1"];

/// Releases that are too old, and those after them.
const RELEASES: [Release; 2] = [
    Release {
        codename: "bookworm",
        next: "trixie",
        keyring: "/usr/share/keyrings/debian-archive-keyring.gpg",
    },
    Release {
        codename: "jammy",
        next: "noble",
        keyring: "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
    },
];

#[derive(Debug, Clone, Copy)]
struct Release {
    codename: &'static str,
    next: &'static str,
    /// Signs both.
    keyring: &'static str,
}

/// A perf_analyzer that can be started.
#[derive(Debug, Clone)]
pub(crate) struct PerfAnalyzer {
    program: PathBuf,
    /// Where newer libraries than the machine's lie, if they are needed.
    libraries: Option<PathBuf>,
}

impl PerfAnalyzer {
    /// Its command, without any option yet.
    pub(crate) fn command(&self) -> Command {
        let Some(libraries) = &self.libraries else { return Command::new(&self.program) };
        let folder = libraries.join(format!("usr/lib/{ARCH}-linux-gnu"));
        let mut command = Command::new(folder.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(folder).arg(&self.program);
        command
    }

    /// Its version; the program itself tells only a commit.
    pub(crate) fn version(&self) -> &'static str {
        let pin = PIN.lines().find_map(|line| line.strip_prefix("perf-analyzer=="));
        pin.map_or("unknown", |pin| pin.trim_end_matches(['\\', ' ']))
    }

    fn works(&self) -> Result<String> {
        let mut command = self.command();
        command.arg("--version");
        process::capture(command)
    }
}

/// Fetches the program, and libraries for it where the machine's are too old.
pub(super) fn set_up(
    project: &Project,
    python: &Python,
    steps: &mut Steps,
) -> Result<PerfAnalyzer> {
    ensure!(ARCH == "x86_64", "perf_analyzer is made for x86_64 only, and this machine is {ARCH}");
    let home = project.state("perf_analyzer");
    let program = home.join(PROGRAM);
    let stamp = Stamp::new(project, "perf_analyzer", &[PIN, PLATFORM]);
    if !stamp.holds(&program) {
        steps.run("perf_analyzer (7 MB)", |activity| {
            stamp.lift()?;
            let platform = format!("{PLATFORM}_{ARCH}");
            let made_for = ["--platform", &platform, "--python-version", "3.12"];
            let pin = "perf-analyzer";
            wheel::unpack_for(&made_for, project, python, pin, &home, activity, |entry| {
                (entry == PROGRAM).then(|| entry.into())
            })?;
            stamp.set()
        })?;
    }
    let own = PerfAnalyzer { program: program.clone(), libraries: None };
    let Err(why) = own.works() else { return Ok(own) };

    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let Some(release) = release(&os) else {
        return Err(why.context(
            "perf_analyzer does not run here: it needs glibc 2.38 and libssl 3 (Debian 13, Ubuntu 24.04)",
        ));
    };
    let libraries = project.state("perf_analyzer_libraries");
    let stamp =
        Stamp::new(project, "perf_analyzer_libraries", &[PIN, release.next, &LIBRARIES.join(" ")]);
    if !stamp.holds(&libraries) {
        steps.run("Newer system libraries, for perf_analyzer (6 MB)", |activity| {
            stamp.lift()?;
            fetch(project, release, &libraries, activity)?;
            stamp.set()
        })?;
    }
    let lent = PerfAnalyzer { program, libraries: Some(libraries) };
    lent.works().context("perf_analyzer does not run even with newer libraries")?;
    Ok(lent)
}

/// The release in an `os-release` file, if it is one that is too old.
fn release(os: &str) -> Option<Release> {
    let codename = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    let codename = codename.trim_matches('"');
    RELEASES.into_iter().find(|release| release.codename == codename)
}

/// Unpacks the libraries of `release.next` into `destination`.
fn fetch(
    project: &Project,
    release: Release,
    destination: &Path,
    activity: &Activity,
) -> Result<()> {
    let work = project.state("downloads/perf_analyzer_libraries");
    super::clear(&work)?;
    for folder in ["lists/partial", "cache/archives/partial", "packages"] {
        super::make_parent(&work.join(folder).join("file"))?;
    }
    activity.says("asking apt where packages are");
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]);
    let sources = source(&process::capture(targets)?, release)?;
    let list = work.join("sources.list");
    fs::write(&list, sources).with_context(|| format!("cannot write {}", list.display()))?;

    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        let places = [
            ("Dir::Etc::sourcelist", list.clone()),
            ("Dir::Etc::sourceparts", "-".into()),
            ("Dir::State::lists", work.join("lists")),
            ("Dir::State::status", "/dev/null".into()),
            ("Dir::Cache", work.join("cache")),
        ];
        for (key, place) in places {
            command.arg("-o").arg(format!("{key}={}", place.display()));
        }
        // The folders are ours alone; apt's own user could not enter them.
        command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none", "-qq"]);
        command.args(arguments).current_dir(work.join("packages"));
        process::capture(command)
    };
    activity.says("downloading lists");
    apt(&["update"])?;
    activity.says("downloading");
    apt(&[&["download"], &LIBRARIES[..]].concat())?;

    activity.says("unpacking");
    let part = destination.with_added_extension("part");
    super::clear(&part)?;
    let packages = work.join("packages");
    let listed =
        fs::read_dir(&packages).with_context(|| format!("cannot list {}", packages.display()))?;
    let mut count = 0;
    for package in listed.flatten() {
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("-x").arg(package.path()).arg(&part);
        process::capture(unpack)?;
        count += 1;
    }
    ensure!(count == LIBRARIES.len(), "apt downloaded {count} of {} packages", LIBRARIES.len());
    super::clear(destination)?;
    fs::rename(&part, destination)
        .with_context(|| format!("cannot rename {} to its place", part.display()))?;
    super::clear(&work)
}

/// The machine's own source of packages, as a line for the release after its own.
fn source(targets: &str, release: Release) -> Result<String> {
    let own = targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, codename, component) = (words.next()?, words.next()?, words.next()?);
        (codename == release.codename && component == "main").then_some(uri)
    });
    let Some(uri) = own else {
        bail!(
            "apt knows no source of {}, from which {} could be told",
            release.codename,
            release.next
        )
    };
    Ok(format!("deb [signed-by={}] {uri} {} main\n", release.keyring, release.next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_releases_are_known_and_new_ones_left_alone() {
        let next = |os| release(os).map(|release| release.next);
        assert_eq!(next("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("trixie"));
        assert_eq!(next("VERSION_CODENAME=\"jammy\"\nID=ubuntu\n"), Some("noble"));
        assert_eq!(next("VERSION_CODENAME=trixie\n"), None);
        assert_eq!(next(""), None);
    }

    #[test]
    fn the_machines_own_mirror_is_asked_for_the_next_release() {
        let targets = "https://mirror.example/debian-security/ bookworm-security main\n\
                       https://mirror.example/debian/ bookworm contrib\n\
                       https://mirror.example/debian/ bookworm main\n";
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        assert_eq!(
            source(targets, RELEASES[0]).unwrap(),
            format!("deb [signed-by={keyring}] https://mirror.example/debian/ trixie main\n")
        );
        assert!(source("", RELEASES[0]).unwrap_err().to_string().contains("bookworm"));
    }

    #[test]
    fn newer_libraries_come_with_their_loader() {
        let analyzer = PerfAnalyzer { program: "p".into(), libraries: Some("l".into()) };
        let command = analyzer.command();
        assert!(command.get_program().to_string_lossy().starts_with("l/usr/lib/"));
        assert_eq!(command.get_args().last().unwrap(), "p");
        let own = PerfAnalyzer { libraries: None, ..analyzer };
        assert_eq!(own.command().get_program(), "p");
        assert!(own.version().split('.').all(|part| part.parse::<u32>().is_ok()));
    }
}
