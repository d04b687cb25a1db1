use std::collections::BTreeSet;

use super::*;
use crate::observe::heartbeat::Heartbeats;

const PAGE: &str = include_str!("../../docs/metrics.md");

fn observed() -> Observed {
    let now = clock::now();
    Observed::new(Heartbeats::new(None, now), 1 << 30, now)
}

#[test]
fn the_page_has_exactly_the_table_that_the_program_has() {
    let begin = "<!-- metrics: begin (written by `cargo test`, see src/observe/metrics.rs) -->\n";
    let end = "<!-- metrics: end -->";
    let (before, rest) = PAGE.split_once(begin).expect("the page has the mark where the table begins");
    let (table, after) = rest.split_once(end).expect("the page has the mark where the table ends");
    if table == markdown() {
        return;
    }
    // With this variable the page is written anew; without it a page that has drifted fails the test.
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let page = format!("{before}{begin}{}{end}{after}", markdown());
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"), page).unwrap();
        return;
    }
    panic!(
        "docs/metrics.md has drifted from src/observe/metrics.rs: run `UPDATE_DOCS=1 cargo test the_page_has`"
    );
}

#[test]
fn every_metric_has_a_name_of_its_own_with_the_prefix_and_a_base_unit() {
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(names.len(), METRICS.len());
    for metric in METRICS {
        let name = metric.name;
        assert!(name.starts_with("tidegate_") || name.starts_with("process_"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
        for unit in ["_ms", "_milliseconds", "_kb", "_mib", "_minutes", "_percent"] {
            assert!(!name.trim_end_matches("_total").ends_with(unit), "{name}: not a base unit");
        }
        assert!(!metric.help.ends_with('.') && !metric.help.contains(['\n', '|', '\\']), "{name}");
    }
}

#[test]
fn the_text_has_the_value_help_and_type_of_every_metric() {
    let observed = observed();
    observed.mqtt.received.store(7, Relaxed);
    observed.mqtt.connected.store(true, Relaxed);
    observed.publish.routes.parked.store(3, Relaxed);
    observed.spool.backlog_bytes.store(1 << 40, Relaxed);
    let text = text(&observed);
    for line in [
        "# HELP tidegate_mqtt_received_messages_total Messages taken from MQTT",
        "# TYPE tidegate_mqtt_received_messages_total counter",
        "tidegate_mqtt_received_messages_total 7",
        "# TYPE tidegate_mqtt_connected gauge",
        "tidegate_mqtt_connected 1",
        "tidegate_mqtt_subscribed 0",
        "tidegate_routes{mode=\"live\"} 0",
        "tidegate_routes{mode=\"parked\"} 3",
        "tidegate_spool_backlog_bytes 1099511627776",
        "tidegate_spool_limit_bytes 1073741824",
        "tidegate_late_threads 0",
        concat!("tidegate_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for metric in METRICS {
        assert!(text.contains(&format!("# HELP {} {}\n", metric.name, metric.help)), "{metric:?}\n{text}");
    }
    let resident = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    assert!(resident.unwrap().parse::<u64>().unwrap() > 100_000, "{resident:?}");
}
