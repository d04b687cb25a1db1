//! A leader that has forgotten the producer: the partition is read back, and what is found there is not sent again.

use super::super::ProducerStats;
use super::broker::{Fate, SimPartition};
use super::restarts::World;
use crate::kafka::protocol::{OffsetAt, Request};

/// Eight records are acknowledged, three more are sent, their answer is lost, and Kafka forgets who sent them.
fn lost_answer(brokers: i32, fate: Fate) -> World {
    let mut world = World::new(brokers, 1);
    world.store(8, 3);
    world.heal();
    world.store(3, 3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.answer(0, fate);
    world.cluster.forget(0);
    world
}

fn is_fetch(request: &Request) -> bool {
    matches!(request, Request::Fetch(_))
}

fn delivered(world: &World) -> (u64, u64) {
    let ProducerStats { delivered, possible_repeats, .. } = world.producer.stats();
    (delivered, possible_repeats)
}

#[test]
fn a_batch_that_is_found_in_the_partition_is_not_sent_again() {
    let mut world = lost_answer(1, Fate::BreakAfter);
    world.heal();
    world.assert_exact();
    assert_eq!(delivered(&world), (11, 0));
    // From the last acknowledged batch on, not from the beginning.
    assert_eq!((world.cluster.fetched, world.cluster.offsets_listed), (2, 0));
}

#[test]
fn a_batch_that_is_not_found_is_sent_once() {
    let mut world = lost_answer(1, Fate::BreakBefore);
    world.heal();
    world.assert_exact();
    assert_eq!((delivered(&world), world.cluster.fetched), ((11, 0), 1));
}

#[test]
fn the_first_batch_of_a_producer_is_looked_for_by_its_time() {
    let mut world = World::new(1, 1);
    world.store(3, 3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.answer(0, Fate::BreakAfter);
    world.cluster.forget(0);
    let by_time = |request: &Request| matches!(request, Request::ListOffsets(asked) if asked.at == OffsetAt::Timestamp(0));
    assert!(world.run_until(by_time));
    world.heal();
    world.assert_exact();
    assert_eq!(delivered(&world), (3, 0));
}

#[test]
fn a_leader_that_moves_while_it_is_read_is_asked_anew() {
    for fate in [Fate::BreakAfter, Fate::BreakBefore] {
        let mut world = lost_answer(2, fate);
        assert!(world.run_until(is_fetch));
        world.cluster.move_leader(0, false);
        world.heal();
        world.assert_exact();
        assert_eq!(delivered(&world), (11, 0));
    }
}

#[test]
fn a_link_that_breaks_while_it_is_read_begins_anew() {
    for fate in [Fate::BreakAfter, Fate::BreakBefore] {
        let mut world = lost_answer(1, fate);
        for _ in 0..3 {
            assert!(world.run_until(is_fetch));
            world.answer(0, Fate::BreakAfter);
        }
        world.heal();
        world.assert_exact();
        assert_eq!(delivered(&world), (11, 0));
    }
}

#[test]
fn a_known_offset_that_is_deleted_is_replaced_by_a_time() {
    for fate in [Fate::BreakAfter, Fate::BreakBefore] {
        let mut world = lost_answer(1, fate);
        world.cluster.partitions[0].log_start = 8;
        world.heal();
        world.assert_exact();
        assert_eq!((delivered(&world), world.cluster.offsets_listed), ((11, 0), 1));
    }
}

#[test]
fn where_reading_is_refused_the_batch_is_sent_again_and_told() {
    let mut world = lost_answer(1, Fate::BreakAfter);
    world.cluster.read_code = 29;
    world.heal();
    assert_eq!(delivered(&world), (11, 1));
    assert_eq!(world.cluster.partitions[0].values().len(), 14, "it was written twice");
}

#[test]
fn a_leader_that_cannot_be_asked_is_read_after_a_crash() {
    let mut world = World::new(1, 1);
    world.cannot_describe_producers();
    world.store(3, 3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.die_with_its_requests_carried_out();
    world.cluster.forget(0);
    world.heal();
    world.assert_exact();
    assert_eq!((delivered(&world), world.cluster.fetched), ((3, 0), 1));
}

#[test]
fn a_new_leader_whose_high_watermark_is_behind_is_waited_for() {
    let mut world = lost_answer(2, Fate::BreakAfter);
    world.cluster.move_leader(0, false);
    world.heal();
    world.assert_exact();
    assert_eq!(delivered(&world), (11, 0));
}

#[test]
fn a_topic_that_was_made_anew_is_read_from_what_it_acknowledged() {
    let mut world = World::new(1, 1);
    world.cluster.partitions[0].log_start = 1000;
    world.store(3, 3);
    world.heal();
    world.cluster.partitions[0] = SimPartition::default();
    world.store(3, 3);
    world.heal();
    world.store(3, 3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.answer(0, Fate::BreakAfter);
    world.cluster.forget(0);
    world.cluster.partitions[0].fill(1500);
    world.heal();
    assert_eq!((world.written(), delivered(&world)), ((3..9).collect(), (9, 0)));
}

#[test]
fn what_was_deleted_before_it_could_be_read_is_told() {
    let mut world = lost_answer(1, Fate::BreakAfter);
    world.cluster.partitions[0].fill(5);
    world.cluster.partitions[0].log_start = 11;
    world.heal();
    assert_eq!(delivered(&world), (11, 1));
}

#[test]
fn a_clock_that_is_ahead_of_the_brokers_hides_nothing() {
    let mut world = World::new(1, 1);
    world.cluster.partitions[0].has_own_times = true;
    world.store(3, 3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.answer(0, Fate::BreakAfter);
    world.cluster.forget(0);
    world.heal();
    world.assert_exact();
    assert_eq!((delivered(&world), world.cluster.offsets_listed), ((3, 0), 1));
}
