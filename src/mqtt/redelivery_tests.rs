use super::id_policy::ASCENDING_STEPS;
use super::*;

const NEW: fn(u64) -> Arrival = |sequence| Arrival::New { sequence, possible_repeat: false };
const PERHAPS: fn(u64) -> Arrival = |sequence| Arrival::New { sequence, possible_repeat: true };

/// The table with its queue, as the session drives them.
#[derive(Default)]
struct Both {
    table: Redelivery,
    acks: AckQueue,
    output: u64,
}

impl Both {
    fn arrived(&mut self, id: u16, dup: bool, fingerprint: u64) -> Arrival {
        let delivery = Delivery { packet_id: id, dup, exactly_once: false, fingerprint };
        self.table.arrived(delivery, &mut self.acks)
    }

    /// The same at QoS 2.
    fn arrived_once(&mut self, id: u16, dup: bool, fingerprint: u64) -> Arrival {
        let delivery = Delivery { packet_id: id, dup, exactly_once: true, fingerprint };
        self.table.arrived(delivery, &mut self.acks)
    }

    fn released(&mut self, id: u16) {
        self.table.released(id, &mut self.acks);
    }

    /// Settles, and puts what may go out into the output; the identifiers that do.
    fn settle(&mut self, sequence: u64) -> Vec<u16> {
        self.table.settle(sequence, &mut self.acks);
        self.write()
    }

    fn write(&mut self) -> Vec<u16> {
        let mut written = Vec::new();
        while let Some(ack) = self.acks.pop_ready() {
            self.output += 4;
            written.push(match ack {
                Ack::Puback(id) => {
                    self.table.acknowledged(id, self.output);
                    id
                }
                Ack::Pubrec(id) => {
                    self.table.recorded(id);
                    id
                }
            });
        }
        written
    }

    /// The connection breaks when this much was handed to the socket.
    fn cut(&mut self, written: u64) {
        self.acks.clear();
        self.table.connection_lost(written);
        self.output = written;
    }

    /// Makes the table believe that the broker goes round all identifiers.
    fn see_it_go_round(&mut self) {
        for id in 1..=ASCENDING_STEPS as u16 + 2 {
            let Arrival::New { sequence, .. } = self.arrived(id, false, 1000 + u64::from(id)) else {
                panic!()
            };
            self.settle(sequence);
            self.table.confirmed(self.output);
        }
        assert!(self.table.policy.goes_round());
    }
}

#[test]
fn a_redelivery_of_what_is_in_hand_is_not_passed_on_and_is_acknowledged_when_it_settles() {
    let mut both = Both::default();
    assert_eq!(both.arrived(5, false, 50), NEW(1));
    both.cut(0);
    assert_eq!(both.arrived(5, true, 50), Arrival::Repeat);
    assert_eq!(both.write(), [0_u16; 0]);
    assert_eq!(both.settle(1), [5]);
}

#[test]
fn a_message_that_settles_while_there_is_no_connection_is_acknowledged_on_its_redelivery() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    both.cut(0);
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.arrived(5, true, 50), Arrival::Repeat);
    assert_eq!(both.write(), [5]);
}

#[test]
fn an_acknowledgement_that_never_left_the_buffer_is_sent_on_the_redelivery() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    assert_eq!(both.settle(1), [5]);
    // Three of its four bytes were written.
    both.cut(3);
    assert_eq!(both.arrived(5, true, 50), Arrival::Repeat);
    assert_eq!(both.write(), [5]);
}

#[test]
fn another_message_under_the_same_id_is_new_and_the_old_acknowledgement_is_void() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    both.cut(0);
    assert_eq!(both.arrived(5, true, 51), NEW(2));
    assert_eq!(both.settle(1), [0_u16; 0], "the old message must not acknowledge the new one");
    assert_eq!(both.settle(2), [5]);
}

#[test]
fn without_dup_it_is_a_new_message_even_if_equal_and_in_hand() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    both.cut(0);
    assert_eq!(both.arrived(5, false, 50), PERHAPS(2));
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.settle(2), [5]);
}

#[test]
fn an_id_that_comes_twice_without_dup_on_one_connection_belongs_to_the_later_message() {
    let mut both = Both::default();
    assert_eq!(both.arrived(5, false, 50), NEW(1));
    assert_eq!(both.arrived(6, false, 60), NEW(2));
    assert_eq!(both.arrived(5, false, 51), NEW(3));
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.settle(2), [6], "a void place holds nothing back");
    assert_eq!(both.settle(3), [5]);
}

#[test]
fn a_retry_on_the_same_connection_gets_no_second_acknowledgement() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    assert_eq!(both.arrived(5, true, 50), Arrival::Repeat);
    assert_eq!(both.settle(1), [5]);
    assert_eq!(both.arrived(5, true, 50), Arrival::Repeat);
    assert_eq!(both.write(), [0_u16; 0]);
}

