//! Kafka's error codes: their names, and what each of them asks of this client.
//!
//! Source: <https://kafka.apache.org/protocol#protocol_error_codes>, and for what may be retried the exception
//! hierarchy of the Java client (`RetriableException`, `InvalidMetadataException`).
//!
//! This module knows nothing of requests or of what is in flight. Invariants:
//! - every code is classified here, once; nobody else compares code numbers to decide what to do;
//! - a code that is not in the table is retried: nothing is given up because a newer broker has a new word.

use std::fmt;

/// An error code as the broker sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub i16);

/// What an error code asks of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// No error.
    None,
    /// Send the same request again, after a pause.
    Retriable,
    /// Ask for new metadata, then send again, perhaps to another broker.
    NeedsMetadata,
    /// The broker will never take this record (or a batch of this size): split the batch, or dead-letter it.
    RecordRefused,
    /// The broker takes nothing for this topic until an operator acts: retry slowly, hold back nobody else.
    TopicRefused,
    /// The producer id or epoch is of no more use: get a new one.
    ProducerRefused,
    /// The batch was written already, or one before it is missing; the code alone does not tell which
    /// (KIP-98; see `DescribeProducers`, KIP-664).
    SequenceUnknown,
    /// The batch was written before: a success.
    AlreadyWritten,
    /// This client as it is configured is refused, whatever the topic: an operator must act.
    ClientRefused,
}

impl ErrorCode {
    /// No error.
    pub const NONE: ErrorCode = ErrorCode(0);
    /// UNKNOWN_TOPIC_OR_PARTITION.
    pub const UNKNOWN_TOPIC: ErrorCode = ErrorCode(3);
    /// A fetch from before the first or behind the last offset; its reader must choose another.
    pub const OFFSET_OUT_OF_RANGE: ErrorCode = ErrorCode(1);
    /// A partition without a leader, also when it is the client that found none.
    pub const LEADER_NOT_AVAILABLE: ErrorCode = ErrorCode(5);
    /// The answer to an ApiVersions request of a version that the broker does not know (KIP-511).
    pub const UNSUPPORTED_VERSION: ErrorCode = ErrorCode(35);

