//! The bytes, golden: docs/spool-format.md and the code say the same.

use super::*;
use checkpoint::{Ranges, encode_assigned, encode_done};
use record::{encode_header, frame_bytes};
use segment::{Entry, Header, HeaderFound, Index};

const PAGE: &str = include_str!("../../docs/spool-format.md");

fn example_frame() -> NewFrame<'static> {
    NewFrame {
        topic: "temp",
        partition: Some(5),
        identity: Some(Identity { producer_id: 4001, epoch: 1, base_sequence: 12 }),
        records: 3,
        messages: 2,
        oldest_ms: 1_700_000_000_000,
        newest_ms: 1_700_000_000_999,
        body: b"hello",
        unreleased: &[],
    }
}

fn frame_example() -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_header(FrameId(7), &example_frame(), true, &mut bytes);
    bytes.extend_from_slice(b"hello");
    bytes
}

fn index_example() -> (Index, Vec<u8>) {
    let bytes = frame_bytes(&example_frame()) as u32;
    let oldest_ms = example_frame().oldest_ms;
    let entry = Entry { id: FrameId(7), oldest_ms, offset: 40, bytes, records: 3, messages: 2, topic: 0 };
    let index = Index { entries: vec![entry], topics: vec!["temp".to_owned()] };
    let encoded = index.encode(40 + bytes);
    (index, encoded)
}

fn given() -> Given {
    let identity = Identity { producer_id: 4001, epoch: 1, base_sequence: 15 };
    let records = [0, 2, 9].into_iter().collect();
    Given { partition: 5, identity, batch_records: 4, after_offset: 41, records }
}

fn checkpoint_example() -> Vec<u8> {
    let mut done = Ranges::default();
    done.insert(1, 6);
    let mut bytes = checkpoint::encode_header();
    bytes.extend(encode_done(FrameId(9), &done));
    bytes.extend(encode_assigned([(FrameId(8), &given())]));
    bytes
}

fn unreleased_example() -> Vec<u8> {
    let one = Unreleased { number: 513, content: 0x1122_3344_5566_7788 };
    let mut bytes = unreleased::encode_noted(FrameId(9), [(FrameId(10), &one)]);
    bytes.extend(unreleased::encode_released(FrameId(12), &[513, 7]));
    bytes
}

fn header() -> Header {
    Header { first: FrameId(7), merged_to: Some(FrameId(9)) }
}

/// The hexadecimal example of this name on the page.
fn golden(name: &str) -> Vec<u8> {
    let from = PAGE.find(&format!("Example `{name}`:")).unwrap();
    let lines = PAGE[from..].lines().skip(2).take_while(|line| line.starts_with("    "));
    let digits: String = lines.flat_map(str::chars).filter(|c| !c.is_whitespace()).collect();
    (0..digits.len() / 2).filter_map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).ok()).collect()
}

#[test]
fn the_limits_on_the_page_are_the_code_s() {
    for (field, most) in [
        ("length of the body, bytes", record::BODY_BYTES_MAX),
        ("length of the topic, bytes", record::TOPIC_BYTES_MAX),
    ] {
        assert!(PAGE.contains(&format!("| {field}; at most {most} |")), "{field}: {most}");
    }
}

