use super::*;
use rule::tests::rules;

fn router(exact: &[&str], wildcards: &[&str], key: &str) -> Router {
    Router::new(rules(exact, wildcards, key).unwrap())
}

fn kafka(router: &mut Router, topic: &str) -> String {
    match router.route(topic) {
        Decision::Route { kafka_topic, .. } => kafka_topic.to_string(),
        other => format!("{other:?}"),
    }
}

fn pairs(router: &Router, limit: usize) -> (Vec<(usize, usize)>, u64) {
    let overlaps = router.overlaps(limit);
    (overlaps.listed.iter().map(|pair| (pair.first.index(), pair.second.index())).collect(), overlaps.total)
}

#[test]
fn an_exact_entry_wins_over_every_wildcard() {
    let mut router = router(&["a/b:exact"], &["#:all", "a/b:never"], "");
    assert_eq!(kafka(&mut router, "a/b"), "exact");
    assert_eq!(kafka(&mut router, "a/c"), "all");
}

#[test]
fn an_exact_shared_entry_is_matched_without_its_group() {
    let mut router = router(&["$share/g/a/b:exact"], &[], "");
    assert_eq!(kafka(&mut router, "a/b"), "exact");
    assert_eq!(router.rules().subscriptions(), ["$share/g/a/b"]);
}

#[test]
fn what_no_rule_matches_is_unmatched_or_goes_to_the_default_topic() {
    let mut without = router(&["a:x"], &["b/+:y"], "");
    assert_eq!(without.route("c"), Decision::Unmatched);
    assert_eq!(without.route("$SYS/x"), Decision::Unmatched);
    let default = kafka_topic("rest").unwrap();
    let rules = Rules::new(Vec::new(), KeyTemplate::default(), Some(default.clone())).unwrap();
    let mut with = Router::new(rules);
    assert_eq!(with.route("c"), Decision::Route { rule: None, kafka_topic: default });
    let mut key = Vec::new();
    assert!(with.render_key(None, "c", &mut key));
    assert_eq!(key, b"c");
}

#[test]
fn a_kafka_topic_is_stored_once_constant_or_not() {
    let mut router = router(&[], &["a/+/#:t.{1}", "b/#:constant"], "");
    let topic =
        |decision| if let Decision::Route { kafka_topic, .. } = decision { kafka_topic } else { panic!() };
    assert!(Arc::ptr_eq(&topic(router.route("a/1/x")), &topic(router.route("a/1/y"))));
    assert!(Arc::ptr_eq(&topic(router.route("b/1")), &topic(router.route("b/2"))));
}

#[test]
fn memory_does_not_grow_with_the_topics_that_publishers_invent() {
    let mut router = router(&[], &["+:t.{1}"], "");
    for n in 0..3 * MAX_INTERNED {
        assert_eq!(kafka(&mut router, &n.to_string()), format!("t.{n}"));
        assert!(router.interned.len() <= MAX_INTERNED);
    }
}

#[test]
fn a_topic_that_its_template_cannot_name_is_refused_with_its_rule() {
    let mut router = router(&["x:y"], &["+/t:{1}"], "");
    match router.route("../t") {
        Decision::Refused { rule, error } => assert_eq!((rule.index(), error), (1, TemplateError::Dots)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_key_is_that_of_the_rule_that_matched() {
    let mut router = router(&["a/b:x"], &["a/+/#:y"], "{1}");
    for (topic, expected) in [("a/b", "a/b"), ("a/c/d", "c")] {
        let Decision::Route { rule, .. } = router.route(topic) else { panic!("{topic}") };
        let mut key = Vec::new();
        assert!(router.render_key(rule, topic, &mut key));
        assert_eq!(String::from_utf8(key).unwrap(), expected);
    }
}

#[test]
fn each_overlapping_pair_is_named_once_and_those_with_one_target_are_not() {
    let router =
        router(&["default/kc/mqtt:e"], &["default/+/mqtt:a", "default/kc/#:b", "default/#:a", "x/+:b"], "");
    assert_eq!(pairs(&router, 20), (vec![(1, 2), (2, 3)], 2));
}

#[test]
fn rules_with_captures_are_different_targets_even_when_written_alike() {
    let router = router(&[], &["a/+/#:t.{1}", "+/b:t.{1}"], "");
    assert_eq!(pairs(&router, 20), (vec![(0, 1)], 1));
}

#[test]
fn an_entry_said_twice_overlaps_once() {
    let router = router(&[], &["a/+/#:t.{1}", "+/b:u", "a/+/#:t.{1}"], "");
    assert_eq!(pairs(&router, 20), (vec![(0, 1)], 1));
}

#[test]
fn of_many_overlaps_some_are_named_and_all_are_counted() {
    let entries: Vec<String> = (0..50).map(|n| format!("{}#:t{n}", "+/".repeat(n))).collect();
    let entries: Vec<&str> = entries.iter().map(String::as_str).collect();
    let router = router(&[], &entries, "");
    let (listed, total) = pairs(&router, 3);
    assert_eq!((listed, total), (vec![(0, 1), (0, 2), (1, 2)], 50 * 49 / 2));
}
