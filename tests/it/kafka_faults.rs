//! The Kafka side fails. Whatever it does: each message is written once, in order, and acknowledged only then
//! (guarantees G1 to G4); a topic that is refused holds nothing else back (G6). The scripted brokers keep the
//! idempotence rules of real ones, so a resend with a wrong identity shows as a duplicate or as a violation.

use crate::support::kafka_broker::{Act, Api, Cluster, Gate, Release, SeenBatch, dead_address};
use crate::support::kafka_log::Identity;
use crate::support::mqtt_broker::{Link, MqttBroker, ids, numbered};
use crate::support::process::{Gateway, Setup};
use crate::support::wait;

/// A gateway with one topic `t` of one partition, fed by `a/#`.
struct Bench {
    // In this order: the gateway goes before the cluster counts what it did.
    gateway: Gateway,
    link: Link,
    kafka: Cluster,
    _mqtt: MqttBroker,
}

impl Bench {
    fn start(kafka: Cluster) -> Self {
        Bench::start_with(kafka, |setup| setup)
    }

    fn start_with(kafka: Cluster, adapt: impl FnOnce(Setup) -> Setup) -> Self {
        let mqtt = MqttBroker::start();
        let gateway = adapt(Setup::new(&mqtt, &kafka).wildcards("a/#:t,other/#:other")).start();
        let link = mqtt.session();
        Bench { gateway, link, kafka, _mqtt: mqtt }
    }

    /// Delivers the first value: with an acknowledgement behind it the producer fills its window.
    fn warm_up(&self, values: &[String]) {
        self.link.publish("a/b", &values[0], 1);
        self.link.wait_for_pubacks(&[1]);
    }

    /// Publishes the values behind the first one by one, each a batch of its own: up to five in flight.
    fn fill_the_flight(&self, values: &[String]) {
        for (value, id) in values.iter().zip(1..).skip(1) {
            self.link.publish("a/b", value, id);
            wait::until(&format!("a batch with {value}"), || {
                let seen = self.kafka.seen();
                let has =
                    |batch: &SeenBatch| batch.batch.records.iter().any(|record| record.text() == *value);
                if seen.iter().any(has) { Ok(()) } else { Err(format!("{} batches", seen.len())) }
            });
        }
    }

    /// Everything is in Kafka once, in order, and acknowledged.
    fn assert_delivered(&self, values: &[String]) {
        self.link.wait_for_pubacks(&ids(1, values.len()));
        assert_eq!(self.kafka.values("t", 0), values);
    }
}

fn one_broker() -> Cluster {
    Cluster::start().topic("t", 1)
}

/// The same batch came in more than once, byte for byte.
fn assert_resent_as_it_was(seen: &[SeenBatch]) -> usize {
    let mut resent = 0;
    for (index, batch) in seen.iter().enumerate() {
        let same_range = |known: &&SeenBatch| {
            (known.topic.as_str(), known.partition) == (batch.topic.as_str(), batch.partition)
                && known.identity().producer_id == batch.identity().producer_id
                && known.identity().first_sequence == batch.identity().first_sequence
        };
        for earlier in seen[..index].iter().filter(same_range) {
            assert_eq!(earlier.identity(), batch.identity());
            assert_eq!(earlier.batch.body, batch.batch.body, "the bytes of a resent batch");
            resent += 1;
        }
    }
    resent
}

#[test]
fn each_retriable_error_is_retried_with_the_same_identity_until_it_ends() {
    let codes = [
        ("CORRUPT_MESSAGE", 2),
        ("UNKNOWN_TOPIC_OR_PARTITION", 3),
        ("LEADER_NOT_AVAILABLE", 5),
        ("NOT_LEADER_OR_FOLLOWER", 6),
        ("REQUEST_TIMED_OUT", 7),
        ("NETWORK_EXCEPTION", 13),
        ("NOT_ENOUGH_REPLICAS", 19),
        ("KAFKA_STORAGE_ERROR", 56),
        ("FENCED_LEADER_EPOCH", 74),
        ("UNKNOWN_LEADER_EPOCH", 75),
        ("THROTTLING_QUOTA_EXCEEDED", 89),
    ];
    for (name, code) in codes {
        let kafka = one_broker();
        kafka.next(Api::Produce, 3, Act::Error(code));
        let bench = Bench::start(kafka);
        eprintln!("{name}");
        let values = numbered("v", 20);
        bench.link.publish_all("a/b", &values, 1);
        bench.assert_delivered(&values);
        let resent = assert_resent_as_it_was(&bench.kafka.seen());
        assert!(resent >= 1, "{name}: it was resent");
        assert!(bench.gateway.log_of("ERROR").is_empty(), "{name}: a recovered fault is no ERROR");
    }
}

