//! Hostile record batches, as a Fetch response may hold them.
//!
//! `cargo +nightly fuzz run kafka_records -- -max_total_time=60`
//!
//! Checked: no panic, and no allocation that the input does not pay for. The checksum is mended first, so that the
//! fuzzer gets below it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::kafka::record_batch::decode_batches;

const CRC_AT: usize = 17;
const CRC_END: usize = 21;
const LENGTH_AT: usize = 8;
const LENGTH_END: usize = 12;

fuzz_target!(|data: &[u8]| {
    read(Bytes::copy_from_slice(data));
    let mut mended = data.to_vec();
    if mended.len() > CRC_END {
        let length = u32::try_from(mended.len() - LENGTH_END).unwrap_or(u32::MAX);
        mended[LENGTH_AT..LENGTH_END].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c::crc32c(&mended[CRC_END..]);
        mended[CRC_AT..CRC_END].copy_from_slice(&crc.to_be_bytes());
        read(Bytes::from(mended));
    }
});

fn read(bytes: Bytes) {
    for batch in decode_batches(bytes).flatten() {
        let _ = batch.next_offset();
        let _ = batch.records();
    }
}