/// Compares every row of the table in front of an example with the example's bytes; gives where the last field ends.
fn check_table(section: &str, bytes: &[u8]) -> usize {
    let from = PAGE.find(&format!("## {section}\n")).unwrap();
    let rows = PAGE[from..].lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let mut end = 0;
    for row in rows.take_while(|row| row.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [offset, kind, field, example] = cells[..] else { panic!("four cells: {row}") };
        let offset: usize = offset.parse().unwrap();
        assert_eq!(offset, end, "{section}, {field}: no gap and no overlap");
        let number = || example.parse::<i128>().unwrap();
        let expected: Option<Vec<u8>> = match (kind, example) {
            (_, "*") => None,
            ("u8", _) => Some(vec![number() as u8]),
            ("u16", _) => Some((number() as u16).to_le_bytes().to_vec()),
            ("i16", _) => Some((number() as i16).to_le_bytes().to_vec()),
            ("u32", _) => Some((number() as u32).to_le_bytes().to_vec()),
            ("i32", _) => Some((number() as i32).to_le_bytes().to_vec()),
            ("u64", _) => Some((number() as u64).to_le_bytes().to_vec()),
            ("i64", _) => Some((number() as i64).to_le_bytes().to_vec()),
            _ => Some(example.as_bytes().to_vec()),
        };
        let size = match kind {
            "u8" => 1,
            "u16" | "i16" => 2,
            "u32" | "i32" => 4,
            "u64" | "i64" => 8,
            bytes => bytes.strip_prefix("bytes ").unwrap().parse().unwrap(),
        };
        end = offset + size;
        if let Some(expected) = expected {
            assert_eq!(bytes[offset..end], expected, "{section}, {field}");
        }
    }
    end
}

#[test]
fn the_page_shows_what_the_code_writes() {
    let examples = [
        ("Segment header", "segment-header", header().encode()),
        ("Frame", "frame", frame_example()),
        ("Index and trailer of a closed segment", "index", index_example().1),
        ("Checkpoint", "checkpoint", checkpoint_example()),
        ("Unreleased messages", "unreleased", unreleased_example()),
    ];
    for (section, name, bytes) in examples {
        let hex: Vec<String> =
            bytes.chunks(4).map(|four| four.iter().map(|b| format!("{b:02x}")).collect()).collect();
        let shown: Vec<String> = hex.chunks(8).map(|words| format!("    {}", words.join(" "))).collect();
        assert_eq!(check_table(section, &bytes), bytes.len(), "{section} is described to its end");
        assert!(golden(name) == bytes, "{name} is, in the code:\n{}", shown.join("\n"));
    }
}

#[test]
fn the_page_is_read_back() {
    assert_eq!(Header::parse(&golden("segment-header")), HeaderFound::Sound(header()));
    let bytes = golden("frame");
    let frame = record::frame(Bytes::from(bytes), &[]).unwrap();
    assert_eq!((frame.id, &*frame.body, frame.records, frame.messages), (FrameId(7), &b"hello"[..], 3, 2));
    assert_eq!(frame.given, [record::whole(5, example_frame().identity.unwrap(), 3)]);
    assert_eq!((frame.oldest_ms, frame.newest_ms), (example_frame().oldest_ms, example_frame().newest_ms));
    let contents = checkpoint::parse(&golden("checkpoint")).unwrap();
    assert_eq!(contents.done.iter().collect::<Vec<_>>(), [(1, 6)]);
    assert_eq!(contents.assigned.get(&FrameId(8)), Some(&vec![given()]));
    assert_eq!((contents.next, contents.damaged_bytes), (FrameId(9), 0));
}

#[test]
fn notes_and_releases_are_read_back_and_damage_forgets_them() {
    let noted = |numbers: &[u16], first: u64| {
        let all: Vec<Unreleased> =
            numbers.iter().map(|&number| Unreleased { number, content: u64::from(number) }).collect();
        unreleased::encode_noted(FrameId(first), all.iter().map(|one| (FrameId(first), one)))
    };
    let numbers = |bytes: &[u8]| -> Vec<u16> {
        let contents = checkpoint::parse(&[checkpoint::encode_header(), bytes.to_vec()].concat()).unwrap();
        contents.unreleased.all().map(|(_, one)| one.number).collect()
    };
    let released = unreleased::encode_released(FrameId(6), &[1, 9]);
    let both = [noted(&[1, 2, 3], 5), released.clone(), noted(&[1], 6)].concat();
    assert_eq!(numbers(&both), [1, 2, 3], "the release is of what was before it");
    assert_eq!(numbers(&[both.clone(), noted(&[4], 6)].concat()), [2, 3, 4], "frame 6 is another one");
    assert_eq!(numbers(&[noted(&[1, 2], 5), released].concat()), [2]);
    let mut damaged =
        [noted(&[1, 2], 5), unreleased::encode_released(FrameId(6), &[1]), noted(&[3], 7)].concat();
    let at = noted(&[1, 2], 5).len() + 20;
    damaged[at] ^= 1;
    assert_eq!(numbers(&damaged), [3], "what stands before damage is forgotten: a release may be in it");
    assert_eq!(numbers(&golden("unreleased")), [0_u16; 0]);
    assert_eq!(numbers(&golden("unreleased")[..16 + 8 + 18]), [513]);
}

