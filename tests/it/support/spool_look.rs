//! A gateway's spool seen from outside, as an operator sees it, also while the gateway runs.

use std::fs;

use super::process::Setup;
use super::wait;

/// The folder that [`Setup::new`] names in DB_PERSIST_PATH.
pub const FOLDER: &str = "spool";

/// Records that wait in the spool, by the Kafka topic.
pub fn waiting(setup: &Setup, topic: &str) -> usize {
    let output = setup.run(&["spool", "dump", FOLDER]);
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{dump}{}", String::from_utf8_lossy(&output.stderr));
    let records = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let is_waiting = words[7] == "waiting" && words[9] == topic;
        if is_waiting { words[3].parse().expect("the column of records") } else { 0_usize }
    };
    dump.lines().skip(1).map(records).sum()
}

/// The spool's files that hold messages.
pub fn segments(setup: &Setup) -> Vec<String> {
    let entries = fs::read_dir(setup.folder().join(FOLDER)).expect("the gateway has made its spool");
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".seg")).collect()
}

/// Waits until nothing is left of what was stored.
pub fn wait_until_empty(setup: &Setup) {
    wait::until("a spool without segments", || {
        let left = segments(setup);
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
}
