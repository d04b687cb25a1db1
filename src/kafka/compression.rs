//! Compression of record batches, in pure Rust.
//!
//! Source: <https://kafka.apache.org/documentation/#recordbatch> (attribute bits 0 to 2), the LZ4 frame format,
//! and snappy in the block stream of xerial's snappy-java, which is what the Java client writes.
//!
//! This module knows nothing of batches. Invariant: whatever the input, decompression gives at most the bytes the
//! caller allows, and no length found in the input sizes an allocation beyond that limit.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use bytes::Bytes;

/// How the records of a batch are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// gzip, at its fastest level: the gateway's CPU is scarcer than its network.
    Gzip,
    /// Snappy blocks in xerial's stream.
    Snappy,
    /// LZ4 frames with independent blocks.
    Lz4,
}

/// Why bytes could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The batch says a codec that this client does not have: an operator must choose another.
    #[error("compression {0} is not supported (supported: none, gzip, snappy, lz4)")]
    Unsupported(String),
    /// More would come out than the caller allows.
    #[error("decompressed data exceeds the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The caller's limit, bytes.
        limit_bytes: usize,
    },
    /// The bytes are not what the codec writes.
    #[error("damaged {codec} data")]
    Damaged {
        /// Which codec.
        codec: Compression,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// The first bytes of xerial's stream, then its version and the oldest compatible version (1 and 1).
const XERIAL_MAGIC: &[u8] = b"\x82SNAPPY\0";
const XERIAL_HEADER: &[u8] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// Uncompressed size of a xerial block: snappy itself never looks back further than 64 KiB.
const SNAPPY_BLOCK_BYTES: usize = 64 * 1024;
/// The most a snappy byte can become (an element of two bytes copies at most 64): what a block announces beyond
/// that is a lie.
const SNAPPY_EXPANSION_MAX: usize = 64;

impl Compression {
    /// Bits 0 to 2 of a batch's attributes.
    pub fn attribute_bits(self) -> i16 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Snappy => 2,
            Compression::Lz4 => 3,
        }
    }

    /// The codec that a batch's attributes name.
    ///
    /// # Errors
    /// [`CompressionError::Unsupported`] for zstd (4) and the unassigned numbers.
    pub fn from_attributes(attributes: i16) -> Result<Self, CompressionError> {
        match attributes & 0b111 {
            0 => Ok(Compression::None),
            1 => Ok(Compression::Gzip),
            2 => Ok(Compression::Snappy),
            3 => Ok(Compression::Lz4),
            4 => Err(CompressionError::Unsupported("zstd".to_owned())),
            other => Err(CompressionError::Unsupported(other.to_string())),
        }
    }

    /// Compresses.
    ///
    /// # Errors
    /// [`CompressionError::Damaged`] if the codec fails, which writing to memory gives it no reason to.
    pub fn compress(&self, data: &[u8]) -> Result<Bytes, CompressionError> {
        let compressed = match self {
            Compression::None => return Ok(Bytes::copy_from_slice(data)),
            Compression::Gzip => gzip(data),
            Compression::Snappy => snappy(data),
            Compression::Lz4 => lz4(data),
        };
        compressed.map(Bytes::from).map_err(|source| CompressionError::Damaged { codec: *self, source })
    }

    /// Decompresses what any Kafka client wrote, giving at most `limit_bytes`.
    ///
    /// # Errors
    /// [`CompressionError::TooLarge`] or [`CompressionError::Damaged`].
    pub fn decompress(&self, data: &Bytes, limit_bytes: usize) -> Result<Bytes, CompressionError> {
        match self {
            Compression::None if data.len() > limit_bytes => Err(CompressionError::TooLarge { limit_bytes }),
            Compression::None => Ok(data.clone()),
            Compression::Gzip => self.read_all(flate2::read::MultiGzDecoder::new(data.as_ref()), limit_bytes),
            Compression::Snappy => self.unsnappy(data, limit_bytes),
            Compression::Lz4 => self.read_all(lz4_flex::frame::FrameDecoder::new(data.as_ref()), limit_bytes),
        }
    }

    fn read_all(self, reader: impl Read, limit_bytes: usize) -> Result<Bytes, CompressionError> {
        let mut data = Vec::new();
        // One byte above the limit tells "too large" from "just fits".
        reader
            .take(limit_bytes as u64 + 1)
            .read_to_end(&mut data)
            .map_err(|source| CompressionError::Damaged { codec: self, source })?;
        if data.len() > limit_bytes {
            Err(CompressionError::TooLarge { limit_bytes })
        } else {
            Ok(Bytes::from(data))
        }
    }

    fn unsnappy(self, data: &[u8], limit_bytes: usize) -> Result<Bytes, CompressionError> {
        let mut out = Vec::new();
        let Some(stream) = data.strip_prefix(XERIAL_MAGIC) else {
            self.unsnappy_block(data, &mut out, limit_bytes)?;
            return Ok(Bytes::from(out));
        };
        let mut rest =
            stream.get(XERIAL_HEADER.len() - XERIAL_MAGIC.len()..).ok_or_else(|| self.damaged("cut"))?;
        while !rest.is_empty() {
            let (length, after) =
                rest.split_first_chunk().ok_or_else(|| self.damaged("cut in a block length"))?;
            let length = usize::try_from(i32::from_be_bytes(*length))
                .map_err(|_| self.damaged("negative block length"))?;
            let (block, after) =
                after.split_at_checked(length).ok_or_else(|| self.damaged("cut in a block"))?;
            self.unsnappy_block(block, &mut out, limit_bytes)?;
            rest = after;
        }
        Ok(Bytes::from(out))
    }

    fn unsnappy_block(
        self,
        block: &[u8],
        out: &mut Vec<u8>,
        limit_bytes: usize,
    ) -> Result<(), CompressionError> {
        let snappy_error =
            |error: snap::Error| CompressionError::Damaged { codec: self, source: error.into() };
        let length = snap::raw::decompress_len(block).map_err(snappy_error)?;
        if length > block.len().saturating_mul(SNAPPY_EXPANSION_MAX) {
            return Err(self.damaged("a block announces more than it can hold"));
        }
        let start = out.len();
        let end = start.saturating_add(length);
        if end > limit_bytes {
            return Err(CompressionError::TooLarge { limit_bytes });
        }
        out.resize(end, 0);
        let room = out.get_mut(start..).unwrap_or_default();
        snap::raw::Decoder::new().decompress(block, room).map_err(snappy_error)?;
        Ok(())
    }

    fn damaged(self, what: &str) -> CompressionError {
        CompressionError::Damaged { codec: self, source: io::Error::new(io::ErrorKind::InvalidData, what) }
    }
}

