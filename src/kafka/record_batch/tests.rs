use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::kafka::compression::Compression;

const ALL: [Compression; 4] = [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4];

fn sealed(records: &[RecordRef<'_>], compression: Compression) -> SealedBatch {
    let mut builder = BatchBuilder::new();
    for record in records {
        let announced = builder.encoded_bytes_with(record);
        builder.append(record);
        assert_eq!(builder.encoded_bytes(), announced);
    }
    builder.seal(compression)
}

fn decode_one(bytes: Bytes) -> DecodedBatch {
    let mut batches = decode_batches(bytes);
    let batch = batches.next().unwrap().unwrap();
    assert!(batches.next().is_none());
    batch
}

fn with_crc(mut batch: Vec<u8>) -> Bytes {
    let crc = crc32c::crc32c(&batch[at::ATTRIBUTES..]);
    batch[at::CRC..at::ATTRIBUTES].copy_from_slice(&crc.to_be_bytes());
    Bytes::from(batch)
}

#[test]
fn one_known_batch_has_these_bytes() {
    let batch = sealed(
        &[
            RecordRef {
                key: Some(b"k"),
                value: Some(b"hello"),
                headers: &[("h", b"1"), ("h", b"2")],
                timestamp_ms: 1000,
            },
            RecordRef { key: None, value: None, headers: &[], timestamp_ms: 936 },
        ],
        Compression::None,
    );
    #[rustfmt::skip]
    let expected: &[u8] = &[
        0, 0, 0, 0, 0, 0, 0, 0, // base offset
        0, 0, 0, 77, // length: 49 of the header, 21 and 7 of the records
        0xff, 0xff, 0xff, 0xff, // leader epoch
        2, // magic
        0xeb, 0x1a, 0x9f, 0x80, // CRC32C
        0, 0, // attributes
        0, 0, 0, 1, // last offset delta
        0, 0, 0, 0, 0, 0, 0x03, 0xe8, // first timestamp
        0, 0, 0, 0, 0, 0, 0x03, 0xe8, // max timestamp
        0, 0, 0, 0, 0, 0, 0x10, 0x01, // producer id
        0, 3, // producer epoch
        0, 0, 0, 9, // base sequence
        0, 0, 0, 2, // record count
        40, 0, 0, 0, 2, b'k', 10, b'h', b'e', b'l', b'l', b'o', 4, 2, b'h', 2, b'1', 2, b'h', 2, b'2',
        12, 0, 127, 2, 1, 1, 0,
    ];
    let encoded = batch.encode(Identity { producer_id: 0x1001, producer_epoch: 3, base_sequence: 9 });
    assert_eq!(encoded, expected);
    assert_eq!(batch.encoded_bytes(), expected.len());
}

#[test]
fn the_header_of_a_batch_comes_back() {
    let record = RecordRef { key: None, value: Some(b"v"), headers: &[], timestamp_ms: 5 };
    let identity = Identity { producer_id: 77, producer_epoch: 2, base_sequence: i32::MAX };
    let batch = decode_one(sealed(&[record; 3], Compression::None).encode(identity));
    assert_eq!(batch.identity, identity);
    assert_eq!((batch.count, batch.last_offset_delta, batch.next_offset()), (3, 2, 3));
    assert!(!batch.is_control && !batch.is_transactional);
}

#[test]
fn repeated_header_names_keep_their_order() {
    let headers: &[(&str, &[u8])] = &[("a", b"1"), ("b", b""), ("a", b"2"), ("", b"3")];
    let record = RecordRef { key: None, value: None, headers, timestamp_ms: 0 };
    let records = sealed(&[record], Compression::Lz4).records().unwrap();
    let read: Vec<(&str, &[u8])> =
        records[0].headers.iter().map(|(name, value)| (name.as_str(), value.as_deref().unwrap())).collect();
    assert_eq!(read, headers);
}

#[test]
fn a_cut_last_batch_is_skipped_whatever_is_left_of_it() {
    let record = RecordRef { key: Some(b"key"), value: Some(b"value"), headers: &[], timestamp_ms: 0 };
    let one = sealed(&[record], Compression::None).encode(Identity::NONE);
    for kept in 0..one.len() {
        let bytes = Bytes::from([&one[..], &one[..kept]].concat());
        let batches: Vec<_> = decode_batches(bytes).collect();
        assert_eq!(batches.len(), 1, "{kept} bytes of the second");
        assert!(batches[0].is_ok());
    }
}

#[test]
fn a_damaged_batch_is_an_error_and_the_next_one_is_read() {
    let record = RecordRef { key: None, value: Some(b"value"), headers: &[], timestamp_ms: 0 };
    let one = sealed(&[record], Compression::None).encode(Identity::NONE);
    for at in at::CRC..one.len() {
        let mut damaged = one.to_vec();
        damaged[at] ^= 1;
        let batches: Vec<_> = decode_batches(Bytes::from([&damaged[..], &one[..]].concat())).collect();
        assert!(matches!(batches[0], Err(DecodeError::WrongChecksum { offset: 0 })), "byte {at}");
        assert!(batches[1].is_ok());
    }
}

#[test]
fn a_message_of_an_old_format_is_named_and_stepped_over() {
    let mut old = vec![0; 8];
    old.extend_from_slice(&14i32.to_be_bytes());
    old.extend_from_slice(&[0; 14]);
    let record = RecordRef { key: None, value: None, headers: &[], timestamp_ms: 0 };
    old.extend_from_slice(&sealed(&[record], Compression::None).encode(Identity::NONE));
    let batches: Vec<_> = decode_batches(Bytes::from(old)).collect();
    assert!(matches!(batches[0], Err(DecodeError::UnsupportedFormat { offset: 0, magic: 0 })));
    assert!(batches[1].is_ok());
}

#[test]
fn a_length_that_is_none_ends_the_reading() {
    for length in [i32::MIN, -1, 0, 13] {
        let mut bytes = vec![0; 100];
        bytes[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
        let batches: Vec<_> = decode_batches(Bytes::from(bytes)).collect();
        assert!(matches!(batches[..], [Err(DecodeError::Malformed { .. })]), "{length}");
    }
}

#[test]
fn a_count_from_the_wire_allocates_nothing() {
    let record = RecordRef { key: None, value: None, headers: &[], timestamp_ms: 0 };
    for count in [i32::MAX, -1] {
        let mut bytes = sealed(&[record], Compression::None).encode(Identity::NONE).to_vec();
        bytes[at::COUNT..at::COUNT + 4].copy_from_slice(&count.to_be_bytes());
        assert!(matches!(decode_one(with_crc(bytes)).records(), Err(DecodeError::Malformed { .. })));
    }
}

#[test]
fn the_append_time_of_the_broker_replaces_the_records_own() {
    let record = RecordRef { key: None, value: None, headers: &[], timestamp_ms: 5 };
    let mut bytes = sealed(&[record; 2], Compression::None).encode(Identity::NONE).to_vec();
    bytes[at::ATTRIBUTES + 1] |= LOG_APPEND_TIME as u8;
    bytes[at::MAX_TIMESTAMP..at::PRODUCER_ID].copy_from_slice(&99i64.to_be_bytes());
    let times: Vec<i64> =
        decode_one(with_crc(bytes)).records().unwrap().iter().map(|record| record.timestamp_ms).collect();
    assert_eq!(times, [99, 99]);
}

#[test]
fn control_and_transactional_batches_are_marked() {
    let record = RecordRef { key: None, value: None, headers: &[], timestamp_ms: 5 };
    let mut bytes = sealed(&[record], Compression::None).encode(Identity::NONE).to_vec();
    bytes[at::ATTRIBUTES + 1] |= (CONTROL | TRANSACTIONAL) as u8;
    let batch = decode_one(with_crc(bytes));
    assert!(batch.is_control && batch.is_transactional);
}

#[test]
fn zstd_is_read_past_with_an_error() {
    let record = RecordRef { key: None, value: None, headers: &[], timestamp_ms: 5 };
    let mut bytes = sealed(&[record], Compression::None).encode(Identity::NONE).to_vec();
    bytes[at::ATTRIBUTES + 1] |= 4;
    assert!(matches!(decode_one(with_crc(bytes)).records(), Err(DecodeError::Compression { offset: 0, .. })));
}

#[test]
fn sequences_wrap_to_zero_behind_the_largest() {
    assert_eq!(next_sequence(0, 10), 10);
    assert_eq!(next_sequence(i32::MAX, 1), 0);
    assert_eq!(next_sequence(i32::MAX - 1, 1), i32::MAX);
    assert_eq!(next_sequence(i32::MAX - 4, 10), 5);
}

type Owned = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Vec<u8>)>, i64);

