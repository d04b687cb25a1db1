//! The table of variables as text: for `--help`, for `docs/configuration.md` and for the environment file of the Debian
//! package, so that none of them can drift.

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
            wrap(&meaning, "      ", &mut text);
        }
    }
    text
}

fn wrap(paragraph: &str, indent: &str, out: &mut String) {
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            out.push('\n');
            column = 0;
        }
        out.push_str(if column == 0 { indent } else { " " });
        column += length + if column == 0 { indent.len() } else { 1 };
        out.push_str(word);
    }
    out.push('\n');
}

/// Of the environment file: what stands above the variables.
const ENV_FILE_HEAD: &str = "\
# Settings of tidegate, one NAME=VALUE a line. Written from the program's table of variables; what you set here an upgrade keeps.
#
# Needed are the lines without # that end in =, and one of TOPIC_LIST and WILDCARD_TOPIC_LIST. A line with # in front shows the
# default. A value with spaces, #, quotes or $ stands in single quotes. A comment has a line of its own, and there is no `export`: systemd
# knows neither.
#
#   look whether it is right:  tidegate check --env-file /etc/tidegate/tidegate.env
#   let it count:              systemctl restart tidegate
#
# A secret is safer in a file of its own, which systemd hands over (systemctl edit tidegate):
#   [Service]
#   LoadCredential=kafka-password:/etc/tidegate/kafka-password
#   Environment=SASL_PASSWORD_FILE=/run/credentials/tidegate.service/kafka-password
";

/// What the Debian package sets beside what every user must.
const PACKAGE_SETS: [(&str, &str); 2] =
    [("RUN_MODE", "PRODUCTION"), ("DB_PERSIST_PATH", "/var/lib/tidegate")];

/// `/etc/tidegate/tidegate.env` as the Debian package brings it: systemd reads it as EnvironmentFile=, and `--env-file` too.
pub fn env_file() -> String {
    use super::variables::Standard;

    let mut text = ENV_FILE_HEAD.to_owned();
    for group in Group::ALL {
        text.push_str(&format!("\n# ---- {} ----\n", group.title()));
        for variable in of_group(group) {
            text.push('\n');
            let mut meaning = variable.meaning.to_owned();
            if variable.secret {
                meaning.push_str(&format!(" {}_FILE names a file to read it from.", variable.name));
            }
            wrap(&meaning, "# ", &mut text);
            let set = PACKAGE_SETS.iter().find(|(name, _)| *name == variable.name);
            let (mark, value) = match (set, variable.default) {
                (Some((_, value)), _) => ("", *value),
                (None, Standard::Required) => ("", ""),
                (None, Standard::None) => ("#", ""),
                (None, Standard::Value(value)) => ("#", value),
            };
            let plain = value.chars().all(|c| c.is_ascii_alphanumeric() || ".,/-_".contains(c));
            let quote = if plain { "" } else { "'" };
            text.push_str(&format!("{mark}{}={quote}{value}{quote}\n", variable.name));
        }
    }
    text
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
