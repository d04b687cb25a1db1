//! Hostile responses to each request, in each version that a broker may choose.
//!
//! `cargo +nightly fuzz run kafka_responses -- -max_total_time=60`
//!
//! Checked: no panic, and no allocation that the input does not pay for.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate::kafka::codec::{Versions, decode, decode_api_versions, encode};
use tidegate::kafka::protocol::{
    FetchRequest, ListOffsetsRequest, MetadataRequest, OffsetAt, ProduceRequest, Request,
};

/// Keys of the APIs in use, and how many requests there are to choose from.
const KEYS: [i16; 6] = [0, 1, 2, 3, 22, 61];

fuzz_target!(|data: &[u8]| {
    let [which, version, body @ ..] = data else { return };
    let version = i16::from(version % 16);
    let mut answer = 1_i32.to_be_bytes().to_vec();
    answer.extend_from_slice(body);
    let answer = Bytes::from(answer);
    let request = match which % 7 {
        0 => Request::Metadata(MetadataRequest { topics: None, create_missing: false }),
        1 => Request::InitProducerId,
        2 => Request::Produce(ProduceRequest { acks: -1, timeout_ms: 1, batches: Vec::new() }),
        3 => Request::DescribeProducers(Vec::new()),
        4 => Request::ListOffsets(ListOffsetsRequest { partitions: Vec::new(), at: OffsetAt::Latest }),
        5 => Request::Fetch(FetchRequest { max_wait_ms: 1, min_bytes: 1, max_bytes: 1, partitions: Vec::new() }),
        _ => {
            let _ = decode_api_versions(version, 1, answer);
            return;
        }
    };
    let offer: Vec<(i16, i16, i16)> = KEYS.iter().map(|key| (*key, 0, version)).collect();
    if let Ok((_, pending)) = encode(&request, &Versions::from_offer(&offer), 1, "fuzz") {
        let _ = decode(pending, 1, answer);
    }
});
