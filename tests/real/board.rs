//! What a board meets in its life, in one go: a start, a load, a restart, an outage of Kafka that goes to the spool, kill -9 in
//! it, and the way back. `make test` does it with this machine's executable; cross/test.sh with those for boards, each
//! under an emulator of its CPU, and takes from the report what docs/cross.md says of memory and start.

use std::time::Duration;

use crate::support::flow::{ARRIVE, UNLIMITED};
use crate::support::process::runner;
use crate::support::rig::{RATE, Rig};
use crate::support::wait::outage;
use crate::support::{Version, until};

const FLOWS: Duration = Duration::from_secs(4);
const AWAY: Duration = Duration::from_secs(4);
/// Restart, outage, Kafka's start and the end of the load's flow, with room for an emulator that is slow.
const LOAD: Duration = Duration::from_secs(30);

/// Resident memory of the gateway, without that of an emulator, KiB.
fn memory_kib(rig: &mut Rig) -> u64 {
    let runner = runner();
    let base = runner.split_whitespace().skip_while(|word| *word != "-B").nth(1);
    match base {
        Some(base) => {
            let digits = base.strip_prefix("0x").expect("the runner's -B is hexadecimal");
            let base = u64::from_str_radix(digits, 16).expect("the runner's -B is a number");
            rig.flow.gateway.process().guest_memory_kib(base)
        }
        None => rig.flow.gateway.process().memory_kib().0,
    }
}

#[test]
fn a_board_carries_a_load_over_restarts_and_an_outage() {
    let mut rig = Rig::prepare("board", Version::V4_3, "", UNLIMITED);
    let back = rig.gateway_is_restarted();
    let idle_kib = memory_kib(&mut rig);
    rig.load_begins(LOAD);
    let mut load_kib = 0;
    let enough = RATE * FLOWS.as_secs();
    until("the load to flow", FLOWS + ARRIVE, || {
        load_kib = load_kib.max(memory_kib(&mut rig));
        let seen = rig.flow.follower.distinct();
        if seen >= enough { Ok(()) } else { Err(format!("{seen} of {enough}")) }
    });
    rig.gateway_is_restarted();
    rig.flows_for(Duration::from_secs(1));

    rig.kafka_is_killed();
    outage(AWAY / 2);
    rig.gateway_is_killed();
    outage(AWAY / 2);
    let spooling_kib = memory_kib(&mut rig);
    rig.kafka_comes_back();
    rig.end(&format!(
        "connected {} ms after its start; {idle_kib} KiB idle, {load_kib} KiB under load, {spooling_kib} KiB while Kafka is away",
        back.as_millis()
    ));
}
