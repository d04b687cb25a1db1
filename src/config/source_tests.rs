use super::*;
use crate::config::{Config, RunMode};

const SMALLEST: &str = "MQTT_BROKER_URL=broker\nMQTT_CLIENT_ID=edge\nTOPIC_LIST=a:b\nKAFKA_BROKER=kafka\n";

fn of(pairs: &[(&str, &str)]) -> Variables {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> std::path::PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }
}

fn load(process: &[(&str, &str)], env_file: Option<&Path>, dot_env: &Path) -> Result<Config, String> {
    Config::load_from(of(process), env_file, dot_env, Vec::new()).map_err(|errors| errors.to_string())
}

#[test]
fn develop_reads_dot_env_and_production_does_not() {
    let folder = Folder::new();
    let dot_env = folder.file(".env", SMALLEST);
    assert_eq!(load(&[], None, &dot_env).unwrap().run.mode, RunMode::Develop);
    let told = load(&[("RUN_MODE", "production")], None, &dot_env).unwrap_err();
    assert!(told.contains("MQTT_BROKER_URL: it is required"), "{told}");
}

#[test]
fn the_process_environment_wins_over_a_file_and_is_left_as_it_is() {
    let folder = Folder::new();
    let dot_env = folder.file(".env", format!("{SMALLEST}TIDEGATE_TEST_ONLY_IN_A_FILE=x\n"));
    let config = load(&[("MQTT_CLIENT_ID", "other")], None, &dot_env).unwrap();
    assert_eq!((config.mqtt.client_id.as_str(), config.mqtt.broker.host.as_str()), ("other", "broker"));
    assert!(std::env::var_os("TIDEGATE_TEST_ONLY_IN_A_FILE").is_none());
}

#[test]
fn an_env_file_is_read_in_either_mode_instead_of_dot_env() {
    let folder = Folder::new();
    let dot_env = folder.file(".env", "MQTT_QOS=7\n");
    let file = folder.file("edge.env", SMALLEST);
    for mode in ["DEVELOP", "PRODUCTION"] {
        assert!(load(&[("RUN_MODE", mode)], Some(&file), &dot_env).is_ok(), "{mode}");
    }
}

#[test]
fn dot_env_may_be_absent_and_an_env_file_may_not() {
    let folder = Folder::new();
    let told = load(&[], None, &folder.path("absent")).unwrap_err();
    assert!(!told.contains("absent"), "{told}");
    let told = load(&[], Some(&folder.path("absent")), &folder.path(".env")).unwrap_err();
    assert!(told.contains("absent: the file cannot be read"), "{told}");
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path(".env")).unwrap();
    let told = load(&[], None, &folder.path(".env")).unwrap_err();
    assert!(told.contains(".env: the file cannot be read"), "{told}");
    let told = load(&[], Some(&folder.file("latin1", b"A=\xe4\n")), &folder.path("none")).unwrap_err();
    assert!(told.contains("latin1: the file is not valid UTF-8"), "{told}");
}

#[test]
fn a_file_is_read_as_every_dotenv_reads_it() {
    let text =
        "\u{feff}# comment\nexport A=1\nB = 'x # y $z'\nC=\"a b\" # comment\n\nD=\nE='two\nlines'\nF=x$A\r\n";
    let expected =
        of(&[("A", "1"), ("B", "x # y $z"), ("C", "a b"), ("D", ""), ("E", "two\nlines"), ("F", "x1")]);
    assert_eq!(parse_file(text), (expected, Vec::new()));
}

#[test]
fn a_mistake_is_told_with_its_line_and_without_what_the_line_holds() {
    for (text, line) in [
        ("A=1\n# b\nno equals sign hunter2\n", 3),
        ("A=1\nMQTT_USER_PASSWORD=hunter2 and more\n", 2),
        ("A=1\n\n\nB='hunter2\n", 4),
        ("=hunter2", 1),
        ("A=1\nB=2\nA=hunter2\n", 3),
    ] {
        let (_, mistakes) = parse_file(text);
        let [(found, reason)] = &mistakes[..] else { panic!("{text:?}: {mistakes:?}") };
        assert_eq!(*found, line, "{text:?}: {reason}");
        assert!(!reason.contains("hunter2"), "{reason}");
    }
    let folder = Folder::new();
    let told = load(&[], None, &folder.file(".env", format!("{SMALLEST}oops\n"))).unwrap_err();
    assert!(told.ends_with(
        ".env:5: expected NAME=VALUE (a value with spaces, #, quotes or $ stands in single quotes)"
    ));
    assert_eq!(told.lines().count(), 1, "what could be read is not reported as missing: {told}");
}

