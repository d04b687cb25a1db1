//! A process that dies where it must neither ask nor read: what was written is found out by sending.

use super::broker::Fate;
use super::restarts::World;
use crate::kafka::protocol::Request;

/// READ on the topic is not granted.
fn without_read(partitions: i32) -> World {
    let mut world = World::new(1, partitions);
    world.cluster.describe_code = 29;
    world.cluster.read_code = 29;
    world
}

fn store_one_by_one(world: &mut World, count: u64) {
    for _ in 0..count {
        world.store(1, 1);
        world.heal();
    }
}

fn is_produce(request: &Request) -> bool {
    matches!(request, Request::Produce(_))
}

#[test]
fn a_checkpoint_that_is_more_than_five_batches_behind_repeats_nothing() {
    for restarted in [false, true] {
        let mut world = without_read(1);
        store_one_by_one(&mut world, 8);
        world.die(0, 0);
        if restarted {
            world.cluster.restart(0);
        }
        world.store(3, 1);
        world.heal();
        world.assert_exact();
    }
}

#[test]
fn the_rest_of_a_batch_is_proven_by_the_batch_behind_it() {
    // Among the leader's last five, and before them.
    for behind in [1, 7] {
        let mut world = without_read(1);
        world.store(2, 1);
        world.heal();
        store_one_by_one(&mut world, behind);
        world.die(1, 0);
        world.heal();
        world.assert_exact();
        assert_eq!(world.written(), (0..2 + behind).collect::<Vec<_>>());
    }
}

#[test]
fn the_rest_of_a_batch_with_nothing_behind_it_is_written_again_and_told() {
    let mut world = without_read(1);
    world.store(2, 1);
    world.heal();
    world.die(1, 0);
    world.heal();
    world.assert_nothing_lost();
    assert_eq!((world.written(), world.producer.stats().possible_repeats), (vec![0, 1, 1], 1));
}

#[test]
fn a_leader_that_forgets_during_the_search_makes_nothing_lost() {
    let mut world = without_read(1);
    store_one_by_one(&mut world, 1);
    // The identities are on the disk; nothing was sent under them, and the first batch is lost from the spool.
    world.store(12, 1);
    world.poll();
    world.die(0, 0b1110);
    // It is refused once, then in the search, and then the leader forgets.
    for _ in 0..2 {
        assert!(world.run_until(is_produce));
        world.answer(0, Fate::Normal);
    }
    world.cluster.forget(0);
    world.heal();
    world.assert_nothing_lost();
    assert!(world.producer.stats().possible_repeats > 0);
}

/// What the search has written itself proves nothing, though it is recognised later.
#[test]
fn what_is_written_in_the_search_proves_nothing_of_what_is_before_it() {
    let mut world = without_read(1);
    world.store(12, 1);
    // The identities are on the disk; nothing was sent, so the leader knows nothing. The second frame is lost.
    assert!(world.run_until(is_produce));
    world.die(0, 0b10);
    assert!(world.run_until(is_produce));
    world.answer(0, Fate::CarryOutAndSay(7));
    world.heal();
    world.assert_nothing_lost();
    assert_eq!(world.producer.stats().possible_repeats, 1);
}

#[test]
fn a_broker_that_can_neither_be_asked_nor_read_repeats_nothing() {
    let mut world = World::new(1, 1);
    world.cannot_describe_producers();
    world.cluster.read_code = 29;
    store_one_by_one(&mut world, 8);
    world.die(0, 0);
    world.heal();
    world.assert_exact();
}

#[test]
fn a_partition_that_the_first_broker_has_not_heard_of_is_waited_for() {
    let mut world = World::new(1, 2);
    world.store(10, 1);
    world.heal();
    world.cluster.short_metadata = 3;
    world.die(0, 0);
    world.heal();
    world.assert_exact();
}
