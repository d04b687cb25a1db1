//! The test message: who sent it, which one it is, and when, in JSON so that a person can read it in any tool.
//!
//! ```text
//! {"run":"b1","device":"a/1","conn":1,"seq":7,"t_ns":1700000000000000000,"pad":"q7Zk"}
//! ```
//!
//! `seq` counts from 1 for each device of a run. `conn` is the publisher's connection: a publisher whose
//! connection broke cannot know whether its last messages arrived and sends them again with the next `conn`,
//! so a message that comes twice with one `conn` was repeated by somebody else. Within a device the pairs
//! (`conn`, `seq`) grow strictly, which is what [`super::verify`] checks.

use std::borrow::Cow;
use std::fmt::Write;

/// The largest `seq` that is read: it bounds the memory a hostile or broken message can make the verifier take.
pub const MAX_SEQ: u64 = 100_000_000;

/// One test message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Which run of the publisher.
    pub run: Cow<'a, str>,
    /// The device: the MQTT topic.
    pub device: Cow<'a, str>,
    /// The publisher's connection, from 1.
    pub conn: u32,
    /// Number within the device, from 1.
    pub seq: u64,
    /// When it was first handed to the MQTT client, nanoseconds since the Unix epoch.
    pub t_ns: u64,
}

impl Payload<'_> {
    /// The bytes, padded up to `size_bytes` if they are fewer.
    pub fn encode(&self, size_bytes: usize) -> Vec<u8> {
        let mut text = String::with_capacity(size_bytes.max(160));
        text.push_str("{\"run\":");
        push_json(&mut text, &self.run);
        text.push_str(",\"device\":");
        push_json(&mut text, &self.device);
        // Writing to a String cannot fail.
        let _ =
            write!(text, ",\"conn\":{},\"seq\":{},\"t_ns\":{},\"pad\":\"", self.conn, self.seq, self.t_ns);
        let pad = size_bytes.saturating_sub(text.len() + "\"}".len());
        // The same for the same message, and nothing that a codec could make small: what is stored must cost what real values do.
        let mut random = fastrand::Rng::with_seed(self.t_ns ^ self.seq.rotate_left(32));
        text.extend(std::iter::repeat_with(|| random.alphanumeric()).take(pad));
        text.push_str("\"}");
        text.into_bytes()
    }

    /// Reads what [`Payload::encode`] wrote; None for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Payload<'_>> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (run, rest) = take_json(text.strip_prefix("{\"run\":")?)?;
        let (device, rest) = take_json(rest.strip_prefix(",\"device\":")?)?;
        let (conn, rest) = take_number(rest.strip_prefix(",\"conn\":")?)?;
        let (seq, rest) = take_number(rest.strip_prefix(",\"seq\":")?)?;
        let (t_ns, rest) = take_number(rest.strip_prefix(",\"t_ns\":")?)?;
        let pad = rest.strip_prefix(",\"pad\":\"")?.strip_suffix("\"}")?;
        let valid = (1..=MAX_SEQ).contains(&seq) && pad.bytes().all(|byte| byte.is_ascii_alphanumeric());
        valid.then_some(Payload { run, device, conn: u32::try_from(conn).ok()?, seq, t_ns })
    }
}

fn push_json(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => {
                text.push('\\');
                text.push(character);
            }
            control if control < ' ' => {
                let _ = write!(text, "\\u{:04x}", u32::from(control));
            }
            other => text.push(other),
        }
    }
    text.push('"');
}

/// A JSON string as [`push_json`] writes it, and what follows.
fn take_json(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let text = text.strip_prefix('"')?;
    let end = text.find(['"', '\\'])?;
    if text.as_bytes().get(end) == Some(&b'"') {
        return Some((Cow::Borrowed(text.get(..end)?), text.get(end + 1..)?));
    }
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((Cow::Owned(value), text.get(at + 1..)?)),
            '\\' => match characters.next()?.1 {
                'u' => {
                    let code = text.get(at + 2..at + 6)?;
                    value.push(char::from_u32(u32::from_str_radix(code, 16).ok()?)?);
                    characters.nth(3)?;
                }
                escaped => value.push(escaped),
            },
            other => value.push(other),
        }
    }
    None
}

fn take_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload(device: &str) -> Payload<'_> {
        Payload { run: "r".into(), device: device.into(), conn: 2, seq: 7, t_ns: 5 }
    }

    #[test]
    fn reads_as_json_and_is_padded_to_the_size_asked_for() {
        let bytes = payload("a/1").encode(80);
        assert_eq!(bytes.len(), 80);
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.starts_with(r#"{"run":"r","device":"a/1","conn":2,"seq":7,"t_ns":5,"pad":""#), "{text}");
        assert_eq!(Payload::decode(text.as_bytes()), Some(payload("a/1")));
    }

    #[test]
    fn a_size_too_small_for_the_message_gives_the_whole_message() {
        let bytes = payload("a/1").encode(0);
        assert_eq!(Payload::decode(&bytes), Some(payload("a/1")));
    }

    #[test]
    fn what_another_program_sent_is_not_a_payload() {
        for bytes in [&b""[..], b"{}", b"hello", b"\xff", br#"{"run":"r","device":"#] {
            assert_eq!(Payload::decode(bytes), None, "{bytes:?}");
        }
        let zero = String::from_utf8(payload("d").encode(0)).unwrap().replace("\"seq\":7", "\"seq\":0");
        assert_eq!(Payload::decode(zero.as_bytes()), None);
        let huge =
            String::from_utf8(payload("d").encode(0)).unwrap().replace("\"seq\":7", "\"seq\":100000001");
        assert_eq!(Payload::decode(huge.as_bytes()), None);
        let torn = payload("d").encode(200);
        assert_eq!(Payload::decode(&torn[..150]), None);
    }

    proptest! {
        #[test]
        fn any_device_comes_back(run in ".*", device in ".*", conn: u32, seq in 1..=MAX_SEQ, t_ns: u64, size in 0usize..400) {
            let written = Payload { run: run.into(), device: device.into(), conn, seq, t_ns };
            let bytes = written.encode(size);
            prop_assert_eq!(Payload::decode(&bytes), Some(written));
        }

        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Payload::decode(&bytes);
        }
    }
}