#[test]
fn an_id_reused_after_its_acknowledgement_on_one_connection_is_an_ordinary_new_message() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    both.settle(1);
    assert_eq!(both.arrived(5, false, 50), NEW(2));
    assert_eq!(both.settle(2), [5]);
}

#[test]
fn a_lost_acknowledgement_is_repeated_if_the_broker_goes_round_all_ids() {
    let mut both = Both::default();
    both.see_it_go_round();
    let Arrival::New { sequence, .. } = both.arrived(500, false, 50) else { panic!() };
    assert_eq!(both.settle(sequence), [500]);
    both.cut(both.output);
    assert_eq!(both.arrived(500, true, 50), Arrival::Repeat);
    assert_eq!(both.write(), [500]);
}

#[test]
fn a_redelivery_is_passed_on_if_the_broker_may_have_reused_the_id() {
    let mut both = Both::default();
    both.arrived(1, false, 50);
    assert_eq!(both.settle(1), [1]);
    both.cut(both.output);
    assert_eq!(both.arrived(1, true, 50), PERHAPS(2));
    assert_eq!(both.settle(2), [1]);
}

#[test]
fn what_was_confirmed_is_forgotten_so_its_id_may_carry_an_equal_message() {
    let mut both = Both::default();
    both.see_it_go_round();
    let Arrival::New { sequence, .. } = both.arrived(500, false, 50) else { panic!() };
    both.settle(sequence);
    both.table.confirmed(both.output);
    both.cut(both.output);
    assert_eq!(both.arrived(500, true, 50), NEW(sequence + 1));
}

#[test]
fn ids_of_a_lost_session_mean_nothing_in_the_next() {
    let mut both = Both::default();
    both.arrived(5, false, 50);
    both.cut(0);
    both.table.session_lost();
    assert_eq!(both.arrived(5, true, 50), NEW(2));
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.settle(2), [5]);
}

#[test]
fn unconfirmed_acknowledgements_are_bounded_on_one_connection_and_over_many() {
    let mut both = Both::default();
    for round in 0..3_u64 {
        for id in 1..=20_000_u16 {
            let Arrival::New { sequence, .. } = both.arrived(id, false, round) else { panic!() };
            both.settle(sequence);
        }
        assert!(both.table.unconfirmed.len() <= UNCONFIRMED_MAX);
        both.cut(both.output);
        assert!(both.table.stale.len() <= UNCONFIRMED_MAX);
        assert!(both.table.ids.len() <= 2 * UNCONFIRMED_MAX);
    }
    both.see_it_go_round();
    for id in 1..=17_000_u16 {
        let Arrival::New { sequence, .. } = both.arrived(30_000 + id, false, 9) else { panic!() };
        both.settle(sequence);
        both.table.confirmed(both.output);
    }
    assert!(both.table.ids.is_empty(), "{} stale ones left", both.table.ids.len());
}

#[test]
fn at_qos_2_a_repeat_is_known_until_pubrel_and_its_pubrec_is_sent_again() {
    let mut both = Both::default();
    assert_eq!(both.arrived_once(5, false, 50), NEW(1));
    both.cut(0);
    assert_eq!(both.arrived_once(5, true, 50), Arrival::Repeat, "in hand");
    assert_eq!(both.settle(1), [5]);
    assert_eq!(both.arrived_once(5, true, 50), Arrival::Repeat, "recorded, on the same connection");
    assert_eq!(both.write(), [5]);
    for written in [4, 0] {
        both.cut(written);
        assert_eq!(both.arrived_once(5, true, 50), Arrival::Repeat, "recorded, whether it arrived or not");
        assert_eq!(both.write(), [5]);
    }
    assert_eq!(both.table.unreleased(), 1);
    both.released(5);
    assert_eq!(both.table.unreleased(), 0);
    assert_eq!(both.arrived_once(5, true, 50), NEW(2), "released: another message");
    assert_eq!((both.settle(2), both.table.unconfirmed()), (vec![5], 0));
}

#[test]
fn at_qos_2_another_message_is_no_repeat() {
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    assert_eq!(both.settle(1), [5]);
    both.cut(4);
    assert_eq!(both.arrived_once(5, true, 51), NEW(2), "another content");
    assert_eq!(both.arrived(5, true, 51), NEW(3), "another QoS");
    assert_eq!(both.settle(2), [0_u16; 0]);
    assert_eq!(both.settle(3), [5], "only the last of them is acknowledged");
}