fn gzip(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(data.len() / 2), flate2::Compression::fast());
    encoder.write_all(data)?;
    encoder.finish()
}

fn snappy(data: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(XERIAL_HEADER.len() + data.len() / 2);
    out.extend_from_slice(XERIAL_HEADER);
    let mut encoder = snap::raw::Encoder::new();
    let mut block = vec![0; snap::raw::max_compress_len(data.len().min(SNAPPY_BLOCK_BYTES))];
    for chunk in data.chunks(SNAPPY_BLOCK_BYTES) {
        let length = encoder.compress(chunk, &mut block)?;
        let compressed = block.get(..length).unwrap_or_default();
        let prefix = u32::try_from(length).expect("a block of 64 KiB compresses to less than 4 GiB");
        out.extend_from_slice(&prefix.to_be_bytes());
        out.extend_from_slice(compressed);
    }
    Ok(out)
}

fn lz4(data: &[u8]) -> io::Result<Vec<u8>> {
    use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
    // The Java client refuses frames with linked blocks, and writes blocks of 64 KiB without a content checksum.
    let info = FrameInfo::new().block_mode(BlockMode::Independent).block_size(BlockSize::Max64KB);
    let mut encoder = FrameEncoder::with_frame_info(info, Vec::with_capacity(data.len() / 2));
    encoder.write_all(data)?;
    encoder.finish().map_err(io::Error::other)
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Compression::None),
            "gzip" => Ok(Compression::Gzip),
            "snappy" => Ok(Compression::Snappy),
            "lz4" => Ok(Compression::Lz4),
            _ => Err(CompressionError::Unsupported(text.to_owned())),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Compression; 4] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4];

    #[test]
    fn names_and_attribute_bits_go_both_ways() {
        for codec in ALL {
            assert_eq!(codec.to_string().parse::<Compression>().unwrap(), codec);
            assert_eq!(Compression::from_attributes(codec.attribute_bits() | 0x18).unwrap(), codec);
        }
    }

    #[test]
    fn zstd_is_refused_with_what_there_is_instead() {
        let expected = "compression zstd is not supported (supported: none, gzip, snappy, lz4)";
        assert_eq!("zstd".parse::<Compression>().unwrap_err().to_string(), expected);
        assert_eq!(Compression::from_attributes(4).unwrap_err().to_string(), expected);
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let zeros = vec![0; 1_000_000];
        for codec in ALL {
            let bomb = codec.compress(&zeros).unwrap();
            assert_eq!(codec.decompress(&bomb, 1_000_000).unwrap().len(), 1_000_000, "{codec}");
            let error = codec.decompress(&bomb, 999_999).unwrap_err();
            assert!(
                matches!(error, CompressionError::TooLarge { limit_bytes: 999_999 }),
                "{codec}: {error:?}"
            );
        }
    }

    #[test]
    fn raw_snappy_as_librdkafka_writes_it_is_read() {
        let raw = Bytes::from(snap::raw::Encoder::new().compress_vec(b"tick tick tick tick").unwrap());
        assert_eq!(Compression::Snappy.decompress(&raw, 100).unwrap(), "tick tick tick tick");
    }

    #[test]
    fn a_snappy_block_that_announces_gigabytes_is_damaged_before_anything_is_allocated() {
        let lie = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]);
        let error = Compression::Snappy.decompress(&lie, usize::MAX).unwrap_err();
        assert!(matches!(error, CompressionError::Damaged { .. }), "{error:?}");
    }

    #[test]
    fn lz4_blocks_are_independent_as_the_java_client_demands() {
        let frame = Compression::Lz4.compress(&[7; 200_000]).unwrap();
        assert_eq!(frame[..4], [0x04, 0x22, 0x4d, 0x18]);
        assert_eq!(frame[4] & 0x20, 0x20, "the block independence flag");
    }

    proptest! {
        // Large inputs in four codecs: few cases, or an unoptimised build takes longer than all other tests.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_compressed_comes_back(data in proptest::collection::vec(0u8..4, 0..200_000)) {
            for codec in ALL {
                let compressed = codec.compress(&data).unwrap();
                prop_assert_eq!(&codec.decompress(&compressed, data.len()).unwrap()[..], &data[..]);
            }
        }

        #[test]
        fn hostile_bytes_never_panic(
            mut data in proptest::collection::vec(any::<u8>(), 0..300), flips in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)
        ) {
            for codec in ALL {
                let _ = codec.decompress(&Bytes::from(data.clone()), 10_000);
                let mut near = codec.compress(&data).unwrap().to_vec();
                for (at, with) in &flips {
                    let length = near.len().max(1);
                    if let Some(byte) = near.get_mut(at % length) { *byte ^= with; }
                }
                if let Ok(out) = codec.decompress(&Bytes::from(near), 10_000) { prop_assert!(out.len() <= 10_000); }
            }
            data.splice(0..0, XERIAL_HEADER.iter().copied());
            let _ = Compression::Snappy.decompress(&Bytes::from(data), 10_000);
        }
    }
}
