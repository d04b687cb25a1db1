//! Hostile bytes as a frame, a segment's header and a checkpoint of the spool.
//!
//! `cargo +nightly fuzz run spool_frame -- -max_total_time=60`
//!
//! Checked: no panic, no allocation that the input does not pay for, and that each record of a frame is in one batch at most. Checksums are mended first, so that the fuzzer gets below
//! them.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::spool::{RecordSet, checkpoint, record, segment};

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut mended = data.to_vec();
    if let Some(magic) = mended.get_mut(..4) {
        magic.copy_from_slice(&record::FRAME_MAGIC.to_le_bytes());
    }
    if let Ok(header) = record::FrameHeader::parse(&mended) {
        let (body_at, end) = (header.body_at(), header.frame_bytes());
        if let Some(body) = mended.get(body_at..end) {
            let crc = crc32c::crc32c(body);
            mended[12..16].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32c::crc32c(&mended[8..body_at]);
            mended[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
    read(&mended);
    let mut file = checkpoint::encode_header();
    file.extend_from_slice(data);
    if data.len() >= checkpoint::RECORD_HEADER_BYTES {
        let at = checkpoint::HEADER_BYTES;
        let length = (data.len() - checkpoint::RECORD_HEADER_BYTES) as u32;
        file[at..at + 4].copy_from_slice(&checkpoint::RECORD_MAGIC.to_le_bytes());
        file[at + 8..at + 12].copy_from_slice(&length.to_le_bytes());
        let crc = crc32c::crc32c(&file[at + 8..]);
        file[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    }
    assigned(&file);
});

/// What a checkpoint assigns, encoded again, says the same.
fn assigned(file: &[u8]) {
    let Ok(contents) = checkpoint::parse(file) else { return };
    let each = || contents.assigned.iter().flat_map(|(id, all)| all.iter().map(|given| (*id, given)));
    for all in contents.assigned.values() {
        let mut seen = RecordSet::new();
        for given in all {
            let mut own = given.records.clone();
            own.remove_all(&seen);
            assert!(own == given.records && !own.is_empty());
            let bytes = [seen.to_bytes(), given.records.to_bytes()];
            let length = bytes.iter().map(Vec::len).max().unwrap_or(0);
            let byte = |at: usize| bytes.iter().fold(0, |byte, set| byte | set.get(at).copied().unwrap_or(0));
            seen = RecordSet::from_bytes(&(0..length).map(byte).collect::<Vec<u8>>());
        }
    }
    let again = [checkpoint::encode_header(), checkpoint::encode_assigned(each())].concat();
    let again = checkpoint::parse(&again).expect("it was encoded just now");
    assert_eq!(again.assigned, contents.assigned);
}

fn read(data: &[u8]) {
    let _ = record::frame(Bytes::copy_from_slice(data), &[]);
    let _ = segment::Header::parse(data);
    assigned(data);
}
