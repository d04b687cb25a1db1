//! Hostile bytes as a frame, a segment's header and a checkpoint of the spool.
//!
//! `cargo +nightly fuzz run spool_frame -- -max_total_time=60`
//!
//! Checked: no panic, and no allocation that the input does not pay for. Checksums are mended first, so that the fuzzer gets below
//! them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::spool::{checkpoint, record, segment};

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
    let _ = checkpoint::parse(&file);
});

fn read(data: &[u8]) {
    let _ = record::decode(data);
    let _ = segment::Header::parse(data);
    let _ = checkpoint::parse(data);
}
