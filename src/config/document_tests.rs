use super::*;
use crate::config::variables::Standard;

const PAGE: &str = include_str!("../../docs/configuration.md");

#[test]
fn the_page_has_exactly_the_tables_that_the_program_has() {
    let begin = "<!-- variables: begin (written by `cargo test`, see src/config/document.rs) -->\n";
    let end = "<!-- variables: end -->";
    let (before, rest) = PAGE.split_once(begin).expect("the page has the mark where the tables begin");
    let (tables, after) = rest.split_once(end).expect("the page has the mark where the tables end");
    if tables == markdown() {
        return;
    }
    // With this variable the page is written anew; without it a page that has drifted fails the test.
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let page = format!("{before}{begin}{}{end}{after}", markdown());
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md"), page).unwrap();
        return;
    }
    panic!(
        "docs/configuration.md has drifted from src/config/variables.rs: run `UPDATE_DOCS=1 cargo test the_page_has`"
    );
}

#[test]
fn the_page_and_the_help_name_every_variable_and_its_default() {
    let help = help();
    for variable in VARIABLES {
        assert!(PAGE.contains(&format!("| `{}` |", variable.name)), "{}", variable.name);
        assert!(
            help.contains(&format!("  {} [{}]\n", variable.name, variable.default.text())),
            "{}",
            variable.name
        );
        if let Standard::Value(value) = variable.default {
            assert!(PAGE.contains(&format!("`{value}`")), "{}", variable.name);
        }
    }
}

#[test]
fn the_help_fits_its_width() {
    for line in help().lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
}

#[test]
fn the_environment_file_of_the_package_is_the_one_that_the_program_has() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/tidegate.env");
    if std::fs::read_to_string(path).is_ok_and(|text| text == env_file()) {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, env_file()).unwrap();
        return;
    }
    panic!(
        "packaging/tidegate.env has drifted from src/config/variables.rs: run `UPDATE_DOCS=1 cargo test the_environment_file`"
    );
}

/// What a user types into it is all that is missing, and each default in it is what the program takes for it.
#[test]
fn the_environment_file_is_valid_once_the_needed_lines_are_filled_also_with_every_default_set() {
    let filled = env_file()
        .replace("\nMQTT_BROKER_URL=\n", "\nMQTT_BROKER_URL=broker\n")
        .replace("\nMQTT_CLIENT_ID=\n", "\nMQTT_CLIENT_ID=gateway-1\n")
        .replace("\nKAFKA_BROKER=\n", "\nKAFKA_BROKER=kafka:9092\n")
        .replace("\n#WILDCARD_TOPIC_LIST=\n", "\nWILDCARD_TOPIC_LIST='plant/#:plant'\n");
    // These are refused beside the defaults of others, on which they have no effect.
    let idle = ["#MQTT_SESSION_EXPIRY_SEC=", "#SASL_MECHANISM=", "#SASL_OAUTHBEARER_CLIENT_AUTH="];
    let with_defaults: String = filled
        .lines()
        .filter(|line| !idle.iter().any(|idle| line.starts_with(idle)))
        .map(|line| match line.strip_prefix('#') {
            Some(set) if set.starts_with(|c: char| c.is_ascii_uppercase()) => format!("{set}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert!(with_defaults.contains("\nKAFKA_KEY='{topic}'\n"), "{with_defaults}");
    for text in [filled, with_defaults] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tidegate.env");
        std::fs::write(&path, &text).unwrap();
        let config = crate::config::Config::load_from(
            crate::config::Variables::new(),
            Some(&path),
            &folder.path().join(".env"),
            Vec::new(),
        );
        let config = config.unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(config.run.mode, crate::config::RunMode::Production);
        assert_eq!(config.spool.directory.as_deref(), Some(std::path::Path::new("/var/lib/tidegate")));
    }
}
