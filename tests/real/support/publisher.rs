//! The load: this project's publisher-mqtt, as a process.

use std::time::Duration;

use rustix::process::Signal;

use super::process::{Process, built};
use super::{Mosquitto, Stage};

pub struct Publisher {
    process: Process,
    pub total: u64,
}

/// What to publish.
pub struct Load {
    /// The devices are `PREFIX/1`, `PREFIX/2`, ...
    pub prefix: String,
    pub devices: u64,
    pub total: u64,
    /// Messages per second; 0 is flat out.
    pub rate: u64,
    pub qos: u8,
    pub payload_bytes: usize,
}

impl Load {
    /// 100 devices, QoS 1, 200 bytes.
    pub fn new(prefix: &str, total: u64, rate: u64) -> Load {
        Load { prefix: prefix.to_owned(), devices: 100, total, rate, qos: 1, payload_bytes: 200 }
    }
}

impl Publisher {
    pub fn start(stage: &Stage, mosquitto: &Mosquitto, load: &Load) -> Publisher {
        Publisher::start_as(stage, "publisher", mosquitto, load)
    }

    /// A second one in the same test: its run is told apart from the first by its name.
    pub fn start_as(stage: &Stage, name: &str, mosquitto: &Mosquitto, load: &Load) -> Publisher {
        let topics: Vec<String> =
            (1..=load.devices).map(|device| format!("{}/{device}", load.prefix)).collect();
        let mut command = built("publisher-mqtt");
        command
            .env("MQTT_BROKER_URL", "127.0.0.1")
            .env("MQTT_BROKER_PORT", mosquitto.port.to_string())
            .env("MQTT_CLIENT_ID", stage.unique(name))
            .env("TOPIC_LIST", topics.join(","))
            .env("TOTAL_MSG", load.total.to_string())
            .env("RATE", load.rate.to_string())
            .env("QOS", load.qos.to_string())
            .env("PAYLOAD_BYTES", load.payload_bytes.to_string())
            .env("RUN_ID", format!("{}-{name}", stage.name));
        Publisher { process: Process::start(name, &stage.dir, &mut command), total: load.total }
    }

    /// To these topics in turn, flat out.
    pub fn start_topics<const N: usize>(
        stage: &Stage,
        mosquitto: &Mosquitto,
        topics: [&str; N],
        total: u64,
    ) -> Publisher {
        let mut command = built("publisher-mqtt");
        command
            .env("MQTT_BROKER_URL", "127.0.0.1")
            .env("MQTT_BROKER_PORT", mosquitto.port.to_string())
            .env("TOPIC_LIST", topics.join(","))
            .env("TOTAL_MSG", total.to_string())
            .env("RATE", "0");
        Publisher { process: Process::start("publisher", &stage.dir, &mut command), total }
    }

    /// Waits until all is sent and acknowledged by the MQTT broker.
    pub fn finish(&mut self, limit: Duration) {
        let status = self.process.wait(limit);
        assert!(status.success(), "publisher-mqtt: {status}\n{}", self.process.log_text());
    }

    /// True once it has sent and drained everything.
    pub fn is_done(&mut self) -> bool {
        self.process.ended().is_some()
    }

    pub fn interrupt(&self) {
        self.process.signal(Signal::INT);
    }
}
