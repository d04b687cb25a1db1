//! What Kafka will never take goes to the dead letters and holds back nobody.

use std::time::Duration;

use crate::support::consumer::judge;
use crate::support::flow::{ARRIVE, UNLIMITED};
use crate::support::kafka::{TopicSpec, shared_one};
use crate::support::publisher::Load;
use crate::support::{Follower, Gateway, Mosquitto, Publisher, Stage, read_all, until};

#[test]
fn a_record_that_is_too_large_goes_to_the_dead_letters_and_the_route_goes_on() {
    let stage = Stage::new("too_large");
    let mosquitto = Mosquitto::start(&stage.dir, UNLIMITED);
    let kafka = shared_one();
    let (topic, dead) = (stage.unique("t"), stage.unique("dead"));
    kafka.create(&topic, &TopicSpec { configs: vec![("max.message.bytes", "20000")], ..kafka.topic() });
    kafka.create(&dead, &kafka.topic());
    let mut gateway = Gateway::new(&stage, &mosquitto, &kafka.bootstrap(), &format!("d/#:{topic}"))
        .set("DEAD_LETTER_TOPIC", &dead);
    gateway.up_and_subscribed(&mosquitto, "d/#");
    let follower = Follower::start(&stage.dir, &kafka.bootstrap(), &topic);

    // Small ones of the same devices flow while 20 large ones come among them.
    let mut small = Publisher::start(&stage, &mosquitto, &Load::new("d", 5_000, 1_000));
    follower.wait_distinct(1_000, ARRIVE);
    let mut large = Publisher::start_as(
        &stage,
        "large",
        &mosquitto,
        &Load { payload_bytes: 60_000, ..Load::new("d", 20, 20) },
    );
    large.finish(Duration::from_secs(30));
    small.finish(Duration::from_secs(30));
    follower.wait_distinct(5_000, ARRIVE);

    let letters = until("20 dead letters", Duration::from_secs(30), || {
        let letters = read_all(&kafka.bootstrap(), &dead);
        if letters.len() >= 20 { Ok(letters) } else { Err(format!("{} letters", letters.len())) }
    });
    gateway.stop_in_order();
    assert_eq!(letters.len(), 20);
    for letter in &letters {
        for header in
            ["tidegate.error.reason=", "tidegate.error.code=", &format!("tidegate.error.topic={topic}")]
        {
            assert!(letter.headers.contains(header), "{header} is not among {:?}", letter.headers);
        }
        assert_eq!(letter.value.len(), 60_000);
        assert!(letter.key.starts_with("d/"), "{:?}", letter.key);
    }
    let verdict = judge(&read_all(&kafka.bootstrap(), &topic), 5_000);
    verdict.assert_clean(5_000);
    stage.report(5_000, &verdict, "20 of 60 kB to a topic that takes 20 kB: all 20 dead-lettered");
}
