//! A hostile broker: its bytes in chunks of any size, with settlements, time and cuts between them.
//!
//! `cargo +nightly fuzz run mqtt_session -- -max_total_time=60`
//!
//! Checked: no panic, the limits hold, and no more PUBACKs and PUBRECs go out than messages were settled or repeated.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tidegate::message::{Message, Qos};
use tidegate::mqtt::codec::Version;
use tidegate::mqtt::session::{Session, SessionOptions};

const IN_HAND_MAX: usize = 8;

struct Rig {
    session: Session,
    now: Instant,
    messages: Vec<Message>,
    settled: u64,
}

impl Rig {
    fn receive(&mut self, bytes: &[u8]) {
        if self.session.may_read() && self.session.receive(bytes, self.now, 0, &mut self.messages).is_err() {
            self.reconnect();
        }
    }

    fn reconnect(&mut self) {
        self.session.lost(true, self.now);
        self.session.open(self.now).expect("the options fit");
    }

    fn settle(&mut self, which: u8) {
        if self.messages.is_empty() {
            return;
        }
        let message = self.messages.swap_remove(usize::from(which) % self.messages.len());
        self.settled += u64::from(message.qos == Qos::AtLeastOnce);
        self.session.settle(&[message.token.settle()], self.now);
        if self.session.has_input() {
            self.receive(&[]);
        }
    }

    fn pass(&mut self, seconds: u8) {
        self.now += Duration::from_secs(seconds.into());
        if self.session.on_deadline(self.now, seconds & 1 == 0).is_err() {
            self.reconnect();
        }
    }

    fn check(&mut self) {
        while self.session.next_event().is_some() {}
        let stats = self.session.stats();
        assert!(self.messages.len() <= IN_HAND_MAX);
        assert!(stats.acknowledged <= self.settled + stats.repeats_suppressed);
        assert_eq!(self.session.in_hand().0, self.messages.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let options = SessionOptions {
        client_id: "fuzz".into(),
        login: None,
        keep_alive_sec: 10,
        clean_session: false,
        version: if data.first().is_some_and(|byte| byte & 1 == 1) { Version::V5 } else { Version::V311 },
        session_expiry_sec: 60,
        unreleased: Vec::new(),
        hold_releases: false,
        filters: vec![("#".into(), Qos::AtLeastOnce)],
        max_packet_bytes: 200,
        in_flight_messages_max: 5,
        in_hand_messages_max: IN_HAND_MAX,
        in_hand_bytes_max: 4096,
    };
    let mut rig =
        Rig { session: Session::new(options), now: Instant::now(), messages: Vec::new(), settled: 0 };
    rig.reconnect();
    let mut rest = data;
    while let [op, argument, tail @ ..] = rest {
        rest = tail;
        match op % 8 {
            0 | 1 => {
                let (chunk, after) = rest.split_at(usize::from(*argument).min(rest.len()));
                rest = after;
                rig.receive(chunk);
            }
            2 => rig.settle(*argument),
            3 => {
                let count = usize::from(*argument).min(rig.session.output().len());
                rig.session.wrote(count, rig.now);
            }
            4 => rig.pass(*argument),
            // So that the fuzzer need not find these each time.
            5 => rig.receive(&[0x20, 2, argument & 1, 0]),
            6 => rig.receive(&[0x32 | (argument & 8), 6, 0, 1, b'a', 0, argument % 5 + 1, b'x']),
            _ => rig.reconnect(),
        }
        rig.check();
    }
    rig.messages.drain(..).for_each(|message| {
        message.token.abandon();
    });
});
