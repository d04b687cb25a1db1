//! An HTTP client that can be rude, and a reader of what Prometheus reads, written from the format's description.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use super::process::Gateway;
use super::wait;

/// Where the gateway's pages are: it was started with HTTP_LISTEN=127.0.0.1:0 and says so in its log.
pub fn address(gateway: &Gateway) -> String {
    let line = gateway.wait_for_log("INFO", &["HTTP on http://"]);
    let rest = line.split("HTTP on http://").nth(1).expect("the line was found by it");
    rest.split(": /").next().expect("a split has a first part").to_owned()
}

/// The same, in a log that the test reads itself.
pub fn address_in(log: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    while log.read_line(&mut line).expect("the log can be read") > 0 {
        if let Some(rest) = line.split("HTTP on http://").nth(1) {
            return rest.split(": /").next().expect("a split has a first part").to_owned();
        }
        line.clear();
    }
    panic!("the gateway ended before it listened")
}

/// A connection with a limit for everything, so that a test ends.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the gateway listens");
    stream.set_read_timeout(Some(wait::PATIENCE)).unwrap();
    stream.set_write_timeout(Some(wait::PATIENCE)).unwrap();
    stream
}

/// Status, head and body of an answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Reads an answer to the end of the connection and holds it against its own length.
pub fn read_answer(mut stream: &TcpStream, with_body: bool) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the answer ends with the connection");
    let text = String::from_utf8(bytes).expect("pages are UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.expect("every answer tells its length").parse().unwrap();
    assert_eq!(body.len(), if with_body { length } else { 0 }, "{head}");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{head}")),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// Sends these bytes and reads the answer.
pub fn send(address: &str, bytes: &[u8]) -> Answer {
    let stream = connect(address);
    // What is too long may be refused before it is all sent.
    let _ = (&stream).write_all(bytes);
    read_answer(&stream, !bytes.starts_with(b"HEAD "))
}

pub fn get(address: &str, path: &str) -> Answer {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes())
}

/// Waits until a page has this status and holds this text.
pub fn wait_for(address: &str, path: &str, status: u16, part: &str) -> Answer {
    wait::until(&format!("{path} to be {status} with {part:?}"), || {
        let answer = get(address, path);
        if answer.status == status && answer.body.contains(part) {
            Ok(answer)
        } else {
            Err(format!("{} {}", answer.status, answer.body))
        }
    })
}

/// The samples of `/metrics` by name and label: panics where the format's rules are broken.
pub fn metrics(address: &str) -> BTreeMap<String, f64> {
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\nContent-Type: text/plain; version=0.0.4"), "{}", answer.head);
    parse(&answer.body)
}

/// The rules of the text format 0.0.4: HELP and TYPE once and before the samples, samples of a metric together, names and labels of
/// the allowed characters, each series once, the last line ended.
pub fn parse(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        let mut bytes = name.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b == b':')
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    assert!(text.ends_with('\n') && !text.contains('\r'), "{text}");
    let (mut kinds, mut helps, mut samples) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text has a name before it");
            assert!(is_name(name) && help.len() > 3, "{line}");
            assert!(helps.insert(name.to_owned(), help).is_none(), "twice: {line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type has a name before it");
            assert!(["counter", "gauge", "untyped"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind).is_none(), "twice: {line}");
            current = name.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line:?}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            assert!(name == current && kinds.contains_key(name) && helps.contains_key(name), "{line}");
            if !labels.is_empty() {
                let inside = labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"));
                let (label, text) = inside.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                assert!(is_name(label) && text.ends_with('"') && text.matches('"').count() == 1, "{line}");
            }
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    assert_eq!(kinds.len(), helps.len());
    samples
}

#[test]
fn the_reader_of_metrics_reads_what_the_format_allows() {
    let good = "# HELP a_total All.\n# TYPE a_total counter\na_total 3\n# HELP b B has.\n# TYPE b gauge\nb{m=\"x\"} 1.5\n";
    assert_eq!(parse(good).get("b{m=\"x\"}"), Some(&1.5));
    for bad in [
        "a_total 3\n",
        "# HELP a_total All.\n# TYPE a_total counter\na_total 3",
        "# HELP a_total All.\n# TYPE a_total counter\na_total 3\na_total 4\n",
        "# HELP a All.\n# TYPE a counter\na 3\n",
        "# HELP a-b All.\n# TYPE a-b gauge\na-b 3\n",
    ] {
        assert!(std::panic::catch_unwind(|| parse(bad)).is_err(), "{bad}");
    }
}