fn owned_record() -> impl Strategy<Value = Owned> {
    (
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        proptest::collection::vec(("[a-c]{0,2}", proptest::collection::vec(any::<u8>(), 0..5)), 0..4),
        any::<i64>(),
    )
}

proptest! {
    // Four codecs a case: few cases say as much, in a tenth of the time.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_batch_comes_back_in_every_codec(
        input in proptest::collection::vec(owned_record(), 1..40), base_sequence in any::<i32>(), cuts in 0usize..3
    ) {
        for codec in ALL {
            let mut builder = BatchBuilder::with_capacity(cuts * 100);
            for (key, value, headers, timestamp_ms) in &input {
                let headers: Vec<(&str, &[u8])> = headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
                let record = RecordRef {
                    key: key.as_deref(), value: value.as_deref(), headers: &headers, timestamp_ms: *timestamp_ms,
                };
                let announced = builder.encoded_bytes_with(&record);
                builder.append(&record);
                prop_assert_eq!(builder.encoded_bytes(), announced);
            }
            prop_assert_eq!(builder.count(), input.len());
            let batch = builder.seal(codec);
            let identity = Identity { producer_id: 4, producer_epoch: 1, base_sequence };
            let encoded = batch.encode(identity);
            prop_assert_eq!(encoded.len(), batch.encoded_bytes());
            let decoded = decode_one(encoded);
            prop_assert_eq!(decoded.identity, identity);
            prop_assert_eq!(decoded.max_timestamp_ms, batch.max_timestamp_ms());
            let records = decoded.records().unwrap();
            prop_assert_eq!(&records, &batch.records().unwrap());
            prop_assert_eq!(records.len(), input.len());
            for (index, (record, (key, value, headers, timestamp_ms))) in records.iter().zip(&input).enumerate() {
                prop_assert_eq!(record.key.as_deref(), key.as_deref());
                prop_assert_eq!(record.value.as_deref(), value.as_deref());
                prop_assert_eq!(record.timestamp_ms, *timestamp_ms);
                prop_assert_eq!(record.offset, index as i64);
                let headers: Vec<(String, Option<Bytes>)> =
                    headers.iter().map(|(n, v)| (n.clone(), Some(Bytes::from(v.clone())))).collect();
                prop_assert_eq!(&record.headers, &headers);
            }
        }
    }

    #[test]
    fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        for batch in decode_batches(Bytes::from(bytes.clone())).flatten() { let _ = batch.records(); }
        // Below the checksum, where random bytes alone never come.
        let mut behind = vec![0; HEADER_BYTES];
        behind.extend_from_slice(&bytes);
        for (to, from) in behind[at::ATTRIBUTES..HEADER_BYTES].iter_mut().zip(&bytes) { *to = *from; }
        let length = i32::try_from(behind.len() - LENGTH_END).unwrap();
        behind[at::LENGTH..at::LENGTH + 4].copy_from_slice(&length.to_be_bytes());
        behind[at::MAGIC] = MAGIC;
        for batch in decode_batches(with_crc(behind)).flatten() { let _ = batch.records(); }
    }

    #[test]
    fn a_flipped_bit_behind_the_checksum_never_panics(
        input in proptest::collection::vec(owned_record(), 1..5), flips in proptest::collection::vec((0usize..10_000, 0u8..8), 1..4)
    ) {
        for codec in ALL {
            let mut builder = BatchBuilder::new();
            for (key, value, _, timestamp_ms) in &input {
                builder.append(&RecordRef {
                    key: key.as_deref(), value: value.as_deref(), headers: &[("n", b"v")], timestamp_ms: *timestamp_ms,
                });
            }
            let mut bytes = builder.seal(codec).encode(Identity::NONE).to_vec();
            for (at, bit) in &flips {
                let place = at::ATTRIBUTES + at % (bytes.len() - at::ATTRIBUTES);
                bytes[place] ^= 1 << bit;
            }
            for batch in decode_batches(with_crc(bytes)).flatten() { let _ = batch.records(); }
        }
    }
}
