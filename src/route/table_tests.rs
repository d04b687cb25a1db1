use super::*;
use crate::route::filter::tests::{any_filter, any_topic, reference_match};
use proptest::prelude::*;

fn table(filters: &[TopicFilter]) -> Table {
    let mut table = Table::default();
    for (filter, number) in filters.iter().zip(0u32..) {
        table.insert(filter, number);
    }
    table
}

fn filters(texts: &[&str]) -> Vec<TopicFilter> {
    texts.iter().map(|text| TopicFilter::parse(text).unwrap()).collect()
}

fn sorted(table: &Table, filter: &TopicFilter, below: u32) -> Vec<u32> {
    let mut found = Vec::new();
    table.intersecting(filter, below, &mut found);
    found.sort_unstable();
    found
}

#[test]
fn the_first_of_the_list_wins_whatever_its_form() {
    for order in [["a/#", "a/+", "a/b", "#"], ["a/b", "#", "+/b", "a/#"], ["+/+", "a/b", "a/#", "+/b"]] {
        assert_eq!(table(&filters(&order)).first_match("a/b"), Some(0), "{order:?}");
    }
}

#[test]
fn a_topic_of_many_levels_is_searched_no_deeper_than_the_filters_are() {
    let deepest = ["+"; 199].join("/") + "/#";
    let table = table(&filters(&[&deepest, "a/#"]));
    let topic = "/".repeat(65_535);
    assert_eq!(table.first_match(&topic), Some(0));
    assert_eq!(table.first_match(&format!("a{}", "/".repeat(50))), Some(1));
}

#[test]
fn filters_that_share_a_topic_are_found() {
    let list = filters(&["a/#", "+/b", "a", "$SYS/#", "x/+/y", "+"]);
    let table = table(&list);
    assert_eq!(sorted(&table, &list[1], 1), [0]);
    assert_eq!(sorted(&table, &list[2], 2), [0]);
    assert_eq!(sorted(&table, &list[3], 3), Vec::<u32>::new());
    assert_eq!(sorted(&table, &list[4], 4), Vec::<u32>::new());
    assert_eq!(sorted(&table, &list[5], 5), [0, 2]);
    assert_eq!(sorted(&table, &TopicFilter::parse("#").unwrap(), 6), [0, 1, 2, 4, 5]);
}

/// Every topic of up to four levels over the letters the filters use, and one they do not.
fn small_topics() -> Vec<String> {
    let letters = ["", "a", "b", "c", "$x", "ä", "other"];
    let mut all: Vec<String> = letters.iter().map(|l| (*l).to_owned()).collect();
    let mut last = all.clone();
    for _ in 0..3 {
        last = last.iter().flat_map(|t| letters.iter().map(move |l| format!("{t}/{l}"))).collect();
        all.extend(last.iter().cloned());
    }
    all.retain(|topic| !topic.is_empty());
    all
}

fn short(filter: &TopicFilter) -> bool {
    filter.levels().count() <= 4
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_tree_finds_what_a_linear_search_finds(
        filters in prop::collection::vec(any_filter(), 0..30),
        topics in prop::collection::vec(any_topic(), 1..20),
    ) {
        let table = table(&filters);
        for topic in topics {
            let linear = filters.iter().position(|filter| filter.matches(&topic)).map(|at| at as u32);
            let reference = filters.iter().position(|filter| reference_match(filter, &topic)).map(|at| at as u32);
            prop_assert_eq!(table.first_match(&topic), linear);
            prop_assert_eq!(linear, reference);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn two_filters_overlap_exactly_if_some_topic_matches_both(
        one in any_filter().prop_filter("long", short),
        two in any_filter().prop_filter("long", short),
    ) {
        let common = small_topics().into_iter().find(|t| reference_match(&one, t) && reference_match(&two, t));
        let found = sorted(&table(std::slice::from_ref(&one)), &two, 1);
        prop_assert_eq!(!found.is_empty(), common.is_some(), "{} {} {:?}", one, two, common);
        let turned = sorted(&table(std::slice::from_ref(&two)), &one, 1);
        prop_assert_eq!(found, turned);
    }
}

#[test]
fn filters_that_share_only_the_empty_text_do_not_overlap() {
    // Found by the property above: the empty text is no topic name, so no message can go both ways.
    let filter = |text: &str| TopicFilter::parse(text).unwrap();
    for (one, two) in [("/#", "+"), ("+", "/#"), ("/#", "/#"), ("+/#", "/#")] {
        let found = sorted(&table(&[filter(one)]), &filter(two), 1);
        assert_eq!(found.is_empty(), one == "+" || two == "+", "{one} {two}");
    }
}
