use super::*;
use crate::route::kafka_topic;

pub(crate) fn rule(kind: RuleKind, position: usize, entry: &str) -> Rule {
    let (filter, target) = entry.rsplit_once(':').unwrap();
    let filter = TopicFilter::parse(filter).unwrap();
    let target = TopicTemplate::parse(target, &filter).unwrap();
    Rule { kind, position, filter, target }
}

pub(crate) fn rules(exact: &[&str], wildcards: &[&str], key: &str) -> Result<Rules, Vec<RuleError>> {
    let exact = exact.iter().zip(1..).map(|(entry, position)| rule(RuleKind::Exact, position, entry));
    let wildcards =
        wildcards.iter().zip(1..).map(|(entry, position)| rule(RuleKind::Wildcard, position, entry));
    Rules::new(wildcards.chain(exact).collect(), KeyTemplate::parse(key).unwrap(), None)
}

fn errors(exact: &[&str], wildcards: &[&str], key: &str) -> Vec<String> {
    rules(exact, wildcards, key).unwrap_err().iter().map(|e| format!("{}: {e}", e.variable())).collect()
}

#[test]
fn exact_rules_come_first_and_each_list_keeps_its_order() {
    let rules = rules(&["b:x", "a:y"], &["+/b:x", "a/#:y"], "").unwrap();
    let order: Vec<String> = rules.all().iter().map(ToString::to_string).collect();
    assert_eq!(order, ["b:x", "a:y", "+/b:x", "a/#:y"]);
}

#[test]
fn everything_that_is_wrong_among_rules_is_told() {
    let deep = "a/".repeat(200) + "b:x";
    assert_eq!(
        errors(&["a/+:x", "b:x", "b:y", &deep], &["+/c:x", "$share/g/+/c:z"], "{3}"),
        [
            "TOPIC_LIST: entry \"a/+:x\" has a wildcard: it belongs into WILDCARD_TOPIC_LIST",
            "TOPIC_LIST: entries \"b:x\" and \"b:y\" send the same filter to different Kafka topics",
            "TOPIC_LIST: entry 4 has more than 200 levels",
            "WILDCARD_TOPIC_LIST: entries \"+/c:x\" and \"$share/g/+/c:z\" send the same filter to different Kafka topics",
            "KAFKA_KEY: {3} does not exist: no filter of WILDCARD_TOPIC_LIST has that many wildcards",
        ]
    );
}

#[test]
fn an_entry_said_twice_is_one_subscription() {
    let rules =
        rules(&["b:x", "b:x"], &["+/c:x-{1}", "+/c:x-{1}", "$share/g/+/c:x-{1}", "b:y"], "{1}").unwrap();
    assert_eq!(rules.subscriptions(), ["b", "+/c", "$share/g/+/c"]);
    assert_eq!(rules.subscribed_twice(), [("+/c", "$share/g/+/c")], "the broker counts it as two");
}

#[test]
fn the_default_topic_is_kept() {
    let rules = Rules::new(Vec::new(), KeyTemplate::default(), Some(kafka_topic("rest").unwrap())).unwrap();
    assert_eq!(rules.default_topic().map(|topic| &**topic), Some("rest"));
}
