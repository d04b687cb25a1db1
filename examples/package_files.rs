//! Writes what the packages hold beside the executable, from the program itself, so that nothing of it can drift: manual
//! pages, shell completions, the Debian changelog, and the licences of the crates that are compiled in.
//!
//! `cargo run --example package_files -- DIR DEBIAN_VERSION DATE`, DATE as RFC 5322 has it; see `packaging/build-deb.sh`.
#![allow(clippy::print_stderr, reason = "a tool of the build says what is wrong")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::Value;
use tidegate::cli::Cli;
use tidegate::config::variables::{Group, VARIABLES};

type Outcome = Result<(), Box<dyn Error>>;

const PROGRAM: &str = "tidegate";
/// Who signs the Debian changelog. Not a mailbox: what is wrong is told to whoever gave the package.
const MAINTAINER: &str = "The tidegate authors <tidegate@packages.invalid>";
/// Columns of a Debian changelog.
const DEBIAN_WIDTH: usize = 79;
/// A board's target: what is compiled for it is compiled for all.
const TARGET: &str = "aarch64-unknown-linux-musl";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, version, date] = arguments.as_slice() else {
        eprintln!("usage: package_files DIR DEBIAN_VERSION DATE");
        return ExitCode::from(2);
    };
    match write_all(Path::new(directory), version, date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("package_files: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_all(directory: &Path, version: &str, date: &str) -> Outcome {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    // One page for each subcommand; that of the program itself gets more.
    clap_mangen::generate_to(Cli::command().name(PROGRAM), &man)?;
    fs::write(man.join("tidegate.1"), manual()?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), PROGRAM, &completions)?;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changelog = fs::read_to_string(root.join("CHANGELOG.md"))?;
    fs::write(directory.join("changelog"), debian_changelog(&changelog, version, date))?;
    fs::write(directory.join("THIRD-PARTY.txt"), third_party(root)?)?;
    Ok(())
}

/// The manual page of the program: clap's, and every environment variable.
fn manual() -> Result<Vec<u8>, Box<dyn Error>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command().name(PROGRAM)).render(&mut page)?;
    writeln!(page, ".SH ENVIRONMENT")?;
    for group in Group::ALL {
        writeln!(page, ".SS {}", group.title())?;
        for variable in VARIABLES.iter().filter(|variable| variable.group == group) {
            writeln!(page, ".TP\n\\fB{}\\fR [{}]", variable.name, roff(variable.default.text()))?;
            writeln!(page, "{}", roff(variable.meaning))?;
            if variable.secret {
                writeln!(page, "\\fB{}_FILE\\fR names a file to read it from.", variable.name)?;
            }
        }
    }
    page.extend_from_slice(
        b".SH FILES\n.TP\n/etc/tidegate/tidegate.env\nSettings of the service.\n\
          .TP\n/var/lib/tidegate\nThe spool of the service.\n\
          .TP\n/usr/share/doc/tidegate\nconfiguration.md, operations.md, guarantees.md.\n\
          .SH EXIT STATUS\n0 stopped in order, 1 failed while running, 2 configuration.\n",
    );
    Ok(page)
}

/// Text that roff does not take for its own.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // A dot or a quote would begin a request.
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

/// The newest section of the changelog, in Debian's form.
fn debian_changelog(changelog: &str, version: &str, date: &str) -> String {
    let section = changelog.lines().skip_while(|line| !line.starts_with("## ")).skip(1);
    let mut text = format!("{PROGRAM} ({version}) stable; urgency=medium\n\n");
    // No line has room yet: the first word begins one.
    let mut column = DEBIAN_WIDTH;
    for line in section.take_while(|line| !line.starts_with("## ")) {
        let (item, words) = line.strip_prefix("- ").map_or((false, line), |words| (true, words));
        let mut mark = if item { "  * " } else { "    " };
        for word in words.split_whitespace() {
            let length = word.chars().count();
            if mark == "  * " || column + 1 + length > DEBIAN_WIDTH {
                text.push_str(if text.ends_with('\n') { "" } else { "\n" });
                text.push_str(mark);
                column = mark.len() + length;
                mark = "    ";
            } else {
                text.push(' ');
                column += 1 + length;
            }
            text.push_str(word);
        }
    }
    text.push_str(&format!("\n\n -- {MAINTAINER}  {date}\n"));
    text
}

/// Names, licences and licence texts of every crate in the executable.
fn third_party(root: &Path) -> Result<String, Box<dyn Error>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages: BTreeMap<&str, &Value> =
        list(&metadata, "packages").iter().map(|package| (word(package, "id"), package)).collect();
    let mut text =
        "tidegate is compiled from these crates and Rust's standard library (MIT or Apache-2.0), with musl\n\
                    (MIT, Copyright 2005-2020 Rich Felker, et al.) as its C library.\n"
            .to_owned();
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for id in compiled_in(&metadata) {
        let package = packages.get(id).ok_or_else(|| format!("no package {id}"))?;
        let name = word(package, "name");
        if name == PROGRAM {
            continue;
        }
        let (version, license) = (word(package, "version"), word(package, "license"));
        text.push_str(&format!("\n==== {name} {version}: {license}\n"));
        let folder =
            Path::new(word(package, "manifest_path")).parent().ok_or("a manifest lies in a folder")?;
        for file in license_files(folder)? {
            let license = fs::read_to_string(file)?.trim().to_owned();
            // Many are the same to the letter: once is enough.
            match seen.get(&license) {
                Some(other) => text.push_str(&format!("\nThe same text as of {other}.\n")),
                None => {
                    text.push_str(&format!("\n{license}\n"));
                    seen.insert(license, name.to_owned());
                }
            }
        }
    }
    Ok(text)
}

/// Identities of the packages that the executable is compiled from; not what runs at build time or in tests only.
fn compiled_in(metadata: &Value) -> BTreeSet<&str> {
    let resolve = metadata.get("resolve").unwrap_or(&Value::Null);
    let nodes: BTreeMap<&str, &Value> =
        list(resolve, "nodes").iter().map(|node| (word(node, "id"), node)).collect();
    let mut found = BTreeSet::new();
    let mut waiting = vec![word(resolve, "root")];
    while let Some(id) = waiting.pop() {
        if !found.insert(id) {
            continue;
        }
        let dependencies = nodes.get(id).map_or(&[][..], |node| list(node, "deps"));
        let normal = |dependency: &&Value| {
            list(dependency, "dep_kinds").iter().any(|kind| kind.get("kind").is_none_or(Value::is_null))
        };
        waiting.extend(dependencies.iter().filter(normal).map(|dependency| word(dependency, "pkg")));
    }
    found
}

fn license_files(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let is_license = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"]
            .iter()
            .any(|word| name.starts_with(word));
        if is_license && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value.get(field).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn word<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
