//! What tells one delivery from another. Pure.

use std::hash::Hasher;

use twox_hash::XxHash64;

use crate::message::{Body, Properties};

/// The hash that seeds [`fingerprint`]: XXH64 of the client id, seed 0.
pub fn fingerprint_seed(client_id: &str) -> u64 {
    XxHash64::oneshot(0, client_id.as_bytes())
}

/// The identity of a delivery: XXH64, with the hash of the client id as its seed, of the packet identifier (two
/// bytes, big-endian), the topic, a zero byte (which no topic contains) and the payload. For a payload that was
/// not kept: its packet's size, eight bytes, big-endian. What MQTT 5 carries beside is hashed with that as the seed: of each part a
/// letter, its length (four bytes, big-endian) and its bytes. What a broker changes between two deliveries (expiry) is not in.
pub fn fingerprint(
    seed: u64,
    packet_id: u16,
    topic: &str,
    body: &Body,
    properties: Option<&Properties>,
) -> u64 {
    let mut hasher = XxHash64::with_seed(seed);
    hasher.write(&packet_id.to_be_bytes());
    hasher.write(topic.as_bytes());
    hasher.write(&[0]);
    match body {
        Body::Payload(payload) => hasher.write(payload),
        Body::Oversized { packet_bytes } => hasher.write(&packet_bytes.to_be_bytes()),
        Body::Malformed { packet, .. } => hasher.write(packet),
    }
    properties.map_or_else(|| hasher.finish(), |properties| fingerprint_with(hasher.finish(), properties))
}

fn fingerprint_with(seed: u64, properties: &Properties) -> u64 {
    let mut hasher = XxHash64::with_seed(seed);
    let mut part = |letter: u8, bytes: &[u8]| {
        hasher.write(&[letter]);
        hasher.write(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        hasher.write(bytes);
    };
    let Properties { user, content_type, response_topic, correlation_data } = properties;
    for (name, value) in user {
        part(b'n', name.as_bytes());
        part(b'v', value.as_bytes());
    }
    if let Some(text) = content_type {
        part(b'c', text.as_bytes());
    }
    if let Some(text) = response_topic {
        part(b'r', text.as_bytes());
    }
    if let Some(data) = correlation_data {
        part(b'd', data);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_xxh64_of_its_documented_parts() {
        let seed = fingerprint_seed("gateway");
        assert_eq!(seed, XxHash64::oneshot(0, b"gateway"));
        let body = Body::Payload(bytes::Bytes::from_static(b"21.5"));
        assert_eq!(
            fingerprint(seed, 258, "a/b", &body, None),
            XxHash64::oneshot(seed, b"\x01\x02a/b\x0021.5")
        );
        let large = Body::Oversized { packet_bytes: 3 };
        assert_eq!(
            fingerprint(seed, 258, "a", &large, None),
            XxHash64::oneshot(seed, b"\x01\x02a\0\0\0\0\0\0\0\0\x03")
        );
        let mut properties = Properties { user: vec![("n".into(), "v".into())], ..Properties::default() };
        let with = |properties: &Properties| fingerprint(seed, 258, "a/b", &body, Some(properties));
        let base = XxHash64::oneshot(seed, b"\x01\x02a/b\x0021.5");
        assert_eq!(with(&properties), XxHash64::oneshot(base, b"n\0\0\0\x01nv\0\0\0\x01v"));
        let one = with(&properties);
        properties.correlation_data = Some(bytes::Bytes::from_static(b"7"));
        assert_ne!(with(&properties), one, "two requests that differ in nothing else");
    }
}
