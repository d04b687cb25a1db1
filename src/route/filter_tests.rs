use super::*;
use proptest::prelude::*;

#[test]
fn every_case_of_the_specification_table_matches_as_it_says() {
    let mut cases = 0;
    let mut wrong = Vec::new();
    for line in
        include_str!("../../tests/fixtures/mqtt-topic-matching.tsv").lines().filter(|l| !l.starts_with('#'))
    {
        let row: Vec<&str> = line.split('\t').collect();
        let [section, filter, topic, expected] = row[..] else { panic!("{line:?}") };
        let expected = match expected {
            "match" => true,
            "no" => false,
            other => panic!("unknown expectation {other:?}"),
        };
        let parsed = TopicFilter::parse(filter).unwrap();
        let name = TopicName::parse(topic).unwrap();
        if parsed.matches(name.as_str()) != expected {
            wrong.push(format!("section {section}: {filter} with {topic}"));
        }
        let mut table = crate::route::table::Table::default();
        table.insert(&parsed, 0);
        if table.first_match(topic).is_some() != expected {
            wrong.push(format!("section {section}, in the tree: {filter} with {topic}"));
        }
        cases += 1;
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(cases >= 200, "the table has {cases} cases");
}

#[test]
fn every_text_of_the_validity_table_is_taken_or_refused_for_the_reason_it_says() {
    let mut cases = 0;
    for line in
        include_str!("../../tests/fixtures/mqtt-topic-validity.tsv").lines().filter(|l| !l.starts_with('#'))
    {
        let row: Vec<&str> = line.split('\t').collect();
        let [kind, _section, text, expected] = row[..] else { panic!("{line:?}") };
        let text = match text {
            "{65535}" => "x".repeat(65_535),
            "{65536}" => "x".repeat(65_536),
            other => other.replace("\\0", "\0"),
        };
        let result = match kind {
            "filter" => TopicFilter::parse(&text).map(|_| ()),
            "name" => TopicName::parse(&text).map(|_| ()),
            other => panic!("unknown kind {other:?}"),
        };
        let found = result.map_or_else(|error| format!("{error:?}"), |()| "valid".to_owned());
        assert_eq!(found, expected, "{line:?}");
        cases += 1;
    }
    assert!(cases >= 50, "the table has {cases} cases");
}

#[test]
fn a_shared_filter_is_subscribed_whole_and_matched_without_its_group() {
    let filter = TopicFilter::parse("$share/g/a/+").unwrap();
    assert_eq!((filter.subscription(), filter.matched(), filter.wildcards()), ("$share/g/a/+", "a/+", 1));
}

#[test]
fn captures_are_numbered_from_the_left() {
    let filter = TopicFilter::parse("plant/+/line/+/#").unwrap();
    let topic = "plant/7//line".replace("//", "/line/") + "/x/y";
    assert_eq!(topic, "plant/7/line/line/x/y");
    assert_eq!(filter.capture(&topic, 1), Some("7"));
    assert_eq!(filter.capture(&topic, 2), Some("line"));
    assert_eq!(filter.capture(&topic, 3), Some("x/y"));
    assert_eq!(filter.capture(&topic, 4), None);
    assert_eq!(filter.capture(&topic, 0), None);
    assert!(filter.is_multi_level(3) && !filter.is_multi_level(2));
}

#[test]
fn a_hash_at_its_parent_level_and_an_empty_level_capture_nothing() {
    assert_eq!(TopicFilter::parse("a/#").unwrap().capture("a", 1), Some(""));
    assert_eq!(TopicFilter::parse("a/#").unwrap().capture("a/", 1), Some(""));
    assert_eq!(TopicFilter::parse("a/+/b").unwrap().capture("a//b", 1), Some(""));
    assert_eq!(TopicFilter::parse("$share/g/+/b").unwrap().capture("x/b", 1), Some("x"));
}

/// An independent reading of section 4.7, written differently on purpose: by recursion on vectors of levels.
fn reference(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        ([], []) | (["#"], _) => true,
        ([], _) | (_, []) => false,
        ([first, filter @ ..], [name, topic @ ..]) => {
            (*first == "+" || first == name) && reference(filter, topic)
        }
    }
}

pub(crate) fn reference_match(filter: &TopicFilter, topic: &str) -> bool {
    let filter: Vec<&str> = filter.matched().split('/').collect();
    let names: Vec<&str> = topic.split('/').collect();
    let hidden = topic.starts_with('$') && ["+", "#"].contains(&filter[0]);
    !hidden && reference(&filter, &names)
}

/// Few different levels, so that filters and topics meet often.
fn level() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "a", "b", "c", "$x", "ä"])
}

pub(crate) fn any_topic() -> impl Strategy<Value = String> {
    prop::collection::vec(level(), 1..6)
        .prop_map(|levels| levels.join("/"))
        .prop_filter("empty", |t| !t.is_empty())
}

pub(crate) fn any_filter() -> impl Strategy<Value = TopicFilter> {
    let levels = prop::collection::vec(prop_oneof![3 => level(), 2 => Just("+")], 0..5);
    (levels, any::<bool>(), prop::bool::weighted(0.1)).prop_filter_map(
        "empty",
        |(mut levels, hash, shared)| {
            if hash {
                levels.push("#");
            }
            let filter = levels.join("/");
            TopicFilter::parse(&if shared { format!("$share/g/{filter}") } else { filter }).ok()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn matching_agrees_with_an_independent_reading(filter in any_filter(), topic in any_topic()) {
        prop_assert_eq!(filter.matches(&topic), reference_match(&filter, &topic));
    }

    #[test]
    fn what_matched_is_the_filter_with_its_captures_put_in(filter in any_filter(), topic in any_topic()) {
        if !filter.matches(&topic) {
            return Ok(());
        }
        let mut number = 0;
        let filled: Vec<&str> = filter.levels().map(|level| if level == "+" || level == "#" {
            number += 1;
            filter.capture(&topic, number).unwrap()
        } else {
            level
        }).collect();
        // A # that matched its parent level leaves a slash too many.
        let filled = filled.join("/");
        prop_assert!(filled == topic || filled == format!("{topic}/"), "{} {}", filled, topic);
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "[+#/$a\0share]{0,12}") {
        if let Ok(filter) = TopicFilter::parse(&text) {
            prop_assert_eq!(filter.subscription(), text.as_str());
            prop_assert!(!filter.matched().is_empty());
            filter.capture("a/b/c", 2);
        }
        let _ = TopicName::parse(&text);
    }
}
