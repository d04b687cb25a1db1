//! The table of variables as text: for `--help` and for `docs/configuration.md`, so that neither can drift.

use super::variables::{Group, VARIABLES, Variable};

/// Width of the help text, columns.
const WIDTH: usize = 100;

fn of_group(group: Group) -> impl Iterator<Item = &'static Variable> {
    VARIABLES.iter().filter(move |variable| variable.group == group)
}

/// What `tidegate --help` says of the environment.
pub fn help() -> String {
    let mut text = "Environment variables (docs/configuration.md says more):\n".to_owned();
    for group in Group::ALL {
        text.push_str(&format!("\n{}:\n", group.title()));
        for variable in of_group(group) {
            text.push_str(&format!("  {} [{}]\n", variable.name, variable.default.text()));
            let mut meaning = variable.meaning.to_owned();
            if variable.secret {
                meaning.push_str(&format!(" {}_FILE names a file to read it from.", variable.name));
            }
            wrap(&meaning, &mut text);
        }
    }
    text
}

fn wrap(paragraph: &str, out: &mut String) {
    const INDENT: &str = "      ";
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        out.push_str(if column == 0 { INDENT } else { " " });
        column += length + if column == 0 { INDENT.len() } else { 1 };
        out.push_str(word);
    }
    out.push('\n');
}

/// The tables of `docs/configuration.md`, in Markdown.
pub fn markdown() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        text.push_str(&format!(
            "### {}\n\n| variable | meaning | default | since |\n|---|---|---|---|\n",
            group.title()
        ));
        for variable in of_group(group) {
            let since = variable.since;
            let file = if variable.secret {
                format!(" Secret; {}_FILE reads it from a file.", variable.name)
            } else {
                String::new()
            };
            let default = match variable.default {
                super::variables::Standard::Value(value) => format!("`{value}`"),
                other => other.text().to_owned(),
            };
            let meaning = variable.meaning.replace('|', "\\|");
            text.push_str(&format!("| `{}` | {meaning}{file} | {default} | {since} |\n", variable.name));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