/// QoS 2, from a broker that goes round: identifier 500 in hand.
fn once_in_hand_of_a_round_going_broker() -> (Both, u64) {
    let mut both = Both::default();
    both.see_it_go_round();
    let Arrival::New { sequence, .. } = both.arrived_once(500, false, 50) else { panic!() };
    (both, sequence)
}

#[test]
fn at_qos_2_the_same_message_is_a_repeat_without_dup_too_at_the_beginning_of_a_connection() {
    let (mut both, sequence) = once_in_hand_of_a_round_going_broker();
    assert_eq!(both.arrived_once(500, false, 50), Arrival::Repeat, "on the same connection");
    both.cut(both.output);
    assert_eq!(both.arrived_once(500, false, 50), Arrival::Repeat, "a restarted Mosquitto sends some so");
    assert_eq!(both.settle(sequence), [500]);
    both.cut(both.output);
    assert_eq!(both.arrived_once(500, false, 50), Arrival::Repeat);
    assert_eq!(both.write(), [500]);
    both.released(500);
    assert_eq!(both.arrived_once(500, false, 50), NEW(sequence + 1), "released: another message");
    assert_eq!(both.settle(sequence + 1), [500]);
}

#[test]
fn at_qos_2_without_dup_it_is_new_if_the_broker_may_have_lost_its_memory() {
    // It gives identifiers away again at once.
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    both.cut(0);
    assert_eq!(both.arrived_once(5, false, 50), PERHAPS(2));
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.settle(2), [5]);
    // It went back behind what it has given away.
    let (mut both, sequence) = once_in_hand_of_a_round_going_broker();
    both.cut(both.output);
    assert_eq!(both.arrived_once(499, false, 49), NEW(sequence + 1));
    assert_eq!(both.arrived_once(500, false, 50), PERHAPS(sequence + 2));
    // What was in flight has come by now.
    let (mut both, _) = once_in_hand_of_a_round_going_broker();
    both.cut(both.output);
    for id in 1001..=1000 + RESUMED_ARRIVALS as u16 {
        both.arrived(id, false, 9);
    }
    assert!(matches!(both.arrived_once(500, false, 50), Arrival::New { possible_repeat: true, .. }));
}

#[test]
fn at_qos_2_an_identifier_that_the_broker_does_not_mention_again_is_forgotten() {
    for (dup, known) in [(false, false), (true, false), (true, true)] {
        let (mut both, sequence) = once_in_hand_of_a_round_going_broker();
        both.settle(sequence);
        both.cut(both.output);
        for id in 1000..18_500 {
            let Arrival::New { sequence, .. } = both.arrived_once(id, false, 9) else { panic!() };
            both.settle(sequence);
            both.released(id);
            if known && id % 10_000 == 0 {
                assert_eq!(both.arrived_once(500, true, 50), Arrival::Repeat);
            }
        }
        let arrival = both.arrived_once(500, dup, 50);
        if known {
            assert_eq!(arrival, Arrival::Repeat);
        } else {
            assert!(
                matches!(arrival, Arrival::New { .. }),
                "{arrival:?}: it was freed, as Mosquitto does with what expires"
            );
            assert_eq!(both.table.take_orphans(), [Orphan { packet_id: 500, fingerprint: 50 }]);
        }
    }
}

#[test]
fn an_orphan_is_told_with_its_content() {
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    both.cut(0);
    assert_eq!(both.arrived_once(5, true, 51), NEW(2));
    assert_eq!(both.table.take_orphans(), []);
    both.settle(1);
    assert_eq!(both.table.take_orphans(), [Orphan { packet_id: 5, fingerprint: 50 }]);
}

#[test]
fn a_settled_acknowledgement_is_not_sent_for_the_identifiers_next_message() {
    let mut both = Both::default();
    both.arrived(4, false, 40);
    both.arrived(5, false, 50);
    assert_eq!(both.settle(2), [0_u16; 0]);
    assert_eq!(both.arrived(5, false, 51), NEW(3));
    assert_eq!(both.settle(1), [4], "5 is another message now");
    assert_eq!(both.settle(3), [5]);
}

#[test]
fn a_pubrel_in_front_of_the_pubrec_leaves_nothing_that_could_answer_the_next_message() {
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    both.released(5);
    assert_eq!(both.arrived_once(5, false, 60), NEW(2));
    assert_eq!(both.settle(1), [0_u16; 0]);
    assert_eq!(both.settle(2), [5]);
    both.arrived(6, false, 70);
    both.released(6);
    assert_eq!(both.settle(3), [6], "a PUBREL for a message of QoS 1 changes nothing");
}

#[test]
fn a_lost_session_voids_the_identifiers_of_qos_2() {
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    both.settle(1);
    both.cut(4);
    both.table.session_lost();
    assert_eq!((both.table.unreleased(), both.arrived_once(5, true, 50)), (0, NEW(2)));
}