#[test]
fn the_checksum_is_castagnoli() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn every_flipped_bit_of_a_frame_is_seen() {
    let bytes = frame_example();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(record::decode(&flipped).is_err(), "bit {bit}");
    }
    for cut in 0..bytes.len() {
        assert!(record::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn a_flipped_bit_of_a_header_is_damage_and_not_a_newer_format() {
    let bytes = header().encode();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Header::parse(&flipped), HeaderFound::Damaged, "bit {bit}");
    }
    let mut newer = bytes;
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    newer[12..16].copy_from_slice(&(!2_u32).to_le_bytes());
    assert_eq!(Header::parse(&newer), HeaderFound::Version(2));
}

#[test]
fn a_number_of_records_that_the_frame_does_not_pay_for_is_no_frame() {
    let largest = example_frame();
    let largest = NewFrame { records: frame_bytes(&largest) as u32 * 8, ..largest };
    assert!(record::fits(&largest));
    for (records, fine) in [(largest.records, true), (largest.records + 1, false), (u32::MAX, false)] {
        let mut bytes = Vec::new();
        let frame = NewFrame { records, ..largest };
        assert_eq!(record::fits(&frame), fine);
        encode_header(FrameId(7), &frame, true, &mut bytes);
        bytes.extend_from_slice(b"hello");
        assert_eq!(record::decode(&bytes).is_ok(), fine, "{records}");
    }
}

#[test]
fn an_assignment_that_is_longer_than_its_record_is_not_read_and_costs_nothing() {
    let mut bytes = checkpoint_example();
    let (record, length) = (64, 16 + 44);
    bytes[record + length - 4..record + length].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[record + 8..]);
    bytes[record + 4..record + 8].copy_from_slice(&crc.to_le_bytes());
    let contents = checkpoint::parse(&bytes).unwrap();
    assert_eq!((contents.assigned.len(), contents.end), (0, bytes.len() as u64));
}

#[test]
fn what_is_damaged_in_the_checkpoint_does_not_hide_what_follows() {
    let bytes = checkpoint_example();
    let mut flipped = bytes.clone();
    flipped[50] ^= 4;
    let contents = checkpoint::parse(&flipped).unwrap();
    assert!(contents.done.is_empty());
    assert_eq!((contents.assigned.len(), contents.damaged_bytes), (1, 40));
    let torn = checkpoint::parse(&bytes[..bytes.len() - 1]).unwrap();
    assert_eq!((torn.end, torn.damaged_bytes, torn.assigned.len()), (64, 0, 0));
}

#[test]
fn ranges_join_and_tell_gaps() {
    let mut ranges = Ranges::default();
    for (first, last) in [(5, 6), (1, 2), (9, 9), (3, 3), (8, 8)] {
        ranges.insert(first, last);
    }
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 3), (5, 6), (8, 9)]);
    assert_eq!(ranges.gaps(2, 12), [(4, 4), (7, 7), (10, 12)]);
    assert_eq!(ranges.gaps(6, 6), []);
    assert!(ranges.contains(9) && !ranges.contains(4));
    ranges.insert(2, 20);
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [(1, 20)]);
}
