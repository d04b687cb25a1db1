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