#[test]
fn an_error_after_the_append_does_not_duplicate() {
    for (name, code) in [("REQUEST_TIMED_OUT", 7), ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", 20), ("UNKNOWN", -1)]
    {
        let kafka = one_broker();
        kafka.next(Api::Produce, 2, Act::AppendThenError(code));
        let bench = Bench::start(kafka);
        eprintln!("{name}");
        let values = numbered("v", 20);
        bench.link.publish_all("a/b", &values, 1);
        bench.assert_delivered(&values);
        assert!(assert_resent_as_it_was(&bench.kafka.seen()) >= 1, "{name}: it was resent");
    }
}

#[test]
fn a_connection_closed_before_or_after_the_append_neither_loses_nor_duplicates() {
    for act in [Act::CloseBefore, Act::CloseAfter] {
        for which in 1..=5_i32 {
            let bench = Bench::start(one_broker());
            let values = numbered("v", 6);
            bench.warm_up(&values);
            let gate = Gate::default();
            if which > 1 {
                bench.kafka.next(Api::Produce, 1, Act::HoldBefore(gate.clone()));
            }
            bench.kafka.when(Api::Produce, 1, act.clone(), move |call| {
                let wanted = format!("v{which}");
                call.batch.is_some_and(|batch| batch.records.iter().any(|record| record.text() == wanted))
            });
            bench.fill_the_flight(&values);
            gate.open();
            bench.assert_delivered(&values);
            assert!(assert_resent_as_it_was(&bench.kafka.seen()) >= 1);
        }
    }
}

#[test]
fn a_moved_leader_is_found_and_gets_the_same_batches() {
    let bench = Bench::start(Cluster::start_as(Release::V4, 2).topic("t", 1));
    let values = numbered("v", 6);
    bench.warm_up(&values);
    let gate = Gate::default();
    bench.kafka.next(Api::Produce, 1, Act::HoldAfter(gate.clone()));
    bench.fill_the_flight(&values);
    bench.kafka.move_leader("t", 0, 2);
    gate.open();
    bench.assert_delivered(&values);
    let seen = bench.kafka.seen();
    assert!(seen.iter().any(|batch| batch.node == 2));
    assert!(assert_resent_as_it_was(&seen) >= 1);
    assert!(bench.gateway.log_of("ERROR").is_empty());
}

#[test]
fn a_stopped_leader_is_left_for_the_new_one() {
    let kafka = Cluster::start_as(Release::V4, 3).topic("t", 1);
    let bench = Bench::start(kafka);
    let values = numbered("v", 60);
    bench.link.publish_all("a/b", &values[..20], 1);
    bench.link.wait_for_pubacks(&ids(1, 20));
    bench.kafka.stop(1);
    bench.kafka.move_leader("t", 0, 2);
    bench.link.publish_all("a/b", &values[20..40], 21);
    bench.link.wait_for_pubacks(&ids(1, 40));
    bench.kafka.restart(1);
    bench.kafka.stop(2);
    bench.kafka.move_leader("t", 0, 1);
    bench.link.publish_all("a/b", &values[40..], 41);
    bench.assert_delivered(&values);
}

#[test]
fn a_broker_restarted_with_five_batches_in_flight_gets_none_twice_however_many_it_had_written() {
    for written in 1..=5_usize {
        let bench = Bench::start(one_broker());
        let values = numbered("v", 6);
        bench.warm_up(&values);
        bench.kafka.next(Api::Produce, written, Act::Silent);
        let gate = Gate::default();
        bench.kafka.next(Api::Produce, 5 - written, Act::HoldBefore(gate.clone()));
        bench.fill_the_flight(&values);
        bench.kafka.wait_for_values("t", 0, &values[..=written]);
        bench.kafka.restart(1);
        gate.open();
        bench.assert_delivered(&values);
        assert_resent_as_it_was(&bench.kafka.seen());
    }
}

#[test]
fn without_describe_producers_one_batch_is_in_flight_and_a_restart_duplicates_nothing() {
    let kafka = Cluster::start_as(Release::V2_7, 1).topic("t", 1);
    kafka.next(Api::Produce, 1, Act::Silent);
    let bench = Bench::start(kafka);
    let values = numbered("v", 40);
    bench.link.publish("a/b", &values[0], 1);
    bench.kafka.wait_for_values("t", 0, &values[..1]);
    bench.link.publish_all("a/b", &values[1..], 2);
    bench.kafka.restart(1);
    bench.assert_delivered(&values);
    assert_eq!(bench.kafka.in_flight_max("t", 0), 1);
}

#[test]
fn a_gateway_that_may_not_describe_producers_still_delivers_and_says_what_is_weaker() {
    let kafka = one_broker();
    kafka.next(Api::DescribeProducers, usize::MAX, Act::Error(29));
    kafka.next(Api::Produce, 2, Act::CloseAfter);
    let bench = Bench::start(kafka);
    let values = numbered("v", 20);
    bench.link.publish_all("a/b", &values, 1);
    bench.assert_delivered(&values);
    if bench.kafka.requests(Api::DescribeProducers) > 0 {
        wait::until("a line that names the right that is missing", || {
            let lines = [bench.gateway.log_of("WARN"), bench.gateway.log_of("ERROR")].concat();
            if lines.iter().any(|line| line.contains("READ")) { Ok(()) } else { Err(format!("{lines:?}")) }
        });
    }
}

#[test]
fn an_out_of_order_sequence_after_forgotten_producers_does_not_stop_the_route() {
    // The leader loses its memory of the producer and then meets it in mid-sequence: an unknown producer is
    // accepted at any sequence, and the flow goes on.
    let bench = Bench::start(one_broker());
    let values = numbered("v", 40);
    bench.link.publish_all("a/b", &values[..20], 1);
    bench.link.wait_for_pubacks(&ids(1, 20));
    bench.kafka.forget_producers("t", 0);
    bench.link.publish_all("a/b", &values[20..], 21);
    bench.assert_delivered(&values);
}

#[test]
fn a_refused_producer_identity_is_replaced_and_nothing_is_lost_or_doubled() {
    let codes = [
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", 45),
        ("INVALID_PRODUCER_EPOCH", 47),
        ("UNKNOWN_PRODUCER_ID", 59),
        ("PRODUCER_FENCED", 90),
    ];
    for (name, code) in codes {
        let kafka = one_broker();
        let bench = Bench::start(kafka);
        eprintln!("{name}");
        let values = numbered("v", 30);
        bench.link.publish_all("a/b", &values[..10], 1);
        bench.link.wait_for_pubacks(&ids(1, 10));
        bench.kafka.next(Api::Produce, 1, Act::Error(code));
        bench.link.publish_all("a/b", &values[10..], 11);
        bench.assert_delivered(&values);
    }
}

#[test]
fn an_unwritten_topic_waits_until_it_appears() {
    let kafka = Cluster::start();
    let bench = Bench::start(kafka);
    bench.link.publish_all("a/b", &numbered("v", 10), 1);
    wait::until("a line that names the missing topic", || {
        let lines = [bench.gateway.log_of("WARN"), bench.gateway.log_of("ERROR")].concat();
        if lines.iter().any(|line| line.contains("UNKNOWN_TOPIC") || line.contains("t ")) {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    });
    // Nothing waits for a topic that Kafka does not create: the spool has it.
    bench.link.wait_for_pubacks(&ids(1, 10));
    bench.kafka.add_topic("t", 1);
    bench.kafka.wait_for_values("t", 0, &numbered("v", 10));
}

#[test]
fn a_topic_that_is_not_authorised_is_reported_once_and_holds_nothing_else_back() {
    const TOPIC_AUTHORIZATION_FAILED: i16 = 29;
    let kafka = one_broker().topic("other", 1);
    kafka.set_topic_error("t", TOPIC_AUTHORIZATION_FAILED);
    let bench = Bench::start(kafka);
    bench.link.publish_unacknowledged("a/b", "refused");
    let others = numbered("o", 50);
    bench.link.publish_all("other/x", &others, 1);
    bench.kafka.wait_for_values("other", 0, &others);
    bench.link.wait_for_pubacks(&ids(1, 50));
    bench.gateway.wait_for_log("ERROR", &["TOPIC_AUTHORIZATION_FAILED"]);
    // It stays refused through several retries: still one ERROR.
    bench.kafka.wait_for_requests(Api::Metadata, bench.kafka.requests(Api::Metadata) + 2);
    let errors = bench.gateway.log_of("ERROR");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    bench.kafka.set_topic_error("t", 0);
    bench.kafka.wait_for_values("t", 0, &["refused"]);
}

#[test]
fn an_authorisation_lost_in_produce_is_the_same_and_the_spool_has_the_messages() {
    let kafka = one_broker().topic("other", 1);
    let bench = Bench::start(kafka);
    bench.link.publish("a/b", "v0", 1);
    bench.link.wait_for_pubacks(&[1]);
    bench.kafka.set_topic_error("t", 29);
    bench.link.publish("a/b", "v1", 2);
    bench.gateway.wait_for_log("ERROR", &["TOPIC_AUTHORIZATION_FAILED"]);
    bench.link.publish("other/x", "o0", 3);
    bench.kafka.wait_for_values("other", 0, &["o0"]);
    bench.link.wait_for_pubacks(&[1, 2, 3]);
    assert_eq!(bench.kafka.values("t", 0), ["v0"]);
    bench.kafka.set_topic_error("t", 0);
    bench.kafka.wait_for_values("t", 0, &numbered("v", 2));
}

#[test]
fn a_nonsensical_answer_ends_the_connection_and_nothing_else() {
    let acts = [
        ("wrong correlation id", Act::WrongCorrelation),
        ("huge length", Act::HugeLength),
        ("garbage", Act::Garbage),
        ("truncated", Act::Truncated),
    ];
    for (what, act) in acts {
        for api in [Api::Produce, Api::Metadata, Api::ApiVersions, Api::InitProducerId] {
            let kafka = one_broker();
            kafka.next(api, 1, act.clone());
            let bench = Bench::start(kafka);
            let values = numbered("v", 20);
            bench.link.publish_all("a/b", &values, 1);
            eprintln!("{what} to {api:?}");
            bench.assert_delivered(&values);
            assert!(bench.kafka.connections_made() >= 2, "{what} to {api:?}: a new connection");
            assert!(bench.gateway.resident_bytes() < 64 << 20, "{what}: nothing of that size is allocated");
        }
    }
}

#[test]
fn metadata_that_is_never_answered_is_asked_for_again() {
    is_asked_again(Api::Metadata);
}

#[test]
fn api_versions_that_are_never_answered_are_asked_for_again() {
    is_asked_again(Api::ApiVersions);
}

#[test]
fn a_producer_id_that_is_never_answered_is_asked_for_again() {
    is_asked_again(Api::InitProducerId);
}

#[test]
fn a_produce_that_is_never_answered_is_sent_again_and_not_written_twice() {
    is_asked_again(Api::Produce);
}

fn is_asked_again(api: Api) {
    let kafka = one_broker();
    kafka.next(api, 1, Act::Silent);
    let bench = Bench::start(kafka);
    let values = numbered("v", 3);
    bench.link.publish_all("a/b", &values, 1);
    // A request is given up after 30 s.
    wait::until_within(wait::PATIENCE * 2, "PUBACKs in spite of the lost answer", || {
        let acknowledged = bench.link.pubacks();
        if acknowledged.len() == 3 { Ok(()) } else { Err(format!("{acknowledged:?}")) }
    });
    bench.assert_delivered(&values);
}

#[test]
fn init_producer_id_is_retried_while_the_broker_refuses_it() {
    for (name, code) in [("COORDINATOR_LOAD_IN_PROGRESS", 14), ("NOT_COORDINATOR", 16), ("BROKER", 8)] {
        let kafka = one_broker();
        kafka.next(Api::InitProducerId, 3, Act::Error(code));
        let bench = Bench::start(kafka);
        eprintln!("{name}");
        bench.link.publish("a/b", "v0", 1);
        bench.assert_delivered(&numbered("v", 1));
    }
}

#[test]
fn dead_hosts_in_the_bootstrap_list_are_passed_over() {
    let kafka = one_broker();
    let list = format!("{},{},{}", dead_address(), dead_address(), kafka.bootstrap());
    let bench = Bench::start_with(kafka, |setup| setup.set("KAFKA_BROKER", &list));
    bench.link.publish("a/b", "v0", 1);
    bench.assert_delivered(&numbered("v", 1));
    assert!(bench.gateway.log_of("ERROR").is_empty(), "one live host is enough");
}

#[test]
fn brokers_are_reached_by_the_name_they_advertise() {
    let kafka = Cluster::start_as(Release::V4, 2).topic("t", 1);
    // Not the name in the bootstrap list; it may have an IPv6 address that does not answer, too.
    kafka.advertise("localhost");
    kafka.move_leader("t", 0, 2);
    let bench = Bench::start(kafka);
    let values = numbered("v", 20);
    bench.link.publish_all("a/b", &values, 1);
    bench.assert_delivered(&values);
    bench.gateway.assert_quiet();
}

#[test]
fn an_answer_with_error_35_to_api_versions_is_asked_again_in_an_older_version() {
    let kafka = Cluster::start_as(Release::V0_11, 1).topic("t", 1);
    let bench = Bench::start(kafka);
    bench.link.publish("a/b", "v0", 1);
    bench.assert_delivered(&numbered("v", 1));
    assert!(bench.kafka.versions_used(Api::ApiVersions).contains(&0), "the version every broker answers");
}

#[test]
fn kafka_away_at_the_start_and_again_later_loses_nothing() {
    let kafka = one_broker();
    kafka.stop(1);
    let bench = Bench::start(kafka);
    let values = numbered("v", 60);
    bench.link.publish_all("a/b", &values[..30], 1);
    bench.link.assert_no_puback(wait::WATCH);
    bench.kafka.restart(1);
    bench.link.wait_for_pubacks(&ids(1, 30));
    bench.kafka.stop(1);
    bench.link.publish_all("a/b", &values[30..], 31);
    wait::holds(wait::WATCH, "no more PUBACKs", || match bench.link.pubacks().len() {
        30 => Ok(()),
        other => Err(other),
    });
    bench.kafka.restart(1);
    bench.assert_delivered(&values);
}

#[test]
fn kafka_flapping_under_a_steady_flow_loses_and_doubles_nothing() {
    let kafka = Cluster::start_as(Release::V4, 2).topic("t", 1);
    let bench = Bench::start(kafka);
    let values = numbered("v", 3000);
    for (round, chunk) in values.chunks(100).enumerate() {
        bench.link.publish_all("a/b", chunk, (round * 100) as u16 + 1);
        match round % 6 {
            1 => bench.kafka.restart(1),
            2 => bench.kafka.next(Api::Produce, 1, Act::CloseAfter),
            3 => bench.kafka.move_leader("t", 0, 2),
            4 => bench.kafka.next(Api::Produce, 2, Act::AppendThenError(7)),
            5 => bench.kafka.move_leader("t", 0, 1),
            _ => {}
        }
        // Some of it answered between the faults, so that they fall on batches in flight.
        wait::until("half of what was published", || {
            let acknowledged = bench.link.pubacks().len();
            if acknowledged * 2 >= round * 100 { Ok(()) } else { Err(acknowledged) }
        });
    }
    bench.assert_delivered(&values);
    let sequences: Vec<Identity> = bench.kafka.appended("t", 0).iter().map(|batch| batch.identity).collect();
    assert!(bench.kafka.in_flight_max("t", 0) <= 5, "{sequences:?}");
}

#[test]
fn an_invalid_topic_name_made_of_captures_is_refused_before_kafka_and_does_not_stop_the_rest() {
    // `{1}` of a level with characters Kafka does not take is replaced by a documented rule: whatever the rule,
    // the name sent to Kafka is valid and the other messages flow.
    let kafka = one_broker();
    let bench = Bench::start_with(kafka, |setup| setup.wildcards("c/+/x:cap-{1},a/#:t"));
    bench.link.publish_unacknowledged("c/b\u{e4}d name!/x", "odd");
    bench.link.publish("a/b", "v0", 1);
    bench.assert_delivered(&numbered("v", 1));
}
