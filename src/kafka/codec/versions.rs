//! Which requests this client makes, in which versions, and what that leaves with a given broker.
//!
//! Source: KIP-35, and the version notes of the message schemas linked from
//! <https://kafka.apache.org/protocol#protocol_messages>.

use std::fmt;

use super::CodecError;
use crate::kafka::protocol::Request;

/// The requests this client makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// Key 0.
    Produce,
    /// Key 1.
    Fetch,
    /// Key 2.
    ListOffsets,
    /// Key 3.
    Metadata,
    /// Key 22 (KIP-98).
    InitProducerId,
    /// Key 61 (KIP-664).
    DescribeProducers,
}

/// A range of versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionRange {
    /// Lowest version.
    pub min: i16,
    /// Highest version.
    pub max: i16,
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Api {
    /// All of them.
    pub const ALL: [Api; 6] = [
        Api::Produce,
        Api::Fetch,
        Api::ListOffsets,
        Api::Metadata,
        Api::InitProducerId,
        Api::DescribeProducers,
    ];

    /// The number of the API in the protocol.
    pub fn key(self) -> i16 {
        match self {
            Api::Produce => 0,
            Api::Fetch => 1,
            Api::ListOffsets => 2,
            Api::Metadata => 3,
            Api::InitProducerId => 22,
            Api::DescribeProducers => 61,
        }
    }

    /// The versions this client speaks.
    pub fn versions(self) -> VersionRange {
        let (min, max) = match self {
            // 3 is the first for record batches v2 (Kafka 0.11); from 13 on topics are named by id only.
            Api::Produce => (3, 12),
            // 4 is the first for record batches v2; from 13 on topics are named by id only.
            Api::Fetch => (4, 12),
            Api::ListOffsets => (1, 9),
            // 4 is the first that can ask without creating the topic, and Kafka 0.11 has it.
            Api::Metadata => (4, 12),
            // 5 and 6 concern transactions only.
            Api::InitProducerId => (0, 4),
            Api::DescribeProducers => (0, 0),
        };
        VersionRange { min, max }
    }

    pub(super) fn first_flexible_version(self) -> i16 {
        match self {
            Api::Produce | Api::Metadata => 9,
            Api::Fetch => 12,
            Api::ListOffsets => 6,
            Api::InitProducerId => 2,
            Api::DescribeProducers => 0,
        }
    }

    pub(super) fn of(request: &Request) -> Api {
        match request {
            Request::Metadata(_) => Api::Metadata,
            Request::InitProducerId => Api::InitProducerId,
            Request::Produce(_) => Api::Produce,
            Request::DescribeProducers(_) => Api::DescribeProducers,
            Request::ListOffsets(_) => Api::ListOffsets,
            Request::Fetch(_) => Api::Fetch,
        }
    }
}

/// The versions in which a broker and this client understand each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versions {
    /// What the broker offers of each API, in the order of `Api::ALL`; None if it does not know the API.
    offered: [Option<VersionRange>; Api::ALL.len()],
    /// The highest version of SaslAuthenticate (KIP-152; Kafka 1.0 and later) that both sides speak.
    sasl_authenticate: Option<i16>,
}

/// SaslHandshake (KIP-43).
pub(super) const SASL_HANDSHAKE_KEY: i16 = 17;
/// SaslAuthenticate (KIP-152). Version 1 tells the session's lifetime (KIP-368), 2 is flexible.
pub(super) const SASL_AUTHENTICATE_KEY: i16 = 36;
const SASL_AUTHENTICATE_NEWEST: i16 = 2;

impl Versions {
    /// What the broker's list of (key, lowest, highest version) allows.
    pub fn from_offer(offer: &[(i16, i16, i16)]) -> Self {
        let offered = Api::ALL.map(|api| {
            let found = offer.iter().find(|(key, _, _)| *key == api.key());
            found.map(|&(_, min, max)| VersionRange { min, max })
        });
        let sasl_authenticate = offer
            .iter()
            .find(|(key, min, _)| *key == SASL_AUTHENTICATE_KEY && *min <= SASL_AUTHENTICATE_NEWEST)
            .map(|(_, _, max)| SASL_AUTHENTICATE_NEWEST.min(*max));
        Versions { offered, sasl_authenticate }
    }

    /// The highest version of the API that both sides speak.
    ///
    /// # Errors
    /// [`CodecError::ApiMissing`] or [`CodecError::NoCommonVersion`].
    pub fn version(&self, api: Api) -> Result<i16, CodecError> {
        let offered = Api::ALL.iter().zip(&self.offered).find(|(of, _)| **of == api);
        let theirs = offered.and_then(|(_, range)| *range).ok_or(CodecError::ApiMissing { api })?;
        let ours = api.versions();
        let version = ours.max.min(theirs.max);
        if version < ours.min.max(theirs.min) {
            return Err(CodecError::NoCommonVersion { api, ours, theirs });
        }
        Ok(version)
    }

    /// The version of SaslAuthenticate to use; None where SASL messages go without a Kafka header (before Kafka 1.0).
    pub fn sasl_authenticate(&self) -> Option<i16> {
        self.sasl_authenticate
    }

    /// Whether the broker can be asked what it remembers of a producer (KIP-664; Kafka 2.8 and later).
    pub fn supports_describe_producers(&self) -> bool {
        self.version(Api::DescribeProducers).is_ok()
    }
}
