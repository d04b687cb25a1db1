use super::*;
use crate::config::Variables;
use std::cell::RefCell;

fn config(changes: &[(&str, &str)]) -> Config {
    let smallest = [
        ("MQTT_BROKER_URL", "broker"),
        ("MQTT_CLIENT_ID", "edge"),
        ("TOPIC_LIST", "a/b:exact"),
        ("WILDCARD_TOPIC_LIST", "plant/+/#:plant.{1},plant/7/+:seven"),
        ("KAFKA_BROKER", "k1:9092,k2:9092"),
    ];
    let variables: Variables = smallest
        .iter()
        .chain(changes)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::from_variables(&variables).unwrap()
}

fn checked(
    config: &Config,
    mqtt: Result<&str, &str>,
    kafka: Result<&str, &str>,
) -> (String, Result<(), CliError>) {
    let answer = |result: Result<&str, &str>| result.map(str::to_owned).map_err(str::to_owned);
    let hooks = Hooks {
        run: &|_, _| panic!("check does not run the gateway"),
        reach_mqtt: &|_| answer(mqtt),
        reach_kafka: &|_| answer(kafka),
    };
    let mut out = Vec::new();
    let result = check::check(config, &hooks, &mut out);
    (String::from_utf8(out).unwrap(), result)
}

fn routed(config: &Config, topics: &[&str]) -> (String, Result<(), CliError>) {
    let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
    let mut out = Vec::new();
    let result = route::route(config, &topics, &mut out);
    (String::from_utf8(out).unwrap(), result)
}

fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from([&["tidegate"], arguments].concat())
}

#[test]
fn check_says_what_is_subscribed_where_it_goes_and_what_is_doubtful() {
    let (text, result) =
        checked(&config(&[("DEFAULT_KAFKA_TOPIC", "rest")]), Ok("MQTT 3.1.1"), Ok("3 brokers"));
    assert!(result.is_ok());
    let expected = "\
configuration: valid
subscriptions: 3, at QoS 1
  list                 subscribed  Kafka topic  key
  TOPIC_LIST           a/b         exact        {topic}
  WILDCARD_TOPIC_LIST  plant/+/#   plant.{1}    {topic}
  WILDCARD_TOPIC_LIST  plant/7/+   seven        {topic}
no rule matches: rest
undeliverable: dropped and counted
spool: in memory: a crash or power loss loses what Kafka has not taken; at most 67108864 bytes; when full: block
warning: WILDCARD_TOPIC_LIST entries plant/+/#:plant.{1} and plant/7/+:seven overlap: a topic that both match goes to plant.{1} only
MQTT broker:1883: reached, MQTT 3.1.1
Kafka k1:9092,k2:9092: reached, 3 brokers
";
    assert_eq!(text, expected);
}

#[test]
fn check_reaches_both_brokers_even_if_the_first_is_away_and_tells_by_its_code() {
    let (text, result) = checked(&config(&[]), Err("connection refused\nforged"), Ok("1 broker"));
    assert!(text.contains("MQTT broker:1883: NOT reached, connection refused\\nforged\n"), "{text}");
    assert!(text.contains("reached, 1 broker"), "{text}");
    assert_eq!(result.unwrap_err().exit_code(), 1);
    assert_eq!(checked(&config(&[]), Ok(""), Err("")).1.unwrap_err().exit_code(), 1);
}

#[test]
fn check_says_where_the_spool_is_and_whether_its_directory_can_be_used() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let spool = |path: &std::path::Path, brokers: Result<&str, &str>| {
        let path = path.to_str().unwrap();
        let changes =
            [("DB_PERSIST_PATH", path), ("SPOOL_FULL", "drop-oldest"), ("SPOOL_MAX_BYTES", "8000000")];
        let (text, result) = checked(&config(&changes), brokers, brokers);
        let told = format!("spool: {path}; at most 8000000 bytes; when full: drop-oldest\n");
        assert!(text.contains(&told), "{text}");
        (text, result)
    };
    // One that is not there is made by `run`, not by `check`.
    for usable in [home.path().to_owned(), home.path().join("not/yet")] {
        let (text, result) = spool(&usable, Ok(""));
        assert!(result.is_ok() && !text.contains("NOT"), "{text}");
    }
    assert!(!home.path().join("not").exists());
    let (text, result) = spool(&file, Ok(""));
    assert!(text.contains("\nspool: its directory can NOT be used, it is not a directory\n"), "{text}");
    assert!(text.contains("Kafka k1:9092,k2:9092: reached"), "{text}");
    let error = result.unwrap_err();
    assert!(matches!(error, CliError::SpoolUnusable) && error.exit_code() == 1, "{error}");
    assert!(matches!(spool(&file, Err("")).1, Err(CliError::Unreachable)), "the brokers are told of first");
}

