use super::*;
use crate::kafka::compression::Compression;
use crate::message::{AckToken, Qos};
use crate::observe::heartbeat::Heartbeats;
use crate::route::{KeyTemplate, Rule, RuleKind, Rules, TopicFilter, TopicTemplate};
use bytes::Bytes;
use crossbeam_channel::bounded;

fn message(topic: &str, sequence: u64) -> Message {
    Message {
        properties: None,
        topic: topic.to_owned(),
        body: Body::Payload(Bytes::from_static(b"v")),
        qos: Qos::AtLeastOnce,
        retain: false,
        received_at_ms: 1,
        delivery_id: None,
        token: AckToken::new(sequence, 1),
    }
}

fn backlog_options() -> BacklogOptions {
    BacklogOptions {
        after: Duration::from_millis(500),
        latency: Duration::from_secs(10),
        in_flight_max: 1000,
        in_flight_min: 50,
        restore_per_sec: None,
        mark_replayed: true,
        in_memory: true,
        segment_bytes: 8 << 20,
        found: Vec::new(),
    }
}

#[test]
fn a_broken_invariant_is_the_reason_that_is_told_whatever_waits() {
    let (messages, inbox) = bounded(4);
    let (orders, control) = bounded(1);
    // Without room, which the wiring rules out.
    let (settled, _settled_out) = bounded(0);
    let filter = TopicFilter::parse("a").unwrap();
    let target = TopicTemplate::parse("t", &filter).unwrap();
    let rule = Rule { kind: RuleKind::Exact, position: 1, filter, target };
    let rules = Rules::new(vec![rule], KeyTemplate::parse("").unwrap(), None).unwrap();
    let options = PublishOptions {
        router: Router::new(rules),
        headers: HeaderChoice::default(),
        dead_letter_topic: None,
        producer: ProducerOptions {
            bootstrap: vec![("127.0.0.1".to_owned(), 1)],
            acks: -1,
            compression: Compression::None,
            linger: Duration::ZERO,
            batch_bytes: 1 << 20,
            seed: 1,
        },
        connection: ConnectionOptions {
            client_id: "test".to_owned(),
            connect_timeout: Duration::from_secs(1),
            response_max_bytes: 1 << 20,
            security: crate::kafka::connection::Security::default(),
        },
        backlog: backlog_options(),
    };
    let (spool, _requests) = bounded(1);
    let (_replies, spool_replies) = bounded(1);
    let waker = Waker::new().unwrap();
    let channels = PublishChannels { inbox, settled, waker, control, spool, spool_replies };
    let heartbeat = Heartbeats::new(None, clock::now()).join("publish", clock::now());
    let publish = Publish::new(channels, options, Arc::default(), heartbeat);
    // The first waits for Kafka, the second is settled at once.
    messages.send(vec![message("a", 1), message("unmatched", 2)]).unwrap();
    let reason = publish.run().unwrap_err();
    assert!(reason.contains("settled messages is full"), "{reason}");
    drop(orders);
}
