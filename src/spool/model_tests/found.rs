//! What the properties found once, by its shrunk case: the same actions as plain tests. The disk's fate is drawn from the seed as ever.

use super::*;

fn append(frames: &[(usize, usize, bool)]) -> Action {
    Action::Append(frames.to_vec())
}

#[test]
fn a_write_that_failed_on_a_nearly_full_disk_leaves_nothing_behind() {
    let actions = [
        Action::Room(Some(796)),
        append(&[(1, 224, false)]),
        Action::Reopen,
        append(&[(0, 261, false), (3, 212, false), (2, 8, false)]),
        Action::FailWrite(2),
        append(&[(3, 37, false), (0, 39, false)]),
        append(&[(0, 0, false)]),
        Action::Restart,
    ];
    run(8828495336773, options(1 << 40, Policy::DropOldest), &actions);
}

#[test]
fn a_sync_that_failed_where_the_cap_is_reached_is_reopened() {
    let actions = [
        append(&[(3, 212, false), (3, 238, false), (2, 2649, false), (3, 979, false), (1, 1428, false)]),
        append(&[(3, 35, false), (2, 177, false), (0, 343, false), (1, 290, false)]),
        Action::Assign { nth: 0, picks: vec![(0, u64::MAX, true)] },
        append(&[(0, 2800, false), (3, 187, false), (1, 1, false), (3, 2583, false)]),
        append(&[(3, 17, false), (0, 70, false), (0, 164, false), (0, 39, false)]),
        append(&[(3, 96, false), (2, 35, false), (1, 57, false), (0, 12, false)]),
        append(&[(3, 143, false)]),
        append(&[(3, 80, false), (3, 279, false)]),
        append(&[(0, 227, false), (0, 41, false), (0, 1056, false), (0, 286, false), (0, 20, false)]),
        Action::Ack { nth: 0, count: 2, route: Some(0) },
        Action::Ack { nth: 21, count: 5, route: None },
        append(&[(1, 822, false), (0, 246, false), (3, 175, false), (0, 114, false), (0, 137, false)]),
        Action::Checkpoint,
        append(&[(0, 2237, false), (0, 1170, false), (3, 71, false), (2, 407, false), (1, 128, false)]),
        append(&[(0, 62, false), (0, 15, false), (3, 268, false), (3, 169, false), (2, 100, false)]),
        append(&[(3, 253, false), (0, 82, false), (3, 166, false), (3, 24, false), (0, 25, false)]),
        append(&[(1, 141, false)]),
        Action::Reopen,
        Action::Ack { nth: 33, count: 10, route: None },
        append(&[(3, 140, false), (2, 217, false), (0, 392, false)]),
        Action::Restart,
        Action::Ack { nth: 3, count: 30, route: None },
        Action::FailSync(1),
        append(&[(0, 2319, false)]),
    ];
    run(0, options(30000, Policy::Block), &actions);
}

#[test]
fn a_sync_that_failed_on_closing_a_segment_of_a_nearly_full_disk_is_reopened() {
    let actions = [
        append(&[(0, 0, false), (3, 0, false)]),
        Action::Reopen,
        append(&[(3, 1958, false)]),
        append(&[(1, 0, false)]),
        append(&[(0, 58, false), (0, 186, false), (0, 2208, false), (0, 25, false)]),
        append(&[(3, 289, false), (0, 18, false), (0, 293, false), (0, 239, false)]),
        Action::Ack { nth: 1, count: 1, route: Some(3) },
        append(&[(0, 2219, false), (3, 131, false), (0, 191, false)]),
        Action::Room(Some(2634)),
        append(&[(0, 31, false)]),
        append(&[(0, 164, false), (3, 113, false), (3, 148, false), (0, 46, false), (0, 146, false)]),
        Action::FailSync(1),
        append(&[(0, 1043, false)]),
    ];
    run(0, options(1 << 40, Policy::Block), &actions);
}

#[test]
fn after_a_failed_sync_a_full_disk_is_restarted_and_reopened() {
    let actions = [
        append(&[(0, 0, false), (3, 86, false), (0, 6, false), (3, 182, false), (1, 2500, false)]),
        append(&[(0, 520, false), (3, 143, false)]),
        Action::Room(Some(43)),
        Action::FailSync(0),
        append(&[(0, 0, false)]),
        Action::Restart,
        append(&[(0, 905, false), (2, 2335, false)]),
        Action::Reopen,
    ];
    run(0, options(1 << 40, Policy::DropOldest), &actions);
}

