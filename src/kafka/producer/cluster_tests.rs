//! What the operator is told of a broker that fails, and how often one is tried that refuses.

use super::*;

const LOST: &str = "connection to b0:9092 lost: closed";
const EXPIRED: &str = "no TLS with b0:9092: the certificate of b0 has expired";
const PASSWORD: Duration = Duration::from_secs(60);

struct Bench {
    start: Instant,
    now: Instant,
    cluster: Cluster,
}

impl Bench {
    fn new() -> Bench {
        let now = Instant::now();
        Bench { start: now, now, cluster: Cluster::new(vec![("b0".to_owned(), 9092)], now) }
    }

    /// Lets time pass until the broker is tried again, and gives the number of the link.
    fn opened(&mut self) -> u64 {
        for _ in 0..100_000 {
            let (openings, next) = self.cluster.open_missing(&[], self.now);
            if let Some(opening) = openings.first() {
                return opening.link;
            }
            self.now = next.expect("there is always a next look").max(self.now + Duration::from_millis(1));
        }
        panic!("the broker is not tried again");
    }

    /// It is tried once more and fails. Gives whether the operator was told.
    fn fails(&mut self, reason: &str, refusal: Option<Duration>) -> bool {
        let link = self.opened();
        self.closes(link, reason, refusal)
    }

    fn closes(&mut self, link: u64, reason: &str, refusal: Option<Duration>) -> bool {
        self.cluster.on_closed(link, reason, refusal, 1.0, self.now);
        self.cluster.addresses.values().flat_map(|address| &address.told).any(|(_, at)| *at == self.now)
    }

    /// How many of these failures are told while time passes.
    fn told_within(&mut self, span: Duration, reason: impl Fn(usize) -> String) -> usize {
        let until = self.now + span;
        let mut told = 0;
        for number in 0.. {
            if self.now >= until {
                break;
            }
            told += usize::from(self.fails(&reason(number), None));
        }
        told
    }
}

#[test]
fn another_reason_is_told_although_the_lost_connection_was() {
    let mut bench = Bench::new();
    let link = bench.opened();
    bench.cluster.on_ready(link, true, bench.now);
    bench.now += WORKED_AFTER * 2;
    assert!(bench.closes(link, LOST, None));
    assert!(bench.fails(&format!("{EXPIRED} 1 s ago"), None), "the reason that the operator has to act on");
    assert!(!bench.fails(&format!("{EXPIRED} 2 s ago"), None), "other seconds are no other reason");
}

#[test]
fn a_broker_that_stays_away_is_told_now_and_then() {
    let mut bench = Bench::new();
    let hour = Duration::from_secs(3600);
    let told = bench.told_within(hour, |number| format!("{EXPIRED} {number} s ago"));
    assert!((6..=7).contains(&told), "{told} in an hour");
}

#[test]
fn reasons_that_never_end_do_not_fill_the_log() {
    let mut bench = Bench::new();
    let words = |number: usize| char::from_u32(0x4e00 + number as u32).unwrap().to_string();
    let told = bench.told_within(Duration::from_secs(600), words);
    assert!((10..=33).contains(&told), "{told} in ten minutes");
    let noted: usize = bench.cluster.addresses.values().map(|address| address.told.len()).sum();
    assert!(noted <= 33, "{noted} are noted");
}

#[test]
fn a_link_that_worked_makes_its_end_news_again() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        let link = bench.opened();
        bench.cluster.on_ready(link, true, bench.now);
        bench.now += WORKED_AFTER;
        assert!(bench.closes(link, LOST, None));
    }
}

#[test]
fn refused_credentials_are_tried_ever_more_slowly_and_a_mended_broker_is_found() {
    let mut bench = Bench::new();
    let mut tries = 0;
    while bench.now < bench.start + Duration::from_secs(3600) {
        bench.fails("PLAIN authentication is refused by the broker", Some(PASSWORD));
        tries += 1;
    }
    assert!((60..=70).contains(&tries), "{tries} in an hour, one a minute");
    let refused_at = bench.now;
    let link = bench.opened();
    let waited = bench.now - refused_at;
    assert!(waited <= PASSWORD + BOOTSTRAP_STAGGER, "tried again after {waited:?}");
    // Let in, then lost: that is an outage like any other.
    bench.cluster.on_ready(link, true, bench.now);
    bench.now += WORKED_AFTER;
    bench.closes(link, LOST, None);
    let lost_at = bench.now;
    bench.opened();
    assert!(bench.now - lost_at <= RECONNECT_MAX + BOOTSTRAP_STAGGER);
    let mut bench = Bench::new();
    while bench.now < bench.start + Duration::from_secs(3600) {
        bench.fails("OAUTHBEARER authentication is refused by the broker", Some(Duration::from_secs(15)));
    }
    let refused_at = bench.now;
    bench.opened();
    let longest = Duration::from_secs(15) + BOOTSTRAP_STAGGER;
    assert!(bench.now - refused_at <= longest, "a token is replaced meanwhile");
}

#[test]
fn a_broker_that_is_away_is_tried_quickly_although_it_refused_before() {
    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.fails("PLAIN authentication is refused by the broker", Some(PASSWORD));
    }
    bench.fails("cannot connect", None);
    let failed_at = bench.now;
    bench.opened();
    assert!(bench.now - failed_at <= RECONNECT_MAX + BOOTSTRAP_STAGGER);
}
