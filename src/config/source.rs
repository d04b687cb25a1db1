//! Where the variables come from: the process environment, `.env`, an `--env-file`, and the files that hold secrets.
//!
//! The only place that reads the environment, and it never writes it. Knows nothing of what values mean. The
//! process environment wins over a file, as with every dotenv.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::error::Problem;
use super::variables;

/// MQTT takes 65535 bytes of a password (section 1.5.6), Kafka fewer.
const SECRET_BYTES_MAX: u64 = 1 << 20;

/// Variables by name, as the user wrote them.
pub type Variables = BTreeMap<String, String>;

/// The process environment. A value that is not UTF-8 is a problem only where the name is one of ours.
pub(super) fn process(problems: &mut Vec<Problem>) -> Variables {
    let mut found = Variables::new();
    for (name, value) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        match value.into_string() {
            Ok(value) => {
                found.insert(name.to_owned(), value);
            }
            Err(_) if variables::find(name).is_some() || variables::secret_of_file(name).is_some() => {
                problems.push(Problem::new(name, None, "it is not valid UTF-8"));
            }
            Err(_) => {}
        }
    }
    found
}

/// Adds what files give to the variables of the process: an environment file, and those that secrets are in. Gives what
/// the operator is to be warned of.
pub(super) fn complete(
    variables: &mut Variables,
    env_file: Option<&Path>,
    dot_env: &Path,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let warnings = add_files(variables, env_file, dot_env, problems);
    read_secrets(variables, problems);
    warnings
}

/// The same without secrets that are in files of their own.
pub(super) fn add_files(
    variables: &mut Variables,
    env_file: Option<&Path>,
    dot_env: &Path,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_production =
        variables.get("RUN_MODE").is_some_and(|mode| mode.trim().eq_ignore_ascii_case("PRODUCTION"));
    match env_file {
        Some(path) => warnings.extend(add_file(path, true, variables, problems)),
        None if is_production => {}
        None => warnings.extend(add_file(dot_env, false, variables, problems)),
    }
    warnings
}

/// Adds the variables of an environment file to those that are not set yet. A file that is not `required` may be absent.
/// Gives a warning if it holds a secret that others can read.
fn add_file(
    path: &Path,
    required: bool,
    into: &mut Variables,
    problems: &mut Vec<Problem>,
) -> Option<String> {
    let name = path.display().to_string();
    let text = match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => {
            problems.push(Problem::new(&name, None, "the file is not valid UTF-8"));
            return None;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return None,
        Err(error) => {
            problems.push(Problem::new(&name, None, format!("the file cannot be read: {error}")));
            return None;
        }
    };
    // What could be read counts although a line is broken: else everything required would be reported as missing too.
    let (variables, mistakes) = parse_file(&text);
    let is_secret = |(variable, value): (&String, &String)| {
        !value.is_empty() && variables::find(variable).is_some_and(|variable| variable.secret)
    };
    let exposed = variables.iter().any(is_secret) && is_open_to_others(path);
    for (name, value) in variables {
        into.entry(name).or_insert(value);
    }
    for (line, reason) in mistakes {
        problems.push(Problem::new(&format!("{name}:{line}"), None, reason));
    }
    exposed.then(|| format!("{name} holds a secret and can be read by other users: chmod 600 {name}"))
}

/// Whether its group or everybody may read it.
fn is_open_to_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|about| about.permissions().mode() & 0o044 != 0)
}

/// The variables of an environment file's text, and the line number (from 1) and reason of each mistake. A reason does
/// not show the line, which may hold a secret.
fn parse_file(text: &str) -> (Variables, Vec<(usize, String)>) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut found = Variables::new();
    let mut mistakes = Vec::new();
    let mut failed_at = 0;
    for item in dotenvy::from_read_iter(text.as_bytes()) {
        match item {
            Ok((name, value)) => {
                if let Some(mistake) = mistake_in(text, &name, &value, &found) {
                    mistakes.push(mistake);
                }
                found.entry(name).or_insert(value);
            }
            Err(dotenvy::Error::LineParse(line, _)) => {
                let reason =
                    "expected NAME=VALUE (a value with spaces, #, quotes or $ stands in single quotes)";
                failed_at = failing_line(text, &line, failed_at);
                mistakes.push((failed_at, reason.to_owned()));
            }
            Err(error) => {
                mistakes.push((1, format!("it cannot be read: {error}")));
                break;
            }
        }
    }
    (found, mistakes)
}

/// What is wrong with a line that dotenvy could parse.
fn mistake_in(text: &str, name: &str, value: &str, before: &Variables) -> Option<(usize, String)> {
    let defines = |line: &str| {
        let line = line.trim_start().trim_start_matches("export ").trim_start();
        line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    if before.contains_key(name) {
        return Some((last_line(text, defines), format!("{name} is set twice in this file")));
    }
    // dotenvy replaces $NAME, also between double quotes: $share/g/a would silently become /g/a.
    let eaten = |line: &str| defines(line) && has_dollar_topic(line);
    if text.lines().any(eaten) && !has_dollar_topic(value) {
        let reason = "$share and $SYS would be replaced like variables: put the value in single quotes";
        return Some((last_line(text, eaten), format!("{name}: {reason}")));
    }
    None
}

fn has_dollar_topic(text: &str) -> bool {
    text.contains("$share/") || text.contains("$SYS")
}

fn last_line(text: &str, is_it: impl Fn(&str) -> bool) -> usize {
    text.lines().zip(1..).filter(|(line, _)| is_it(line)).map(|(_, number)| number).last().unwrap_or(1)
}

/// dotenvy tells the text that it could not parse, not where it stands: the first line that holds its beginning and
/// does not parse by itself, behind the last one that did not.
fn failing_line(text: &str, culprit: &str, after: usize) -> usize {
    let beginning = culprit.lines().next().unwrap_or_default();
    let fails = |line: &str| dotenvy::from_read_iter(line.as_bytes()).any(|item| item.is_err());
    let holds = |line: &str| line.contains(beginning) && fails(line);
    text.lines().zip(1..).skip(after).find(|(line, _)| holds(line)).map_or(after.max(1), |(_, number)| number)
}

/// Replaces each `X_FILE` of a secret X by X with the content of that file; one trailing line break is cut. A problem does not
/// show the path: who mixes up X_FILE and X has written the secret there.
fn read_secrets(variables: &mut Variables, problems: &mut Vec<Problem>) {
    let files: Vec<(String, &str)> = variables
        .keys()
        .filter_map(|name| variables::secret_of_file(name).map(|secret| (name.clone(), secret.name)))
        .collect();
    for (file_variable, secret) in files {
        let path = variables.remove(&file_variable).unwrap_or_default();
        if path.is_empty() {
            continue;
        }
        if variables.get(secret).is_some_and(|value| !value.is_empty()) {
            let expected = format!("{secret} is set too: expected one of the two");
            problems.push(Problem::new(&file_variable, None, expected));
            continue;
        }
        match read_secret(Path::new(&path)) {
            Ok(text) => {
                if text.is_empty() {
                    problems.push(Problem::new(&file_variable, None, "the file it names is empty"));
                }
                variables.insert(secret.to_owned(), text);
            }
            Err(why) => {
                let expected = format!("the file it names {why}");
                problems.push(Problem::new(&file_variable, None, expected));
            }
        }
    }
}

/// The secret in a file, or why there is none. A device that never ends is no file of a secret.
fn read_secret(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    file.and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > SECRET_BYTES_MAX {
        return Err(format!("is larger than {SECRET_BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not valid UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    Ok(text.to_owned())
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