#[test]
fn what_drop_oldest_gave_up_does_not_come_back_after_power_losses_and_failures() {
    let actions = [
        append(&[(2, 1051, false)]),
        append(&[(2, 87, false), (0, 1767, false), (3, 94, false), (0, 174, false), (1, 1056, false)]),
        append(&[(0, 148, false)]),
        append(&[(0, 2320, false), (3, 237, false), (1, 13, false), (2, 1857, false)]),
        append(&[(0, 213, false), (3, 235, false), (0, 169, false)]),
        append(&[(3, 169, false), (2, 50, false), (0, 25, false), (1, 219, false)]),
        append(&[(2, 127, false), (3, 97, false), (2, 50, false), (3, 186, false)]),
        append(&[(2, 1376, false)]),
        append(&[(1, 81, false), (0, 166, false), (2, 1268, false), (0, 21, false)]),
        append(&[(0, 300, false), (0, 211, false)]),
        append(&[(0, 2792, false), (2, 74, false), (3, 2858, false)]),
        append(&[(0, 141, false)]),
        append(&[(0, 2247, false), (3, 169, false), (2, 150, false), (3, 120, false), (0, 167, false)]),
        append(&[(2, 287, false), (0, 14, false)]),
        Action::PowerLoss,
        append(&[(0, 2010, false), (0, 688, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 151, false), (0, 256, false)]),
        append(&[(3, 75, false), (2, 221, false)]),
        Action::PowerLoss,
        Action::FailSync(2),
        Action::Ack { nth: 0, count: 1, route: None },
        append(&[(0, 0, false)]),
        Action::Room(Some(1380)),
        Action::FailWrite(0),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        Action::Reopen,
        append(&[(0, 1177, false), (1, 2910, false)]),
        Action::PowerLoss,
        append(&[(1, 130, false), (0, 2626, false), (2, 132, false), (3, 567, false), (2, 1871, false)]),
        append(&[(3, 249, false), (3, 1720, false), (0, 434, false)]),
        append(&[(3, 934, false), (0, 293, false), (0, 254, false), (1, 274, false), (3, 414, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 21, false), (2, 2294, false)]),
        Action::FailSync(3),
        append(&[(0, 1447, false)]),
        Action::Assign { nth: 0, picks: vec![(0, u64::MAX, true)] },
        Action::FailSync(0),
        Action::Checkpoint,
        Action::PowerLoss,
    ];
    run(2749598601024635129, options(80000, Policy::DropOldest), &actions);
}

#[test]
fn an_assignment_whose_sync_failed_is_there_whole_or_not_at_all() {
    let actions = [
        Action::FailWrite(2),
        append(&[(0, 0, false), (0, 0, false)]),
        append(&[(0, 0, false), (0, 0, false), (0, 0, false), (0, 0, false), (0, 0, false)]),
        append(&[(0, 0, false)]),
        Action::Checkpoint,
        Action::Assign { nth: 0, picks: vec![(0, 48369019546378497, false)] },
        Action::FailSync(0),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        Action::Checkpoint,
        Action::FailSync(1),
        Action::Assign { nth: 0, picks: vec![(0, 1, false)] },
        Action::Ack { nth: 2, count: 5, route: None },
        Action::Assign { nth: 0, picks: vec![(2, 1, false), (0, 1, false)] },
        Action::Restart,
    ];
    run(5999878047583103775, options(1 << 40, Policy::Block), &actions);
}

/// Segments are removed without room for the record of it, and then the disk fails.
#[test]
fn an_unreleased_message_that_was_forgotten_does_not_come_back_in_the_same_process() {
    let actions = [
        append(&[(0, 0, false)]),
        append(&[(0, 0, false), (0, 0, false), (0, 0, false), (0, 0, false), (0, 0, false)]),
        append(&[(0, 0, false), (0, 0, false)]),
        append(&[(0, 48, false), (0, 82, false)]),
        append(&[(2, 1942, false), (2, 181, false), (2, 130, false), (3, 221, false), (0, 117, false)]),
        Action::FailSync(0),
        Action::Room(Some(0)),
        Action::Ack { nth: 0, count: 10, route: None },
        Action::Checkpoint,
        Action::Checkpoint,
        Action::Reopen,
    ];
    run(0, options(1 << 40, Policy::Block), &actions);
}

#[test]
fn nor_in_the_next_process() {
    let actions = [
        Action::Room(Some(869)),
        append(&[(0, 0, false), (0, 0, false), (0, 215, false), (0, 275, false)]),
        append(&[(0, 0, false), (0, 0, false), (0, 0, false), (0, 182, false), (2, 223, false)]),
        append(&[(0, 0, false), (0, 41, false), (0, 202, false), (2, 107, false), (3, 34, false)]),
        append(&[(0, 0, false), (0, 0, false), (0, 159, false), (2, 229, false)]),
        append(&[(0, 0, false), (0, 0, false), (0, 131, false)]),
        append(&[(3, 116, false)]),
        Action::Assign { nth: 0, picks: vec![(0, u64::MAX, false)] },
        append(&[(0, 0, false), (0, 0, false), (0, 0, false), (0, 0, false), (0, 67, false)]),
        append(&[(3, 52, false)]),
        Action::Release(vec![0, 5, 5]),
        Action::FailSync(0),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        Action::Checkpoint,
        Action::Checkpoint,
        Action::Restart,
    ];
    run(0, options(1 << 40, Policy::DropOldest), &actions);
}

/// The counter of free space says more than there is: drop-oldest makes room for the frames after their note was refused.
#[test]
fn where_there_was_no_room_for_a_note_no_older_one_is_remembered_under_its_number() {
    let actions = [
        Action::Room(Some(1637)),
        append(&[(0, 18, false)]),
        append(&[(2, 282, false), (0, 275, false), (0, 38, false)]),
        append(&[(2, 94, false), (3, 78, false)]),
        Action::Overstate(1172),
        append(&[(0, 0, false), (0, 0, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 0, false), (0, 137, false), (3, 40, false), (3, 93, false)]),
        Action::Reopen,
        append(&[(0, 0, false)]),
    ];
    run(0, options(1 << 40, Policy::DropOldest), &actions);
}

#[test]
fn a_copy_of_what_was_sent_has_no_part_in_a_parked_route_s_share() {
    let actions = [
        append(&[(0, 0, false)]),
        Action::Park { route: 0, parked: true },
        append(&[(0, 0, false)]),
        append(&[(0, 0, false)]),
        append(&[(0, 216, false), (0, 151, false)]),
        append(&[(0, 109, false), (0, 265, true)]),
    ];
    run_in_memory(options(5000, Policy::Block), &actions);
}
