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

fn policy(steps: impl IntoIterator<Item = u16>, freed: &[u16]) -> bool {
    let mut policy = IdPolicy::default();
    for id in steps {
        policy.arrived(id);
        freed.iter().for_each(|&id| policy.freed(id));
    }
    policy.goes_round()
}

#[test]
fn going_round_is_believed_after_passing_over_free_ids_and_not_before() {
    assert!(policy(1..=102, &[1]));
    assert!(policy((65_480..=65_535).chain(1..=60), &[65_480]), "the wrap is a step forward");
    assert!(policy((1..=102).map(|step| step * 3), &[3]), "gaps are allowed");
    assert!(!policy(1..=1000, &[]), "a burst proves nothing: no id was free");
    assert!(!policy(1..=60, &[1]), "too short");
    assert!(!policy((1..=200).chain([1]), &[1]), "it went back");
    assert!(!policy(std::iter::repeat_n(1, 200), &[1]), "always the same");
}

#[test]
fn the_fingerprint_is_xxh64_of_its_documented_parts() {
    let seed = fingerprint_seed("gateway");
    assert_eq!(seed, XxHash64::oneshot(0, b"gateway"));
    let body = Body::Payload(bytes::Bytes::from_static(b"21.5"));
    assert_eq!(fingerprint(seed, 258, "a/b", &body), XxHash64::oneshot(seed, b"\x01\x02a/b\x0021.5"));
    let large = Body::Oversized { packet_bytes: 3 };
    assert_eq!(
        fingerprint(seed, 258, "a", &large),
        XxHash64::oneshot(seed, b"\x01\x02a\0\0\0\0\0\0\0\0\x03")
    );
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

#[test]
fn at_qos_2_the_same_message_is_a_repeat_without_dup_too() {
    let mut both = Both::default();
    both.arrived_once(5, false, 50);
    both.cut(0);
    assert_eq!(both.arrived_once(5, false, 50), Arrival::Repeat, "a restarted Mosquitto sends some so");
    assert_eq!(both.settle(1), [5]);
    both.released(5);
    assert_eq!(both.arrived_once(5, false, 50), NEW(2), "released: another message");
    assert_eq!(both.settle(2), [5]);
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
