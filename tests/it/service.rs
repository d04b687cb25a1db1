//! The systemd unit: what systemd itself says of it, and that it fits what the program does; and that the operator's page
//! speaks of this program. That systemd is told the truth is tested beside the gateway; that the unit runs is part of
//! `make deb-test`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tidegate::config::variables::{self, Standard};

/// Of 10. What is left is what a gateway must have: the network, and sockets for it.
const EXPOSURE_MAX: f64 = 1.5;

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/tidegate.service");
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The unit in a folder of its own, where its executable is the one built here: systemd wants it to exist.
fn staged() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("tidegate.service");
    let (installed, here) = ("ExecStart=/usr/bin/tidegate ", env!("CARGO_BIN_EXE_tidegate"));
    assert!(unit().contains(installed), "the unit runs the installed executable");
    fs::write(&path, unit().replace(installed, &format!("ExecStart={here} "))).expect("the unit is written");
    (folder, path)
}

fn analyze(arguments: &[&str], unit: &Path) -> Output {
    Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("systemd-analyze: {error}: run `make test-setup`"))
}

/// The values of a setting, in their order.
fn values(name: &str) -> Vec<String> {
    let unit = unit();
    let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    lines.map(str::to_owned).collect()
}

fn number(name: &str) -> u64 {
    let values = values(name);
    assert_eq!(values.len(), 1, "{name} stands once: {values:?}");
    values[0].parse().unwrap_or_else(|_| panic!("{name}={} is a number of seconds", values[0]))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let (_folder, path) = staged();
    // Without manual pages: tidegate's own is in the package, and not on this machine.
    let output = analyze(&["verify", "--man=no"], &path);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // What it says of other units of this machine is not ours to mend.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("tidegate")).collect();
    assert!(ours.is_empty() && output.status.success(), "{said}");
}

#[test]
fn the_unit_exposes_little() {
    let (_folder, path) = staged();
    let output = analyze(&["security", "--offline=true", "--no-pager"], &path);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let level =
        said.lines().find_map(|line| line.split_once("Overall exposure level for tidegate.service: "));
    let level = level.and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
    let level = level.unwrap_or_else(|| {
        panic!("no level: {said}{}", String::from_utf8_lossy(&output.stderr));
    });
    assert!(level <= EXPOSURE_MAX, "{level} is above {EXPOSURE_MAX}:\n{said}");
}

#[test]
fn the_unit_fits_the_program() {
    let timeout = variables::find("SHUTDOWN_TIMEOUT_SEC").expect("it is a variable").default;
    let Standard::Value(seconds) = timeout else { panic!("it has a default: {timeout:?}") };
    // The last acknowledgements and joining the threads come after it.
    assert!(number("TimeoutStopSec") >= 2 * seconds.parse::<u64>().unwrap());
    // 2 is what the command line ends with when the configuration is wrong (docs/configuration.md).
    assert_eq!(number("RestartPreventExitStatus"), 2);
    assert!(number("WatchdogSec") >= 10, "a slow disk must not look like a stuck thread");
    let set: Vec<String> = values("Environment").join(" ").split(' ').map(str::to_owned).collect();
    assert_eq!(set, ["RUN_MODE=PRODUCTION", "DB_PERSIST_PATH=/var/lib/tidegate"]);
    assert_eq!(values("StateDirectory"), ["tidegate"], "which is /var/lib/tidegate");
    assert!(set.iter().all(|set| variables::find(set.split('=').next().unwrap()).is_some()));
}

/// The sources below a folder, with strings that go over several lines in one.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).expect("the folder is there").map_while(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else {
            let source = fs::read_to_string(&path).expect("sources are text");
            for (number, piece) in source.split("\\\n").enumerate() {
                text.push_str(if number == 0 { piece } else { piece.trim_start() });
            }
        }
    }
    text
}

#[test]
fn the_messages_of_the_troubleshooting_are_those_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/operations.md")).expect("docs/operations.md");
    let table = page.split_once("## Troubleshooting, by message").expect("the page has it").1;
    let sources = sources(&root.join("src"));
    let mut known = 0;
    let mut unknown = Vec::new();
    // The first column; what systemd says is said to be systemd's.
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    for messages in rows.filter(|messages| !messages.starts_with("systemd: ")) {
        for message in messages.split('`').skip(1).step_by(2) {
            // ... stands for what differs.
            let pieces = message.split("...").map(|piece| piece.trim().trim_matches(':'));
            for piece in pieces.filter(|piece| piece.len() > 3) {
                known += 1;
                if !sources.contains(piece) {
                    unknown.push(piece.to_owned());
                }
            }
        }
    }
    assert!(known > 20, "the table was not read: {known}");
    assert!(unknown.is_empty(), "the program does not say these: mend docs/operations.md: {unknown:#?}");
}