    /// The protocol's name of the code; "UNKNOWN" if it is newer than the table.
    pub fn name(self) -> &'static str {
        self.entry().map_or("UNKNOWN", |(_, name, _)| name)
    }

    /// What the code asks of the client; [`Class::Retriable`] if it is newer than the table.
    pub fn class(self) -> Class {
        self.entry().map_or(Class::Retriable, |(_, _, class)| *class)
    }

    /// The broker refuses the time of a record (INVALID_TIMESTAMP), which may be the fault of our clock: without a
    /// time it is taken.
    pub fn refuses_time(self) -> bool {
        self.0 == 32
    }

    fn entry(self) -> Option<&'static (i16, &'static str, Class)> {
        // The table has no gaps and begins at -1 (tested below).
        usize::try_from(i32::from(self.0) + 1).ok().and_then(|index| CODES.get(index))
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

use Class::{
    AlreadyWritten, ClientRefused, NeedsMetadata, None, ProducerRefused, RecordRefused, Retriable,
    SequenceUnknown, TopicRefused,
};

/// Where this differs from the Java client, and why:
/// - -1, 8, 11, 55, 57, 60, 77, 96, 107, 116 end in an exception there; they are states of the cluster that pass,
///   and a gateway that gave up on them would lose what it holds.
/// - 21 INVALID_REQUIRED_ACKS speaks of the configured acks, the same for every topic: `ClientRefused`.
/// - 43 UNSUPPORTED_FOR_MESSAGE_FORMAT and 76 UNSUPPORTED_COMPRESSION_TYPE speak of the topic's format, so every
///   record of it would be refused: parking the topic loses nothing, dead-lettering would empty it.
/// - 36 to 40 come from topic auto-creation: "exists already" is cured by a look at the metadata, the others are
///   the cluster's settings for new topics (too few brokers for the replication factor, for example).
/// - 75 UNKNOWN_LEADER_EPOCH is only retriable there; one of the two sides has old metadata, so look.
/// - 53 TRANSACTIONAL_ID_AUTHORIZATION_FAILED: a new producer id would be refused for the same reason.
/// - 129 REBOOTSTRAP_REQUIRED (KIP-1102): begin again at the metadata.
/// - 1 OFFSET_OUT_OF_RANGE can only be the answer to a fetch, whose caller must choose another offset.
///
/// Codes of consumer groups, shares, delegation tokens and administration never answer our requests; they stand as
/// `ClientRefused` so that an operator sees one if it ever does.
#[rustfmt::skip]
const CODES: &[(i16, &str, Class)] = &[
    (-1, "UNKNOWN_SERVER_ERROR", Retriable),
    (0, "NONE", None),
    (1, "OFFSET_OUT_OF_RANGE", ClientRefused),
    (2, "CORRUPT_MESSAGE", Retriable),
    (3, "UNKNOWN_TOPIC_OR_PARTITION", NeedsMetadata),
    (4, "INVALID_FETCH_SIZE", ClientRefused),
    (5, "LEADER_NOT_AVAILABLE", NeedsMetadata),
    (6, "NOT_LEADER_OR_FOLLOWER", NeedsMetadata),
    (7, "REQUEST_TIMED_OUT", Retriable),
    (8, "BROKER_NOT_AVAILABLE", NeedsMetadata),
    (9, "REPLICA_NOT_AVAILABLE", NeedsMetadata),
    (10, "MESSAGE_TOO_LARGE", RecordRefused),
    (11, "STALE_CONTROLLER_EPOCH", Retriable),
    (12, "OFFSET_METADATA_TOO_LARGE", ClientRefused),
    (13, "NETWORK_EXCEPTION", NeedsMetadata),
    (14, "COORDINATOR_LOAD_IN_PROGRESS", Retriable),
    (15, "COORDINATOR_NOT_AVAILABLE", Retriable),
    (16, "NOT_COORDINATOR", Retriable),
    (17, "INVALID_TOPIC_EXCEPTION", TopicRefused),
    (18, "RECORD_LIST_TOO_LARGE", RecordRefused),
    (19, "NOT_ENOUGH_REPLICAS", Retriable),
    (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", Retriable),
    (21, "INVALID_REQUIRED_ACKS", ClientRefused),
    (22, "ILLEGAL_GENERATION", ClientRefused),
    (23, "INCONSISTENT_GROUP_PROTOCOL", ClientRefused),
    (24, "INVALID_GROUP_ID", ClientRefused),
    (25, "UNKNOWN_MEMBER_ID", ClientRefused),
    (26, "INVALID_SESSION_TIMEOUT", ClientRefused),
    (27, "REBALANCE_IN_PROGRESS", ClientRefused),
    (28, "INVALID_COMMIT_OFFSET_SIZE", ClientRefused),
    (29, "TOPIC_AUTHORIZATION_FAILED", TopicRefused),
    (30, "GROUP_AUTHORIZATION_FAILED", ClientRefused),
    (31, "CLUSTER_AUTHORIZATION_FAILED", ClientRefused),
    (32, "INVALID_TIMESTAMP", RecordRefused),
    (33, "UNSUPPORTED_SASL_MECHANISM", ClientRefused),
    (34, "ILLEGAL_SASL_STATE", ClientRefused),
    (35, "UNSUPPORTED_VERSION", ClientRefused),
    (36, "TOPIC_ALREADY_EXISTS", NeedsMetadata),
    (37, "INVALID_PARTITIONS", TopicRefused),
    (38, "INVALID_REPLICATION_FACTOR", TopicRefused),
    (39, "INVALID_REPLICA_ASSIGNMENT", TopicRefused),
    (40, "INVALID_CONFIG", TopicRefused),
    (41, "NOT_CONTROLLER", NeedsMetadata),
    (42, "INVALID_REQUEST", ClientRefused),
    (43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", TopicRefused),
    (44, "POLICY_VIOLATION", TopicRefused),
    (45, "OUT_OF_ORDER_SEQUENCE_NUMBER", SequenceUnknown),
    (46, "DUPLICATE_SEQUENCE_NUMBER", AlreadyWritten),
    (47, "INVALID_PRODUCER_EPOCH", ProducerRefused),
    (48, "INVALID_TXN_STATE", ProducerRefused),
    (49, "INVALID_PRODUCER_ID_MAPPING", ProducerRefused),
    (50, "INVALID_TRANSACTION_TIMEOUT", ClientRefused),
    (51, "CONCURRENT_TRANSACTIONS", Retriable),
    (52, "TRANSACTION_COORDINATOR_FENCED", ProducerRefused),
    (53, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED", ClientRefused),
    (54, "SECURITY_DISABLED", ClientRefused),
    (55, "OPERATION_NOT_ATTEMPTED", Retriable),
    (56, "KAFKA_STORAGE_ERROR", NeedsMetadata),
    (57, "LOG_DIR_NOT_FOUND", Retriable),
    (58, "SASL_AUTHENTICATION_FAILED", ClientRefused),
    (59, "UNKNOWN_PRODUCER_ID", ProducerRefused),
    (60, "REASSIGNMENT_IN_PROGRESS", Retriable),
    (61, "DELEGATION_TOKEN_AUTH_DISABLED", ClientRefused),
    (62, "DELEGATION_TOKEN_NOT_FOUND", ClientRefused),
    (63, "DELEGATION_TOKEN_OWNER_MISMATCH", ClientRefused),
    (64, "DELEGATION_TOKEN_REQUEST_NOT_ALLOWED", ClientRefused),
    (65, "DELEGATION_TOKEN_AUTHORIZATION_FAILED", ClientRefused),
    (66, "DELEGATION_TOKEN_EXPIRED", ClientRefused),
    (67, "INVALID_PRINCIPAL_TYPE", ClientRefused),
    (68, "NON_EMPTY_GROUP", ClientRefused),
    (69, "GROUP_ID_NOT_FOUND", ClientRefused),
    (70, "FETCH_SESSION_ID_NOT_FOUND", Retriable),
    (71, "INVALID_FETCH_SESSION_EPOCH", Retriable),
    (72, "LISTENER_NOT_FOUND", NeedsMetadata),
    (73, "TOPIC_DELETION_DISABLED", ClientRefused),
    (74, "FENCED_LEADER_EPOCH", NeedsMetadata),
    (75, "UNKNOWN_LEADER_EPOCH", NeedsMetadata),
    (76, "UNSUPPORTED_COMPRESSION_TYPE", TopicRefused),
    (77, "STALE_BROKER_EPOCH", Retriable),
    (78, "OFFSET_NOT_AVAILABLE", Retriable),
    (79, "MEMBER_ID_REQUIRED", ClientRefused),
    (80, "PREFERRED_LEADER_NOT_AVAILABLE", NeedsMetadata),
    (81, "GROUP_MAX_SIZE_REACHED", ClientRefused),
    (82, "FENCED_INSTANCE_ID", ClientRefused),
    (83, "ELIGIBLE_LEADERS_NOT_AVAILABLE", NeedsMetadata),
    (84, "ELECTION_NOT_NEEDED", NeedsMetadata),
    (85, "NO_REASSIGNMENT_IN_PROGRESS", ClientRefused),
    (86, "GROUP_SUBSCRIBED_TO_TOPIC", ClientRefused),
    (87, "INVALID_RECORD", RecordRefused),
    (88, "UNSTABLE_OFFSET_COMMIT", Retriable),
    (89, "THROTTLING_QUOTA_EXCEEDED", Retriable),
    (90, "PRODUCER_FENCED", ProducerRefused),
    (91, "RESOURCE_NOT_FOUND", ClientRefused),
    (92, "DUPLICATE_RESOURCE", ClientRefused),
    (93, "UNACCEPTABLE_CREDENTIAL", ClientRefused),
    (94, "INCONSISTENT_VOTER_SET", ClientRefused),
    (95, "INVALID_UPDATE_VERSION", ClientRefused),
    (96, "FEATURE_UPDATE_FAILED", Retriable),
    (97, "PRINCIPAL_DESERIALIZATION_FAILURE", ClientRefused),
    (98, "SNAPSHOT_NOT_FOUND", ClientRefused),
    (99, "POSITION_OUT_OF_RANGE", ClientRefused),
    (100, "UNKNOWN_TOPIC_ID", NeedsMetadata),
    (101, "DUPLICATE_BROKER_REGISTRATION", ClientRefused),
    (102, "BROKER_ID_NOT_REGISTERED", ClientRefused),
    (103, "INCONSISTENT_TOPIC_ID", NeedsMetadata),
    (104, "INCONSISTENT_CLUSTER_ID", ClientRefused),
    (105, "TRANSACTIONAL_ID_NOT_FOUND", ProducerRefused),
    (106, "FETCH_SESSION_TOPIC_ID_ERROR", Retriable),
    (107, "INELIGIBLE_REPLICA", Retriable),
    (108, "NEW_LEADER_ELECTED", NeedsMetadata),
    (109, "OFFSET_MOVED_TO_TIERED_STORAGE", ClientRefused),
    (110, "FENCED_MEMBER_EPOCH", ClientRefused),
    (111, "UNRELEASED_INSTANCE_ID", ClientRefused),
    (112, "UNSUPPORTED_ASSIGNOR", ClientRefused),
    (113, "STALE_MEMBER_EPOCH", ClientRefused),
    (114, "MISMATCHED_ENDPOINT_TYPE", ClientRefused),
    (115, "UNSUPPORTED_ENDPOINT_TYPE", ClientRefused),
    (116, "UNKNOWN_CONTROLLER_ID", Retriable),
    (117, "UNKNOWN_SUBSCRIPTION_ID", ClientRefused),
    (118, "TELEMETRY_TOO_LARGE", ClientRefused),
    (119, "INVALID_REGISTRATION", ClientRefused),
    (120, "TRANSACTION_ABORTABLE", ProducerRefused),
    (121, "INVALID_RECORD_STATE", ClientRefused),
    (122, "SHARE_SESSION_NOT_FOUND", Retriable),
    (123, "INVALID_SHARE_SESSION_EPOCH", Retriable),
    (124, "FENCED_STATE_EPOCH", ClientRefused),
    (125, "INVALID_VOTER_KEY", ClientRefused),
    (126, "DUPLICATE_VOTER", ClientRefused),
    (127, "VOTER_NOT_FOUND", ClientRefused),
    (128, "INVALID_REGULAR_EXPRESSION", ClientRefused),
    (129, "REBOOTSTRAP_REQUIRED", NeedsMetadata),
    (130, "STREAMS_INVALID_TOPOLOGY", ClientRefused),
    (131, "STREAMS_INVALID_TOPOLOGY_EPOCH", ClientRefused),
    (132, "STREAMS_TOPOLOGY_FENCED", ClientRefused),
    (133, "SHARE_SESSION_LIMIT_REACHED", Retriable),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_gap_and_ends_at_the_newest_code() {
        for (index, (code, _, _)) in CODES.iter().enumerate() {
            assert_eq!(usize::try_from(code + 1), Ok(index));
        }
        assert_eq!(CODES.last().unwrap().0, 133);
    }

    #[test]
    fn what_the_java_client_retries_is_retried_here() {
        // Errors.java, Kafka 4.1: every code whose exception is a RetriableException.
        let retriable = [
            2, 3, 5, 6, 7, 9, 13, 14, 15, 16, 19, 20, 41, 51, 56, 70, 71, 72, 74, 75, 78, 80, 83, 84, 88, 89,
            100, 103, 106, 122, 123, 133,
        ];
        // Those of them whose exception is an InvalidMetadataException.
        let metadata = [3, 5, 6, 9, 13, 56, 72, 74, 80, 83, 84, 100, 103];
        for code in retriable {
            let class = ErrorCode(code).class();
            assert!(matches!(class, Retriable | NeedsMetadata), "{} is {class:?}", ErrorCode(code));
        }
        for code in metadata {
            assert_eq!(ErrorCode(code).class(), NeedsMetadata, "{}", ErrorCode(code));
        }
    }

    #[test]
    fn each_code_that_decides_the_fate_of_a_batch_has_its_class() {
        let cases = [
            (0, "NONE", None),
            (-1, "UNKNOWN_SERVER_ERROR", Retriable),
            (2, "CORRUPT_MESSAGE", Retriable),
            (6, "NOT_LEADER_OR_FOLLOWER", NeedsMetadata),
            (7, "REQUEST_TIMED_OUT", Retriable),
            (10, "MESSAGE_TOO_LARGE", RecordRefused),
            (17, "INVALID_TOPIC_EXCEPTION", TopicRefused),
            (18, "RECORD_LIST_TOO_LARGE", RecordRefused),
            (19, "NOT_ENOUGH_REPLICAS", Retriable),
            (20, "NOT_ENOUGH_REPLICAS_AFTER_APPEND", Retriable),
            (21, "INVALID_REQUIRED_ACKS", ClientRefused),
            (29, "TOPIC_AUTHORIZATION_FAILED", TopicRefused),
            (31, "CLUSTER_AUTHORIZATION_FAILED", ClientRefused),
            (32, "INVALID_TIMESTAMP", RecordRefused),
            (35, "UNSUPPORTED_VERSION", ClientRefused),
            (43, "UNSUPPORTED_FOR_MESSAGE_FORMAT", TopicRefused),
            (44, "POLICY_VIOLATION", TopicRefused),
            (45, "OUT_OF_ORDER_SEQUENCE_NUMBER", SequenceUnknown),
            (46, "DUPLICATE_SEQUENCE_NUMBER", AlreadyWritten),
            (47, "INVALID_PRODUCER_EPOCH", ProducerRefused),
            (56, "KAFKA_STORAGE_ERROR", NeedsMetadata),
            (58, "SASL_AUTHENTICATION_FAILED", ClientRefused),
            (59, "UNKNOWN_PRODUCER_ID", ProducerRefused),
            (87, "INVALID_RECORD", RecordRefused),
            (89, "THROTTLING_QUOTA_EXCEEDED", Retriable),
            (90, "PRODUCER_FENCED", ProducerRefused),
        ];
        for (code, name, class) in cases {
            assert_eq!((ErrorCode(code).name(), ErrorCode(code).class()), (name, class));
        }
        for class in [SequenceUnknown, AlreadyWritten] {
            assert_eq!(CODES.iter().filter(|(_, _, of)| *of == class).count(), 1);
        }
    }

    #[test]
    fn a_code_from_the_future_is_retried_and_still_named_by_number() {
        for code in [134, i16::MAX, -2, i16::MIN] {
            assert_eq!(ErrorCode(code).class(), Retriable);
            assert_eq!(ErrorCode(code).to_string(), format!("UNKNOWN ({code})"));
        }
        assert_eq!(ErrorCode(6).to_string(), "NOT_LEADER_OR_FOLLOWER (6)");
    }
}