#[test]
fn check_shows_the_key_that_each_rule_really_gives() {
    let (text, _) = checked(&config(&[("KAFKA_KEY", "d-{2}")]), Ok(""), Ok(""));
    assert!(text.contains("exact        {topic}\n") && text.contains("plant.{1}    d-{2}\n"), "{text}");
    assert!(text.contains("seven        {topic}\n"), "{text}");
    let (text, _) = checked(&config(&[("KAFKA_KEY", "")]), Ok(""), Ok(""));
    assert!(text.contains("exact        none\n"), "{text}");
}

#[test]
fn route_says_rule_kafka_topic_and_key_of_each_topic() {
    let config = config(&[("KAFKA_KEY", "{1}"), ("DEAD_LETTER_TOPIC", "dead")]);
    let (text, result) = routed(&config, &["a/b", "plant/9/x y", "nowhere", "plant/../x"]);
    assert!(result.is_ok());
    let expected = "\
a/b
  rule         TOPIC_LIST entry 1, a/b:exact
  Kafka topic  exact
  key          \"a/b\"
plant/9/x y
  rule         WILDCARD_TOPIC_LIST entry 1, plant/+/#:plant.{1}
  Kafka topic  plant.9
  key          \"9\"
nowhere
  no rule matches: dropped and counted
plant/../x
  rule         WILDCARD_TOPIC_LIST entry 1, plant/+/#:plant.{1}
  Kafka topic  plant...
  key          \"..\"
";
    assert_eq!(text, expected);
}

#[test]
fn route_tells_what_becomes_of_a_topic_that_has_no_kafka_topic() {
    let config =
        config(&[("WILDCARD_TOPIC_LIST", "+/x:{1}"), ("DEAD_LETTER_TOPIC", "dead"), ("KAFKA_KEY", "")]);
    let (text, _) = routed(&config, &["../x", "a/b"]);
    assert!(text.contains("undeliverable, goes to dead: a Kafka topic is not called . or .."), "{text}");
    assert!(text.ends_with("  key          none\n"), "{text}");
}

#[test]
fn route_refuses_what_is_no_topic_name() {
    let error = routed(&config(&[]), &["a/+"]).1.unwrap_err();
    assert_eq!(chain(&error), "\"a/+\" is no MQTT topic name: a topic name has no wildcards (+ or #)");
    assert_eq!(error.exit_code(), 1);
}

#[test]
fn the_command_line_is_understood() {
    assert_eq!(parse(&[]).unwrap().command, None);
    assert_eq!(parse(&["run"]).unwrap().command, Some(Command::Run));
    let cli = parse(&["check", "--env-file", "x.env"]).unwrap();
    assert_eq!((cli.command, cli.env_file), (Some(Command::Check), Some(PathBuf::from("x.env"))));
    let topics = vec!["a".to_owned(), "$SYS/b".to_owned()];
    assert_eq!(parse(&["route", "a", "$SYS/b"]).unwrap().command, Some(Command::Route { topics }));
    for usage in [&["route"][..], &["bogus"], &["--env-file"], &["run", "x"]] {
        assert_eq!(parse(usage).unwrap_err().exit_code(), 2, "{usage:?}");
    }
}

#[test]
fn the_parser_is_sound_and_its_help_documents_every_variable() {
    let mut command = command();
    command.clone().debug_assert();
    let help = command.render_long_help().to_string();
    for variable in crate::config::variables::VARIABLES {
        assert!(help.contains(variable.name), "{}", variable.name);
    }
}

#[test]
fn version_needs_no_configuration() {
    let ran = RefCell::new(false);
    let hooks = Hooks {
        run: &|_, _| {
            *ran.borrow_mut() = true;
            Ok(())
        },
        reach_mqtt: &|_| panic!("version reaches nothing"),
        reach_kafka: &|_| panic!("version reaches nothing"),
    };
    let mut out = Vec::new();
    execute(&parse(&["version"]).unwrap(), &hooks, &mut out).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), format!("tidegate {}\n", env!("CARGO_PKG_VERSION")));
    assert!(!*ran.borrow());
}

#[test]
fn a_configuration_error_has_code_2_and_every_other_1() {
    let errors = ConfigErrors(Vec::new());
    assert_eq!(CliError::from(errors).exit_code(), 2);
    let run = CliError::Run("the ack thread panicked".into());
    assert_eq!(
        (run.exit_code(), chain(&run).as_str()),
        (1, "the gateway ended with an error: the ack thread panicked")
    );
    assert_eq!(CliError::Unreachable.exit_code(), 1);
}

#[test]
fn what_ends_the_process_keeps_its_lines_and_steers_no_terminal() {
    assert_eq!(safe_lines("two problems\n  a\u{1b}[31m\r"), "two problems\n  a\\u{1b}[31m\\r");
}

#[test]
fn fixed_kafka_topics_that_kafka_cannot_tell_apart_are_warned_of_once() {
    let config = config(&[("TOPIC_LIST", "a:my.topic,b:my_topic,c:my_topic,d:other")]);
    let warnings = warnings(&config, &Router::new(config.routes.rules.clone()));
    let told = warnings.iter().filter(|warning| warning.contains("my.topic and my_topic"));
    assert_eq!(told.count(), 1, "{warnings:?}");
}
