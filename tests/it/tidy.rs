//! The house rules as tests. Each failure says what to do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES: usize = 700;
const CODE_LINES: usize = 500;
const FUNCTION_LINES: usize = 70;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a folder of the repository, by their path from its root; none where there is no such folder.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map_while(Result::ok) {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let built = ["target", "node_modules", "corpus", "artifacts"].contains(&name.as_str());
            if path.is_dir() && !built && !name.starts_with('.') {
                folders.push(path);
            } else if extensions.iter().any(|wanted| path.extension().is_some_and(|known| known == *wanted)) {
                let path = path.strip_prefix(root()).expect("found below the root");
                found.push(path.to_str().expect("our paths are ASCII").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources() -> Vec<String> {
    let sources = files("src", &["rs"]);
    assert!(sources.len() > 10, "the sources are where this test looks: {sources:?}");
    sources
}

fn check(problems: Vec<String>, what_to_do: &str) {
    assert!(problems.is_empty(), "{what_to_do}:\n  {}", problems.join("\n  "));
}

/// The text with comments, strings and characters blanked; every line keeps its number.
fn code_of(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut code = String::with_capacity(source.len());
    let mut index = 0;
    while index < chars.len() {
        let from = index;
        let raw = raw_string_hashes(&chars, index);
        if at(index) == '/' && at(index + 1) == '/' {
            while index < chars.len() && at(index) != '\n' {
                index += 1;
            }
        } else if at(index) == '/' && at(index + 1) == '*' {
            while index < chars.len() && !(at(index) == '*' && at(index + 1) == '/') {
                index += 1;
            }
            index += 2;
        } else if let Some(hashes) = raw {
            index += 2 + hashes;
            while index < chars.len() && !(at(index) == '"' && (1..=hashes).all(|n| at(index + n) == '#')) {
                index += 1;
            }
            index += 1 + hashes;
        } else if at(index) == '"' {
            index += 1;
            while index < chars.len() && at(index) != '"' {
                index += if at(index) == '\\' { 2 } else { 1 };
            }
            index += 1;
        } else if at(index) == '\'' && (at(index + 1) == '\\' || at(index + 2) == '\'') {
            index += if at(index + 1) == '\\' { 3 } else { 2 };
            while index < chars.len() && at(index) != '\'' {
                index += 1;
            }
            index += 1;
        } else {
            code.push(at(index));
            index += 1;
            continue;
        }
        code.extend(chars[from..index.min(chars.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    }
    code
}

fn raw_string_hashes(chars: &[char], index: usize) -> Option<usize> {
    let word_before = index > 0 && (chars[index - 1].is_alphanumeric() || chars[index - 1] == '_');
    if chars[index] != 'r' || (word_before && chars[index - 1] != 'b') {
        return None;
    }
    let hashes = chars[index + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(index + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// The code before the tests of the file.
fn without_tests(code: &str) -> &str {
    code.find("#[cfg(test)]").map_or(code, |tests| &code[..tests])
}

/// Files of which all is compiled for tests only.
fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("_tests/") || path.contains("/simulation/")
}

/// Functions and their lengths in lines, from `fn` to the closing brace.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(String, usize, usize)> = Vec::new();
    let mut pending: Option<(String, usize)> = None;
    let (mut depth, mut parens) = (0_usize, 0_usize);
    for (line, text) in code.lines().enumerate() {
        let mut words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        if words.by_ref().any(|word| word == "fn")
            && let Some(name) = words.next().filter(|name| !name.is_empty())
        {
            pending = Some((name.to_owned(), line));
        }
        for c in text.chars() {
            match c {
                '(' | '[' => parens += 1,
                ')' | ']' => parens = parens.saturating_sub(1),
                ';' if parens == 0 => pending = None,
                '{' => {
                    depth += 1;
                    if parens == 0
                        && let Some((name, from)) = pending.take()
                    {
                        open.push((name, from, depth));
                    }
                }
                '}' => {
                    if let Some((name, from, _)) = open.pop_if(|(_, _, known)| *known == depth) {
                        found.push((name, from + 1, line + 1 - from));
                    }
                    depth = depth.saturating_sub(1);
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn the_brace_counter_counts() {
    let source = "fn one() -> &'static str {\n    \"}\" // }\n}\n\nfn two(a: [u8; 2]) {\n    let c = '{';\n    \
                  r#\"}\"}\"#;\n    if a {}\n}\n";
    let code = code_of(source);
    assert_eq!(code.lines().count(), source.lines().count());
    assert_eq!(functions(&code), [("one".to_owned(), 1, 3), ("two".to_owned(), 5, 5)]);
}

#[test]
fn files_and_functions_are_short() {
    let mut problems = Vec::new();
    for path in [sources(), files("tests", &["rs"])].concat() {
        let source = read(&path);
        let code = code_of(&source);
        let (lines, own) = (source.lines().count(), without_tests(&code).lines().count());
        if lines > FILE_LINES {
            problems.push(format!("{path}: {lines} lines, more than {FILE_LINES}"));
        }
        if own > CODE_LINES && path.starts_with("src/") && !is_test_file(&path) {
            problems.push(format!("{path}: {own} lines before its tests, more than {CODE_LINES}"));
        }
        let long = functions(&code).into_iter().filter(|(_, _, lines)| *lines > FUNCTION_LINES);
        problems
            .extend(long.map(|(name, from, lines)| format!("{path}:{from}: fn {name} has {lines} lines")));
    }
    check(problems, "split these by what they do");
}

/// What each module of the crate may use of the others.
fn may_use(module: &str) -> &'static [&'static str] {
    const BASE: &[&str] = &["backoff", "clock", "error", "message", "observe", "secret", "thread", "tls"];
    match module {
        "backoff" | "clock" | "error" | "secret" | "thread" | "message" => &[],
        "observe" => &["backoff", "clock", "message", "secret", "thread"],
        "fs" => &[],
        "tls" => &["error", "fs"],
        "mqtt" | "route" => BASE,
        "kafka" => &["auth", "backoff", "clock", "error", "message", "observe", "secret", "thread", "tls"],
        "auth" => BASE,
        "spool" => &["clock", "error", "fs", "thread"],
        "config" => &["auth", "kafka", "mqtt", "route", "secret", "message", "tls"],
        "pipeline" => &[
            "backoff", "clock", "config", "error", "fs", "kafka", "message", "mqtt", "observe", "route",
            "secret", "spool", "thread", "tls",
        ],
        // The command line and the clients are at the top.
        _ => &["*"],
    }
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let mut problems = Vec::new();
    for path in sources().into_iter().filter(|path| !is_test_file(path)) {
        let inner = path.trim_start_matches("src/");
        let module = inner.split(['/', '.']).next().unwrap();
        let allowed = may_use(module);
        let code = code_of(&read(&path));
        for (number, line) in without_tests(&code).lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                // `use crate::{a, b}` names several.
                let group = used.strip_prefix('{').map_or(used, |rest| rest.split('}').next().unwrap());
                let names: Vec<&str> = if used.starts_with('{') {
                    group.split(',').map(str::trim).collect()
                } else {
                    vec![used]
                };
                for name in names {
                    let name = name.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                    let fine =
                        name.is_empty() || name == module || allowed == ["*"] || allowed.contains(&name);
                    if !fine {
                        problems.push(format!("{path}:{}: {module} uses {name}", number + 1));
                    }
                }
            }
        }
    }
    check(
        problems,
        "the direction is cli -> pipeline -> { mqtt, kafka, route, spool } -> message and the like",
    );
}

#[test]
fn what_is_fenced_is_named_in_one_place() {
    let fences: [(&str, &[&str], &[&str]); 8] = [
        ("the MQTT crate", &["rumqttc"], &["src/mqtt/codec", "src/bin/publisher-mqtt", "src/clients/"]),
        ("the Kafka protocol crate", &["kafka_protocol"], &["src/kafka/codec"]),
        ("starting a thread", &["std::thread::", "use std::thread;", "std::thread as"], &["src/thread.rs"]),
        ("reading a clock", &["Instant::now", "SystemTime::now"], &["src/clock.rs"]),
        // The configuration reads secrets and .env itself.
        ("files", &["std::fs", "fs::File::"], &["src/fs.rs", "src/config/", "src/bin/", "src/clients/"]),
        ("the environment", &["std::env", "env::var", "env::set_var"], &["src/config/", "src/main.rs"]),
        ("TLS", &["rustls"], &["src/tls"]),
        ("another TLS or Kafka stack", &["openssl", "native_tls", "rdkafka"], &[]),
    ];
    let mut problems = Vec::new();
    for path in sources() {
        let code = code_of(&read(&path));
        if is_test_file(&path) {
            continue;
        }
        for (what, words, places) in fences {
            if places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            for (number, line) in without_tests(&code).lines().enumerate() {
                // What else is in std::thread starts none.
                let harmless = ["JoinHandle", "thread::panicking", "thread::sleep"];
                let harmless = harmless.iter().any(|word| line.contains(word));
                if !harmless && words.iter().any(|word| line.contains(word)) {
                    problems.push(format!("{path}:{}: {what} belongs to {places:?}", number + 1));
                }
            }
        }
    }
    check(problems, "go through the module that owns it");
}

/// The crates that are compiled into the executables, with these features beside the defaults or without them.
fn compiled(arguments: &[&str]) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").expect("cargo runs the tests");
    // `build` too: what compiles C is a dependency of a build script.
    let output = std::process::Command::new(cargo)
        .args(["tree", "--locked", "--offline", "--edges", "normal,build", "--prefix", "none"])
        .args(["--format", "{p}", "--target", "x86_64-unknown-linux-gnu"])
        .args(arguments)
        .current_dir(root())
        .output()
        .expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("names are ASCII");
    let mut names: Vec<String> =
        text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

/// Names that compile C, or link what is C.
fn is_c(name: &str) -> bool {
    // linux-raw-sys holds the kernel's constants, as Rust.
    let links = name.ends_with("-sys") && name != "linux-raw-sys";
    links || ["cc", "cmake", "ring", "bindgen", "pkg-config", "nasm-rs", "vcpkg", "aws-lc-rs"].contains(&name)
}

#[test]
fn c_is_compiled_for_tls_alone_and_by_ring_alone() {
    let without = compiled(&["--no-default-features"]);
    let c: Vec<&String> = without.iter().filter(|name| is_c(name)).collect();
    assert!(c.is_empty(), "without the feature tls nothing compiles or links C: {c:?}");
    assert!(without.iter().any(|name| name == "tidegate") && without.len() > 30, "{without:?}");
    let with = compiled(&[]);
    let c: Vec<&String> = with.iter().filter(|name| is_c(name)).collect();
    assert_eq!(c, ["cc", "ring"], "ring and the crate that finds its compiler (docs/decisions/0010)");
    assert!(with.len() < 120, "{} crates: leave some out", with.len());
}

/// Every text file of the repository that people write.
fn texts() -> Vec<String> {
    let extensions = ["rs", "md", "toml", "sh", "py", "yml", "yaml", "xml", "conf", "env"];
    let mut found: Vec<String> =
        ["src", "tests", "benches", "fuzz", "docs", "examples", "bench", "scripts", "cross"]
            .iter()
            .flat_map(|folder| files(folder, &extensions))
            .collect();
    let at_root = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "Makefile", "Cargo.toml", ".ci/run"];
    found.extend(at_root.iter().filter(|path| root().join(path).is_file()).map(|path| (*path).to_owned()));
    found
}

fn lines_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in texts() {
        for (number, line) in read(&path).lines().enumerate() {
            if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                found.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    found
}

#[test]
fn nothing_is_left_for_later() {
    // Split, so that this file does not name them.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    check(lines_with(&words), "do it, or file an issue and say so in prose");
}

#[test]
fn no_path_of_one_machine() {
    let words = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/tmp", "/w/")];
    check(lines_with(&words), "find the place at run time");
}

#[test]
fn no_test_is_skipped_or_sleeps() {
    let mut problems = Vec::new();
    for path in [sources(), files("tests", &["rs"])].concat() {
        let code = code_of(&read(&path));
        let tests_from = if path.starts_with("tests/") { 0 } else { without_tests(&code).lines().count() };
        for (number, line) in code.lines().enumerate() {
            if line.contains("#[ignore") {
                problems.push(format!("{path}:{}: an ignored test", number + 1));
            }
            if number >= tests_from && line.contains("sleep(") && !path.ends_with("support/wait.rs") {
                problems.push(format!("{path}:{}: a sleep", number + 1));
            }
        }
    }
    check(problems, "wait for a condition with a deadline (support/wait.rs)");
}

#[test]
fn every_allowance_has_its_reason() {
    let mut problems = Vec::new();
    for path in [sources(), files("tests", &["rs"])].concat() {
        let source = read(&path);
        let code = code_of(&source);
        for (start, _) in code.match_indices("[allow(").chain(code.match_indices("[expect(")) {
            let attribute = &code[start..];
            let end = attribute.find(")]").unwrap_or(attribute.len());
            if !attribute[..end].contains("reason") {
                let line = code[..start].lines().count();
                problems.push(format!("{path}:{line}"));
            }
        }
    }
    check(problems, "add `reason = \"...\"` to the attribute");
}

#[test]
fn the_changelog_has_the_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read("CHANGELOG.md");
    let headed = changelog.lines().any(|line| line.starts_with('#') && line.contains(version));
    assert!(headed, "CHANGELOG.md has no heading for {version}: write what changed");
}

#[test]
fn the_commands_of_the_readme_are_in_the_makefile() {
    let makefile = read("Makefile");
    let targets: Vec<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ', '#', '.']))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .flat_map(str::split_whitespace)
        .collect();
    let mut named = 0;
    let mut problems = Vec::new();
    for path in texts().into_iter().filter(|path| path.ends_with(".md")) {
        let text = read(&path);
        let commands = text.split(['`', '\n']).filter_map(|piece| piece.trim().strip_prefix("make "));
        for command in commands {
            let words = command.split_whitespace().take_while(|word| *word != "#");
            let Some(target) = words.filter(|word| !word.contains('=')).find(|word| is_target(word)) else {
                continue;
            };
            named += usize::from(path == "README.md");
            if !targets.contains(&target) {
                problems.push(format!("{path}: make {target}"));
            }
        }
    }
    check(problems, "the Makefile does not have these");
    assert!(named >= 2, "README.md names `make demo` and `make test`");
}

fn is_target(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
}

#[test]
fn every_decision_has_a_number_a_date_and_a_status_and_is_found_where_it_is_named() {
    let mut problems = Vec::new();
    let mut numbers = BTreeMap::new();
    for path in files("docs/decisions", &["md"]).into_iter().filter(|path| !path.ends_with("README.md")) {
        let name = path.rsplit('/').next().unwrap();
        let number = name.split('-').next().unwrap().to_owned();
        if number.len() != 4 || number.parse::<u16>().is_err() {
            problems.push(format!("{path}: its name begins with four digits and a dash"));
        }
        if let Some(other) = numbers.insert(number, path.clone()) {
            problems.push(format!("{path}: the number of {other}"));
        }
        let text = read(&path);
        for field in ["Date:", "Status:"] {
            let given = |line: &str| line.trim_start_matches(['-', '*', ' ']).starts_with(field);
            if !text.lines().any(given) {
                problems.push(format!("{path}: no line `{field}`"));
            }
        }
    }
    assert!(!numbers.is_empty(), "docs/decisions has the decision records");
    for path in texts() {
        for named in read(&path).split(concat!("docs/", "decisions/")).skip(1) {
            let number: String = named.chars().take_while(char::is_ascii_digit).collect();
            if number.len() == 4 && !numbers.contains_key(&number) {
                problems.push(format!("{path}: decision {number} is not there"));
            }
        }
    }
    check(problems, "mend the decision records");
}