#[test]
fn every_broken_line_is_told() {
    let (variables, mistakes) = parse_file("oops\nA=1\noops\nB=2\nB=3\nC=x y\n");
    let lines: Vec<usize> = mistakes.iter().map(|(line, _)| *line).collect();
    assert_eq!((variables, lines), (of(&[("A", "1"), ("B", "2")]), vec![1, 3, 5, 6]));
}

#[test]
fn a_shared_subscription_that_the_file_would_swallow_is_refused() {
    for text in ["X=1\nL=$share/g/a:b\n", "X=1\nL=\"$share/g/a:b\"\n", "X=1\nexport L=a:b,$SYS/#:c\n"] {
        let (_, mistakes) = parse_file(text);
        let [(line, reason)] = &mistakes[..] else { panic!("{text:?}: {mistakes:?}") };
        assert!(*line == 2 && reason.contains("single quotes"), "{line} {reason}");
    }
    assert_eq!(parse_file("L='$share/g/a:b'").0, of(&[("L", "$share/g/a:b")]));
    assert_eq!(parse_file("L=\\$share/g/a:b").0, of(&[("L", "$share/g/a:b")]));
}

fn with_secret(pairs: &[(&str, &str)]) -> (Variables, Vec<String>) {
    let mut variables = of(pairs);
    let mut problems = Vec::new();
    read_secrets(&mut variables, &mut problems);
    (variables, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn a_secret_is_read_from_its_file_without_the_last_line_break() {
    let folder = Folder::new();
    for (text, expected) in
        [("hunter2\n", "hunter2"), ("hunter2\r\n", "hunter2"), (" hunter2 \n\n", " hunter2 \n")]
    {
        let path = folder.file("secret", text);
        let (variables, problems) = with_secret(&[("MQTT_USER_PASSWORD_FILE", path.to_str().unwrap())]);
        assert_eq!(variables, of(&[("MQTT_USER_PASSWORD", expected)]));
        assert_eq!(problems, Vec::<String>::new());
    }
}

#[test]
fn a_secret_given_twice_or_in_no_file_is_refused_without_showing_anything() {
    let folder = Folder::new();
    let path = folder.file("secret", "hunter2");
    let path = path.to_str().unwrap();
    let (_, twice) = with_secret(&[("MQTT_USER_PASSWORD_FILE", path), ("MQTT_USER_PASSWORD", "hunter2")]);
    assert!(twice[0].contains("MQTT_USER_PASSWORD is set too"), "{twice:?}");
    let (_, endless) = with_secret(&[("MQTT_USER_PASSWORD_FILE", "/dev/zero")]);
    assert!(endless[0].ends_with("the file it names is larger than 1048576 bytes"), "{endless:?}");
    let (_, mixed_up) = with_secret(&[("MQTT_USER_PASSWORD_FILE", "hunter2")]);
    assert!(mixed_up[0].contains("cannot be read"), "{mixed_up:?}");
    let (_, empty) = with_secret(&[("MQTT_USER_PASSWORD_FILE", folder.file("e", "\n").to_str().unwrap())]);
    assert!(empty[0].contains("is empty"), "{empty:?}");
    assert!(!format!("{twice:?}{mixed_up:?}{empty:?}").contains("hunter2"));
}

#[test]
fn a_secret_file_of_something_not_supported_yet_is_refused_too() {
    let folder = Folder::new();
    let file = folder.file("secret", "x");
    let process = [("SASL_PASSWORD_FILE", file.to_str().unwrap())];
    let told = load(&process, Some(&folder.file("env", SMALLEST)), Path::new("none")).unwrap_err();
    assert!(told.contains("SASL_PASSWORD: it has no effect"), "{told}");
}

#[test]
fn a_secret_in_a_file_that_others_can_read_is_warned_of() {
    let folder = Folder::new();
    let warnings = |content: &str, mode: u32| {
        let path = folder.file("env", content);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut problems = Vec::new();
        let warnings = complete(&mut Variables::new(), Some(&path), Path::new("none"), &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        warnings
    };
    let secret = "MQTT_USER_PASSWORD=hunter2\n";
    for mode in [0o644, 0o640, 0o604] {
        let told = warnings(secret, mode);
        assert_eq!(told.len(), 1, "{mode:o}");
        assert!(told[0].contains("can be read by other users") && !told[0].contains("hunter2"), "{told:?}");
    }
    assert!(warnings(secret, 0o600).is_empty());
    assert!(warnings("MQTT_QOS=1\nMQTT_USER_PASSWORD=\n", 0o644).is_empty(), "there is no secret in it");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_makes_the_file_parser_panic(text in "[A-C='\"# $\\\\\r\n{}xä]{0,40}") {
        for (line, _) in parse_file(&text).1 {
            proptest::prop_assert!(line >= 1 && line <= text.lines().count().max(1));
        }
    }
}
