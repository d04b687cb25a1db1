//! How long one routing decision takes with thousands of wildcard filters: `cargo bench --bench route`.
//!
//! Plain timing without a framework: the question is "well under a microsecond?", not the fifth digit. Each case is
//! timed five times and the quickest counts, as everything else that runs on the machine only adds.

#![allow(missing_docs, reason = "a benchmark has no users")]

use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

use tidegate::route::{KeyTemplate, Router, Rule, RuleKind, Rules, TopicFilter, TopicTemplate};

const TOPICS: usize = 10_000;

fn rule(kind: RuleKind, position: usize, filter: &str, target: &str) -> Rule {
    let filter = TopicFilter::parse(filter).expect("the benchmark's filters are valid");
    let target = TopicTemplate::parse(target, &filter).expect("the benchmark's targets are valid");
    Rule { kind, position, filter, target }
}

/// `count` wildcard filters of the forms that fleets have, the general ones last, and 1000 exact topics.
fn router(count: usize) -> Router {
    let wildcards = (0..count).map(|n| {
        let (site, line) = (n % 100, n / 100);
        let (filter, target) = match n % 4 {
            0 => (format!("site/{site}/line/{line}/+/temperature"), format!("temperature-{site}")),
            1 => (format!("site/{site}/line/{line}/#"), format!("line-{line}")),
            2 => (format!("site/+/line/{line}/device-{n}/state"), "state-{1}".to_owned()),
            _ => (format!("+/{site}/alarm/{line}/+"), "alarm".to_owned()),
        };
        rule(RuleKind::Wildcard, n + 1, &filter, &target)
    });
    let last = ["+/+/+/+/+/+", "site/#"].iter().map(|filter| rule(RuleKind::Wildcard, 0, filter, "rest"));
    let exact = (0..1000).map(|n| rule(RuleKind::Exact, n + 1, &format!("site/{n}/status"), "status"));
    let rules = Rules::new(exact.chain(wildcards).chain(last).collect(), KeyTemplate::default(), None);
    Router::new(rules.expect("the benchmark's rules do not contradict each other"))
}

fn topics(of: impl Fn(usize) -> String) -> Vec<String> {
    // Multiplied by a prime: neighbours in time are not neighbours in the table.
    (0..TOPICS).map(|n| of(n * 7919 % TOPICS)).collect()
}

fn quickest(topics: &[String], mut work: impl FnMut(&str)) -> f64 {
    let once = |work: &mut dyn FnMut(&str)| {
        let start = Instant::now();
        topics.iter().for_each(|topic| work(topic));
        start.elapsed()
    };
    let best = (0..5).map(|_| once(&mut work)).min().unwrap_or(Duration::ZERO);
    best.as_nanos() as f64 / topics.len() as f64
}

fn main() {
    let cases = [
        ("exact", topics(|n| format!("site/{}/status", n % 1000))),
        ("+ filter", topics(|n| format!("site/{}/line/{}/d{n}/temperature", n % 25 * 4, n % 50))),
        ("# filter", topics(|n| format!("site/{}/line/{}/a/b/c", n % 25 * 4 + 1, n % 50))),
        (
            "template",
            topics(|n| format!("site/{}/line/{}/device-{}/state", n % 100, n % 50, n % 50 * 100 + 2)),
        ),
        ("general only", topics(|n| format!("site/{n}/other/x"))),
        ("no match", topics(|n| format!("elsewhere/{n}/x"))),
    ];
    println!("ns a message, quickest of five; memo: a HashMap that already knows every topic");
    println!(
        "{:>8}  {:<13} {:>6} {:>6} {:>7} {:>9} {:>8}",
        "filters", "topic", "match", "route", "memo", "linear", "ratio"
    );
    for count in [100, 1000, 5000, 20_000] {
        let mut router = router(count);
        let linear: Vec<TopicFilter> = router.rules().all().iter().map(|rule| rule.filter.clone()).collect();
        for (name, topics) in &cases {
            let matching = quickest(topics, |topic| {
                black_box(router.matching(black_box(topic)));
            });
            let route = quickest(topics, |topic| {
                black_box(router.route(black_box(topic)));
            });
            // What a memo of decisions would cost at best: every topic already in it.
            let memo: HashMap<String, u32> = topics.iter().cloned().zip(0..).collect();
            let remembered = quickest(topics, |topic| {
                black_box(memo.get(black_box(topic)));
            });
            let few = topics.get(..20).unwrap_or_default();
            let naive = quickest(few, |topic| {
                black_box(linear.iter().position(|filter| filter.matches(black_box(topic))));
            });
            let ratio = naive / matching.max(1.0);
            println!(
                "{count:>8}  {name:<13} {matching:>6.0} {route:>6.0} {remembered:>7.0} {naive:>9.0} {ratio:>7.0}x"
            );
        }
        let start = Instant::now();
        let overlaps = router.overlaps(20);
        println!(
            "{count:>8}  overlaps: {} pairs in {:.1} ms",
            overlaps.total,
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    let mut key = Vec::with_capacity(64);
    let router = router(5000);
    let topics = topics(|n| format!("site/{n}/line"));
    let rule = router.matching("site/1/line");
    let cost = quickest(&topics, |topic| {
        key.clear();
        black_box(router.render_key(rule, topic, &mut key));
    });
    println!("key {{topic}}: {cost:.0} ns");
}
