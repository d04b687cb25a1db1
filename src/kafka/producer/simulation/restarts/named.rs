//! Restarts that have a name: each is a case that one of the properties found, or that a reader thought of.

use super::*;

#[test]
fn the_rest_of_a_batch_that_is_written_is_confirmed_by_the_batch_behind_it() {
    let mut world = World::new(1, 1);
    world.store(2, 1);
    world.heal();
    world.store(1, 1);
    world.heal();
    // The first frame's being done was written down, the others' was not.
    world.die(1, 0);
    world.heal();
    world.assert_exact();
    assert_eq!(world.written(), [0, 1, 2]);
}

#[test]
fn the_sequence_of_a_refused_record_never_stands_for_another() {
    let mut world = World::new(1, 1);
    world.cluster.poison = Some(1);
    world.store(4, 1);
    world.heal();
    // Nothing was written down as done: what was refused is refused again, and nothing else is written again.
    for _ in 0..3 {
        world.die(0, 0);
        world.heal();
        world.assert_exact();
        assert_eq!((world.written(), world.done.len()), (vec![0, 2, 3], 4));
    }
}

#[test]
fn what_gets_another_identity_while_it_is_copied_is_not_sent_before_that_is_on_the_disk() {
    let mut world = World::new(1, 1);
    world.cluster.poison = Some(2);
    world.push(3);
    assert!(world.run_until(|request| matches!(request, Request::Produce(_))));
    world.copy();
    // Refused, taken apart, and as much of it sent as is sent while the copy is on the way.
    for _ in 0..20 {
        world.answer(0, Fate::Normal);
        world.poll();
        world.now += Duration::from_millis(100);
    }
    world.copied();
    world.die(0, 0);
    world.heal();
    world.assert_exact();
    assert_eq!(world.written(), [0, 1]);
}
