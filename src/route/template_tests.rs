use super::*;
use proptest::prelude::*;

fn filter(text: &str) -> TopicFilter {
    TopicFilter::parse(text).unwrap()
}

fn rendered(template: &str, of: &str, topic: &str) -> Result<String, TemplateError> {
    let filter = filter(of);
    assert!(filter.matches(topic));
    let mut out = "what was there before".to_owned();
    TopicTemplate::parse(template, &filter)?.render(&filter, topic, &mut out).map(|()| out)
}

#[test]
fn a_kafka_topic_name_is_checked_as_a_broker_would() {
    for good in ["a", "A.b_c-9", "...", "_", &"x".repeat(249)] {
        assert_eq!(check_kafka_topic(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("", TemplateError::Empty),
        (".", TemplateError::Dots),
        ("..", TemplateError::Dots),
        ("a b", TemplateError::Character(' ')),
        ("a/b", TemplateError::Character('/')),
        ("ä", TemplateError::Character('ä')),
        (&"x".repeat(250), TemplateError::TooLong(250)),
    ] {
        assert_eq!(check_kafka_topic(bad), Err(why), "{bad}");
    }
}

#[test]
fn captures_are_put_in_and_sanitised() {
    for (template, of, topic, expected) in [
        ("plant.{1}", "plant/+/#", "plant/7/x", "plant.7"),
        ("{2}-{1}", "plant/+/#", "plant/7/x/y", "x.y-7"),
        ("{1}", "+/t", "küche 1:a/t", "k_che_1_a"),
        ("{1}", "+/t", "a.b_c-d/t", "a.b_c-d"),
        ("t.{1}", "a/+/b", "a//b", "t._"),
        ("t.{1}", "a/#", "a", "t._"),
        ("t.{1}", "a/#", "a/", "t._"),
        ("t.{1}", "a/#", "a//b/", "t..b."),
        ("{1}{1}", "$share/g/+", "x", "xx"),
    ] {
        assert_eq!(rendered(template, of, topic).as_deref(), Ok(expected), "{template} {of} {topic}");
    }
}

#[test]
fn a_result_that_is_no_kafka_topic_is_refused_and_never_cut() {
    assert_eq!(rendered("{1}", "+/t", "./t"), Err(TemplateError::Dots));
    assert_eq!(rendered("{1}", "#", "/"), Err(TemplateError::Dots));
    assert_eq!(rendered("x{1}", "+", &"y".repeat(248)).map(|topic| topic.len()), Ok(249));
    assert_eq!(rendered("x{1}", "+", &"y".repeat(249)), Err(TemplateError::TooLong(250)));
    assert_eq!(rendered("{1}", "#", &"ä/".repeat(20_000)), Err(TemplateError::TooLong(40_000)));
}

#[test]
fn a_template_that_cannot_be_right_is_refused_at_load() {
    for (template, of, why) in [
        ("{2}", "a/+", TemplateError::NoSuchCapture { number: 2, wildcards: 1 }),
        ("{1}", "a/b", TemplateError::NoSuchCapture { number: 1, wildcards: 0 }),
        ("{0}", "a/+", TemplateError::Unknown("0".into())),
        ("{01}", "a/+", TemplateError::Unknown("01".into())),
        ("{+1}", "a/+", TemplateError::Unknown("+1".into())),
        ("{}", "a/+", TemplateError::Unknown("".into())),
        ("{99999999999999999999999}", "a/+", TemplateError::Unknown("99999999999999999999999".into())),
        ("{topic}", "a/+", TemplateError::Unknown("topic".into())),
        ("{name}", "a/+", TemplateError::Unknown("name".into())),
        ("a{1", "a/+", TemplateError::Brace),
        ("a}", "a/+", TemplateError::Brace),
        ("{1{", "a/+", TemplateError::Brace),
        ("a{{b}}", "a/+", TemplateError::Character('{')),
        ("a b{1}", "a/+", TemplateError::Character(' ')),
        ("", "a/+", TemplateError::Empty),
        ("..", "a/+", TemplateError::Dots),
    ] {
        assert_eq!(
            TopicTemplate::parse(template, &filter(of)).map(|t| t.to_string()),
            Err(why),
            "{template}"
        );
    }
    let long = "x".repeat(249) + "{1}";
    assert_eq!(TopicTemplate::parse(&long, &filter("+")).err(), Some(TemplateError::TooLong(250)));
}

fn key(template: &str, of: Option<&str>, topic: &str) -> Option<String> {
    let filter = of.map(filter);
    let mut out = b">".to_vec();
    let has_key = KeyTemplate::parse(template).unwrap().render(filter.as_ref(), topic, &mut out);
    has_key.then(|| String::from_utf8(out).unwrap())
}

#[test]
fn a_key_is_appended_as_its_template_says() {
    assert_eq!(key("{topic}", None, "a/b").as_deref(), Some(">a/b"));
    assert_eq!(key("dev-{1}", Some("+/b"), "ä 1/b").as_deref(), Some(">dev-ä 1"));
    assert_eq!(key("{{{1}}}", Some("+/b"), "a/b").as_deref(), Some(">{a}"));
    assert_eq!(key("constant", None, "a/b").as_deref(), Some(">constant"));
    assert_eq!(key("{1}", Some("a/#"), "a").as_deref(), Some(">"), "a key that is empty is a key");
    assert_eq!(key("", Some("+"), "a"), None);
}

#[test]
fn a_key_without_its_capture_is_the_mqtt_topic() {
    assert_eq!(key("k-{2}", Some("+/b"), "a/b").as_deref(), Some(">a/b"));
    assert_eq!(key("{1}", None, "a/b").as_deref(), Some(">a/b"));
}

#[test]
fn a_broken_key_template_is_refused() {
    for bad in ["{", "}", "{x}", "{topic", "a}b", "{0}"] {
        assert!(KeyTemplate::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn whatever_a_publisher_sends_the_result_is_a_kafka_topic_or_refused(topic in "\\PC{1,300}") {
        let filter = filter("#");
        let template = TopicTemplate::parse("{1}", &filter).unwrap();
        let mut out = String::new();
        match template.render(&filter, &topic, &mut out) {
            Ok(()) => prop_assert_eq!(check_kafka_topic(&out), Ok(())),
            Err(TemplateError::TooLong(length)) => prop_assert_eq!(length, topic.chars().count()),
            Err(error) => prop_assert!(error == TemplateError::Dots && out.len() <= 2),
        }
    }
}
